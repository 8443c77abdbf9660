"""Choosing a recipe and judging a collection: sweeps that touch the vectors once, `tune`, and `audit`."""
