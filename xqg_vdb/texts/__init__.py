"""What users bring: corpora, generated queries, questions, and their languages."""
