"""A checkpoint's tokenizer into a model folder, with Unicode composition (NFC) in front.

Published tokenizers cut decomposed text into other tokens than they learnt: the same Korean question, typed on a system
that decomposes, had a cosine of 0.79 to itself. Composed text, which is nearly all there is, gets the same tokens as
before. It stands in tokenizer.json, so that whatever reads the folder does the same, and the fingerprint knows it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson

from xqg_vdb.errors import ModelError
from xqg_vdb.model_folder import TOKENIZER

_COMPOSING = ("NFC", "NFKC")


def copy_tokenizer(checkpoint: Path, exported: Path, folder: Path) -> None:
    """Write `folder`'s tokenizer.json. Raises ModelError when neither place has one, or it is none."""
    # the publisher's own file first: a re-serialised one may differ
    for candidate in (checkpoint / TOKENIZER, exported / TOKENIZER):
        if candidate.is_file():
            write_composing(candidate, folder / TOKENIZER)
            return
    raise ModelError(
        "The checkpoint has no tokenizer.json and none could be made: save it with a fast tokenizer first."
    )


def write_composing(source: Path, target: Path) -> None:
    """Write the tokenizer of `source` with NFC before its own normaliser; as it is where that begins by composing.

    Raises ModelError for a file that is no tokenizer.
    """
    try:
        record = orjson.loads(source.read_bytes())
        own = record["normalizer"] or {"type": "Sequence", "normalizers": []}
        steps = own["normalizers"] if own["type"] == "Sequence" else [own]
        composes = bool(steps) and steps[0]["type"] in _COMPOSING
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{source} is not a tokenizer ({error!r}): save the checkpoint's again.") from error
    if composes:
        shutil.copyfile(source, target)
        return
    record["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, *steps]}
    target.write_bytes(orjson.dumps(record))
