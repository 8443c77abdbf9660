"""Corpora into collections: encoded into a build folder, fused, written; added to, checked, copied, augmented."""
