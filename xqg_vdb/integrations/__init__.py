"""LangChain, LlamaIndex and Haystack: thin wrappers round a ready encoder or retriever, a module and an extra for each.

Every module has the same three things: an embedder whose questions are calibrated, for the framework's own Qdrant
store; a retriever that does the whole search; and `language_filter`, which says "only passages in these languages" in
the framework's words. Nothing is imported here, so that one framework does not need the others.
"""
