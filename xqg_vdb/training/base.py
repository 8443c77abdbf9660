"""The checkpoint that training starts from: a hub id, a folder or one of the starters, as a clean local copy."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from xqg_vdb.checkpoints import Checkpoint, fetch_checkpoint
from xqg_vdb.generation.export import STARTER_GENERATOR
from xqg_vdb.generation.starter_generator import SOURCE, build_generator_checkpoint


@dataclass(frozen=True, slots=True)
class Base:
    """name: a hub id, folder, `starter:encoder` or `starter:generator`. accept_license: of the latter's terms."""

    name: str
    accept_license: bool = False

    def fetch(self, folder: Path) -> Checkpoint:
        """A clean copy in `folder`, whatever an earlier try left there. Raises ModelError like `fetch_checkpoint`."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.name != STARTER_GENERATOR:
            return fetch_checkpoint(self.name, into=folder)
        built = folder.with_name("starter")
        if not (built / "config.json").exists():
            build_generator_checkpoint(built, accept_license=self.accept_license)
        clean = fetch_checkpoint(str(built), into=folder)
        return Checkpoint(clean.path, SOURCE, clean.revision, clean.config)
