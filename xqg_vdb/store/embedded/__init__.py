"""Collections in a folder, by Qdrant's engine in this process."""
