"""Training: question-passage pairs to a dense retriever or a query generator; needs the extra `train`."""
