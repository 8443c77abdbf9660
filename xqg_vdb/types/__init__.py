"""The words that every module shares: frozen records and the protocols between the parts.

Start reading here. Nothing in this folder computes; nothing in it knows Qdrant, ONNX or a file format. Import from
`xqg_vdb.types` itself.
"""

from .cards import Bm25Settings, Card, Distance, EncoderFacts, Hybrid, Pool, Pooling, Recipe
from .points import PointBatch, Questions, SparseVector, StoredPoint, Vectors
from .protocols import CollectionWriter, QueryGenerator, TextEncoder, VectorStore
from .texts import UNKNOWN_LANGUAGE, GeneratedQueries, Hit, Passage, Query

__all__ = [
    "UNKNOWN_LANGUAGE", "Bm25Settings", "Card", "CollectionWriter", "Distance", "EncoderFacts", "GeneratedQueries",
    "Hit", "Hybrid", "Passage", "PointBatch", "Pool", "Pooling", "Query", "QueryGenerator", "Questions",
    "Recipe", "SparseVector", "StoredPoint", "TextEncoder", "VectorStore", "Vectors",
]  # fmt: skip
