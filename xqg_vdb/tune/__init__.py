"""Choosing a recipe and judging a collection: sweeps that touch the vectors once, `tune`, and `audit`."""

from xqg_vdb.face import make_callable

make_callable(__name__, home="xqg_vdb.tune.tune")
