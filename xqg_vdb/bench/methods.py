"""The generators of a suite: opened when first asked, shared by its systems, and what they computed kept on disk.

likelihoods-FINGERPRINT.log   log-likelihoods of questions after passages (UPR)
expansions-DIGEST.log         what a model wrote for questions
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.bench.kept_rows import KeptRows
from xqg_vdb.bench.likelihoods import KeptScorer, rank_again
from xqg_vdb.bench.spent import Again, Spent
from xqg_vdb.bench.systems import System, expansion_of, scorer_of
from xqg_vdb.bench.wordings import KeptWriter, Wordings, expand_all
from xqg_vdb.errors import ModelError
from xqg_vdb.expansion.expander import MAX_TOKENS, PROMPTS, Expander, open_writer
from xqg_vdb.generation.opening import generator_folder
from xqg_vdb.generation.scoring import INSTRUCTION
from xqg_vdb.model_folder import ModelFolder, open_model_folder
from xqg_vdb.progress import Progress
from xqg_vdb.rerank import Reranker
from xqg_vdb.types import Passage, Query


class Methods:
    """Query expansion and UPR for the systems of one suite. folder: where results are kept."""

    def __init__(self, folder: Path, *, threads: int, progress: Progress) -> None:
        self.folder, self.threads, self.progress = folder, threads, progress
        self._folders: dict[str, ModelFolder] = {}
        self._scorers: dict[str, KeptScorer] = {}
        self._writers: dict[tuple[str, str], KeptWriter] = {}
        self._logs: dict[str, KeptRows] = {}

    def facts(self, system: System) -> dict[str, Any]:
        """What a cell depends on besides the system's own settings; {} without generators.

        Raises ModelError, CorruptError and DataError for models that are not there or are none.
        """
        found: dict[str, Any] = {}
        if (expansion := expansion_of(system)) is not None:
            method, model, lang = expansion
            made_by = self._writer_facts(system, model)
            found["expand"] = {
                "method": method, "lang": lang, "prompts": PROMPTS, "max_tokens": MAX_TOKENS, "writer": made_by,
            }  # fmt: skip
        if (scorer := scorer_of(system)) is not None:
            found["rerank"] = {"model": self._model_folder(scorer).fingerprint, "instruction": INSTRUCTION}
        return found

    def wordings(self, system: System, queries: Sequence[Query], *, dataset: str) -> tuple[Wordings, Spent] | None:
        """What the system searches for in place of each question, None when it searches for the question."""
        expansion = expansion_of(system)
        if expansion is None:
            return None
        method, model, lang = expansion
        writer = self._writer(model, system)
        expander, stage = Expander(writer, method=method, lang=lang), f"{dataset}: expansions of {system.name}"
        return expand_all(expander, writer, queries, progress=self.progress, stage=stage)

    def again(self, system: System, *, queries: Sequence[Query], passages: Sequence[Passage]) -> Again | None:
        """The system's reranker, ready for a run of these questions; None without one. See `likelihoods.rank_again`."""
        model = scorer_of(system)
        if model is None:
            return None
        scorer = self._scorer(model)
        reranker = Reranker(scorer, depth=system.rerank_depth, weight=system.rerank_weight)
        return partial(
            rank_again, reranker=reranker, scorer=scorer, queries=queries, passages=passages, progress=self.progress
        )

    def close(self) -> None:
        """Release logs and connections."""
        for log in self._logs.values():
            log.close()
        for writer in self._writers.values():
            writer.close()

    def _log(self, name: str, header: dict[str, Any]) -> KeptRows:
        if name not in self._logs:
            self._logs[name] = KeptRows(self.folder / f"{name}.log", header=header)
        return self._logs[name]

    def _model_folder(self, model: str) -> ModelFolder:
        if model not in self._folders:
            found = open_model_folder(generator_folder(model))
            if found.kind == "encoder":
                raise ModelError(f"{found.path} holds an encoder; give a generator, such as starter:generator.")
            self._folders[model] = found
        return self._folders[model]

    def _scorer(self, model: str) -> KeptScorer:
        if model not in self._scorers:
            fingerprint = self._model_folder(model).fingerprint
            kept = self._log(f"likelihoods-{fingerprint}", {"likelihoods of": fingerprint})
            self._scorers[model] = KeptScorer(model, kept=kept, threads=self.threads)
        return self._scorers[model]

    def _writer(self, model: str, system: System) -> KeptWriter:
        key = model, system.expand_model
        if key not in self._writers:
            writer = open_writer(model, endpoint_model=system.expand_model, threads=self.threads)
            facts = {**writer.describe(), "max_tokens": MAX_TOKENS}
            digest = hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
            kept = self._log(f"expansions-{digest}", {"expansions of": digest})
            self._writers[key] = KeptWriter(writer, kept=kept)
        return self._writers[key]

    def _writer_facts(self, system: System, model: str) -> dict[str, Any]:
        """Which model writes, without opening a local one."""
        if model.startswith(("http://", "https://")):
            return self._writer(model, system).describe()
        found = self._model_folder(model)
        return {"fingerprint": found.fingerprint, "chat": (found.manifest.get("generator") or {}).get("chat")}
