"""Checkpoints into model folders, behind a gate that compares with the original."""

from xqg_vdb.face import make_callable

make_callable(__name__, home="xqg_vdb.export.run")
