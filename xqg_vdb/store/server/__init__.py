"""Collections on a Qdrant server."""
