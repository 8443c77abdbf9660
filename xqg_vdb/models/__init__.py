"""Exported models: their folders, encoders and decoders."""
