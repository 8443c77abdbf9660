"""Checkpoints into model folders, behind a gate that compares with the original."""
