"""Fold generated queries into a Qdrant collection that somebody else made, without encoding its passages again."""

from xqg_vdb.augmenting.running import AugmentReport, augment, undo

__all__ = ["AugmentReport", "augment", "undo"]
