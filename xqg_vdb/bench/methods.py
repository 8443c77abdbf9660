"""The generators of a suite: opened when first asked, shared by its systems, and what they computed kept on disk.

likelihoods-FINGERPRINT.log   log-likelihoods of questions after passages (UPR)
expansions/, expansion-seconds.log   what was written for questions, and how long that took
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from xqg_vdb.bench.kept_rows import KeptRows
from xqg_vdb.bench.likelihoods import KeptScorer, rank_again
from xqg_vdb.bench.spent import Again, Spent
from xqg_vdb.bench.systems import System, expansion_of, scorer_of
from xqg_vdb.bench.wordings import Wordings, expand_all
from xqg_vdb.errors import ModelError
from xqg_vdb.expansion import Expander, ExpansionCache
from xqg_vdb.generation.completion import Writer, open_writer
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
        self._writers: dict[tuple[str, str, int], Writer] = {}
        self._logs: dict[str, KeptRows] = {}

    def facts(self, system: System) -> dict[str, Any]:
        """What a cell depends on besides the system's own settings; {} without generators.

        Raises ModelError, CorruptError and DataError for models that are not there or are none.
        """
        found: dict[str, Any] = {}
        if (expansion := expansion_of(system)) is not None:
            plan, model = expansion
            found["expand"] = {**plan.to_json(), "combine": plan.combine, "writer": self._writer_facts(system, model)}
        if (scorer := scorer_of(system)) is not None:
            found["rerank"] = {"model": self._model_folder(scorer).fingerprint, "instruction": INSTRUCTION}
        return found

    def wordings(self, system: System, queries: Sequence[Query], *, dataset: str) -> tuple[Wordings, Spent] | None:
        """What the system searches for in place of each question, None when it searches for the question."""
        expansion = expansion_of(system)
        if expansion is None:
            return None
        plan, model = expansion
        expander = Expander(self._writer(model, system), plan=plan, cache=ExpansionCache(self.folder / "expansions"))
        times = self._log("expansion-seconds", {"seconds of": "expansions"})
        stage = f"{dataset}: expansions of {system.name}"
        return expand_all(expander, queries, times=times, progress=self.progress, stage=stage)

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
            close = getattr(writer, "close", None)
            if close is not None:
                close()

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

    def _writer(self, model: str, system: System) -> Writer:
        key = model, system.expand_model, system.expand_max_tokens
        if key not in self._writers:
            self._writers[key] = open_writer(
                model, max_tokens=system.expand_max_tokens, endpoint_model=system.expand_model, threads=self.threads
            )
        return self._writers[key]

    def _writer_facts(self, system: System, model: str) -> dict[str, Any]:
        """Which model writes, without opening a local one."""
        if model.startswith(("http://", "https://")):
            return self._writer(model, system).describe()
        found = self._model_folder(model)
        return {"fingerprint": found.fingerprint, "chat": (found.manifest.get("generator") or {}).get("chat")}
