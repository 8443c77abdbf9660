"""Generative query expansion: a model writes what a passage that answers the question might say.

The search is then for question and expansion together (Macmillan-Scott, Goworek and Özyiğit 2025, arXiv 2511.19325,
compare the strategies for cross-lingual retrieval; HyDE and Query2doc are the two ways to combine). `Expander` does it.
"""

from xqg_vdb.expansion.cache import ExpansionCache
from xqg_vdb.expansion.expander import Expander, open_expander
from xqg_vdb.expansion.prompts import Plan

__all__ = ["Expander", "ExpansionCache", "Plan", "open_expander"]
