"""Fold generated queries into a copy of a Qdrant collection that somebody else made; no passage is encoded again."""

from xqg_vdb.index.augment import AugmentReport, Wishes, augment, undo

__all__ = ["AugmentReport", "Wishes", "augment", "undo"]
