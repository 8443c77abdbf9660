"""Generative query expansion: a model writes what a passage that answers the question might say (`expander`)."""

from xqg_vdb.search.expand import Expander

__all__ = ["Expander"]
