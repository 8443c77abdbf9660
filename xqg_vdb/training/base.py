"""The checkpoint that training starts from: a hub id, a folder or one of the starters, as a clean local copy."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from xqg_vdb.checkpoints import STARTER_ENCODER, Checkpoint, fetch_checkpoint
from xqg_vdb.generation.export import STARTER_GENERATOR
from xqg_vdb.generation.starter_generator import SOURCE, TERMS_URL, build_generator_checkpoint

UNKNOWN_LICENCE = "unknown: find out before you publish these weights"

_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Base:
    """name: a hub id, folder, `starter:encoder` or `starter:generator`. accept_license: of the latter's terms."""

    name: str
    accept_license: bool = False

    def fetch(self, folder: Path) -> Checkpoint:
        """A clean copy in `folder`, whatever an earlier try left there. Raises ModelError like `fetch_checkpoint`."""
        starter = folder.with_name(f"{folder.name}-starter")
        for left in (folder, starter):
            shutil.rmtree(left, ignore_errors=True)
        if self.name != STARTER_GENERATOR:
            return fetch_checkpoint(self.name, into=folder)
        build_generator_checkpoint(starter, accept_license=self.accept_license)
        clean = fetch_checkpoint(str(starter), into=folder)
        return Checkpoint(clean.path, SOURCE, clean.revision, clean.config)

    def licence(self, checkpoint: Checkpoint) -> str:
        """The licence that the base's own model card names; what is trained from it inherits it."""
        if self.name == STARTER_GENERATOR:
            return f"gemma ({TERMS_URL}, which bind derivatives too)"
        if self.name == STARTER_ENCODER:
            return "mit (intfloat/multilingual-e5-small)"
        readme = checkpoint.path / "README.md"
        text = readme.read_text("utf-8", "replace")[:20_000] if readme.is_file() else ""
        found = re.search(r"^license:\s*([\w.+-]+)\s*$", text, re.MULTILINE)
        return found[1] if found else UNKNOWN_LICENCE


def copy_tokenizer(base: Checkpoint, folder: Path) -> None:
    """The base's tokenizer files, unchanged: training does not touch the vocabulary."""
    for pattern in _TOKENIZER_FILES:
        for file in base.path.glob(pattern):
            shutil.copyfile(file, folder / file.name)
