"""Fold generated queries into a Qdrant collection that somebody else made, without encoding its passages again."""

from xqg_vdb.augmenting.plan import Wishes
from xqg_vdb.augmenting.running import AugmentReport, augment
from xqg_vdb.augmenting.undoing import undo

__all__ = ["AugmentReport", "Wishes", "augment", "undo"]
