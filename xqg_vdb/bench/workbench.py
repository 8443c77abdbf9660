"""What the systems of a suite share while it runs: open encoders, read datasets, vectors, finished cells.

vectors/   vectors of texts, by encoder and content    (any suite with the same texts reuses them)
out/cells/    values and run of every finished cell, by all that they depend on
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from xqg_vdb.bench.cells import Cell, cell_key, load_cell, run_cell, save_cell
from xqg_vdb.bench.material import Material, prepare
from xqg_vdb.bench.placing import Placed, means_of_questions, place
from xqg_vdb.bench.suite import Suite, System
from xqg_vdb.bench.words import words_of
from xqg_vdb.calibration import CalibratedEncoder, LanguageMeans
from xqg_vdb.datasets import RetrievalTask, load_task
from xqg_vdb.errors import DataError
from xqg_vdb.files import disk_errors, sha256_of
from xqg_vdb.kept_vectors import digest_of
from xqg_vdb.passage_calibration import PRIOR
from xqg_vdb.progress import Progress
from xqg_vdb.query_vectors import QueryVectors, encode_query_files
from xqg_vdb.types import VectorStore

OpenEncoder = Callable[[str], CalibratedEncoder]


@dataclass
class Workbench:
    """One run of a suite; everything is made when it is first asked for, and kept."""

    suite: Suite
    data_dir: Path | None
    out: Path
    vectors: Path
    open_encoder: OpenEncoder
    progress: Progress
    encoders: dict[str, CalibratedEncoder] = field(default_factory=dict)
    queries: dict[tuple[str, str, str], QueryVectors] = field(default_factory=dict)
    _tasks: dict[str, RetrievalTask] = field(default_factory=dict)
    _materials: dict[tuple[str, str], Material] = field(default_factory=dict)
    _asked: dict[tuple[str, str], LanguageMeans] = field(default_factory=dict)

    def encoder(self, model: str) -> CalibratedEncoder:
        """The encoder of that name."""
        if model not in self.encoders:
            self.encoders[model] = self.open_encoder(model)
        return self.encoders[model]

    def task(self, dataset: str) -> RetrievalTask:
        """The dataset."""
        if dataset not in self._tasks:
            self._tasks[dataset] = load_task(dataset, self.data_dir)
        return self._tasks[dataset]

    def metrics(self, dataset: str) -> tuple[str, ...]:
        """The suite's metrics, or the dataset's own."""
        return self.suite.metrics or self.task(dataset).metrics

    def material(self, model: str, dataset: str) -> Material:
        """The dataset's vectors under an encoder."""
        key = model, dataset
        if key not in self._materials:
            self._materials[key] = prepare(
                self.task(dataset), encoder=self.encoder(model), folder=self.vectors, progress=self.progress
            )
        return self._materials[key]

    def query_vectors(self, system: System, dataset: str) -> QueryVectors | None:
        """The vectors of the queries that the system folds in there."""
        file = self.suite.query_file(system, dataset)
        if file is None:
            return None
        key = system.encoder, dataset, str(file)
        if key not in self.queries:
            passages = self.material(system.encoder, dataset).passages
            self.queries[key] = encode_query_files(
                [file], [passage.id for passage in passages], encoder=self.encoder(system.encoder), folder=self.vectors,
                progress=self.progress,
            )  # fmt: skip
        return self.queries[key]

    def question_means(self, system: System) -> LanguageMeans | None:
        """Language means from another dataset's questions, when the system wants them."""
        if system.means in ("refined", "bank", "generated"):
            return None
        key = system.encoder, system.means
        if key not in self._asked:
            material = self.material(*key)
            langs = [query.lang for query in material.task.queries]
            self._asked[key] = means_of_questions(material.question_vectors, langs)
        return self._asked[key]

    def placed(self, system: System, dataset: str) -> Placed:
        """The system's vectors on that dataset."""
        material = self.material(system.encoder, dataset)
        placed = place(
            system, material, encoder=self.encoder(system.encoder), queries=self.query_vectors(system, dataset),
            asked=self.question_means(system),
        )  # fmt: skip
        if not system.hybrid:
            return placed
        file = self.suite.query_file(system, dataset) if system.hybrid_queries else None
        words = words_of(self.task(dataset), material.passages, queries=file, langs=system.recipe.langs)
        return replace(placed, words=words)

    def cell(self, system: System, dataset: str, *, store: VectorStore | None) -> tuple[Cell, Path]:
        """The finished cell and its TREC run, from disk where they are there."""
        folder = self.out / "cells"
        name = cell_key(self.facts(system, dataset))
        path, run = folder / f"{name}.json.gz", folder / f"{name}.trec.gz"
        cell = load_cell(path)
        if cell is None:
            if system.vectors == "all" and self.task(dataset).pooled:
                raise DataError(f"system {system.name!r}: vectors = 'all' needs one pool; {dataset} has several.")
            if system.hybrid and store is None:
                raise DataError(f"system {system.name!r}: hybrid needs search = 'exact' or 'graph'.")
            cell, found = run_cell(
                self.task(dataset), self.material(system.encoder, dataset).passages, self.placed(system, dataset),
                encoder=self.encoder(system.encoder).facts, metrics=self.metrics(dataset), depth=self.suite.depth,
                search=self.suite.search, store=store,
            )  # fmt: skip
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            save_cell(path, cell, run=run, found=found)
        return cell, run

    def facts(self, system: System, dataset: str) -> dict[str, Any]:
        """All that a cell depends on: change any of it and it is another cell."""
        encoder = self.encoder(system.encoder)
        file = self.suite.query_file(system, dataset)
        usual = asdict(System(""))  # a setting that a later version adds changes no old cell
        settings = {name: value for name, value in asdict(system).items() if value != usual[name]}
        settings.update(name="", encoder="", queries=file and sha256_of(file))
        if system.passage_calibration:
            settings["passage prior"] = PRIOR  # cells of the time before it were other vectors
        return {
            "schema": 2,
            "data": self.data_digest(dataset),
            "encoder": encoder.facts.fingerprint,
            "recommended λ": encoder.calibration,
            "system": settings,
            "metrics": self.metrics(dataset),
            "depth": self.suite.depth,
            "search": self.suite.search,
        }

    def data_digest(self, dataset: str) -> str:
        """A hash of passages, questions and judgements as they were read."""
        task = self.task(dataset)
        texts = [f"{passage.id}\t{passage.lang}\t{passage.title_and_text}" for passage in task.passages]
        texts += [f"{query.id}\t{query.lang}\t{query.text}" for query in task.queries]
        texts += [f"{qid}\t{docid}\t{grade}" for qid, of in task.qrels.items() for docid, grade in of.items()]
        return digest_of(texts)
