"""What the systems of a suite share while it runs: open encoders, read datasets, vectors, finished cells.

vectors/   vectors of texts, by encoder and content    (any suite with the same texts reuses them)
likelihoods-*.log, expansions-*.log    what generators computed, beside the vectors
out/cells/    values and run of every finished cell, by all that they depend on
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from xqg_vdb.calibration import PRIOR, CalibratedEncoder, LanguageMeans
from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.cells import Cell, cell_key, load_cell, run_cell, save_cell, with_spent
from xqg_vdb.evaluate.datasets import load_task
from xqg_vdb.evaluate.datasets.task import RetrievalTask, sampled_questions
from xqg_vdb.evaluate.judge import BITEXT
from xqg_vdb.evaluate.methods import Methods, WordingVectors, vectors_of
from xqg_vdb.evaluate.metrics import Run
from xqg_vdb.evaluate.mixed import has_same_and_cross, split_recalls
from xqg_vdb.evaluate.suite import Suite, System
from xqg_vdb.evaluate.systems import Material, Placed, means_of_questions, place, prepare, question_languages, words_of
from xqg_vdb.files import disk_errors, sha256_of
from xqg_vdb.index.encode import QueryVectors, digest_of, encode_cached, encode_query_files
from xqg_vdb.progress import Progress
from xqg_vdb.types import Question, VectorStore

OpenEncoder = Callable[[str], CalibratedEncoder]


@dataclass
class Workbench:
    """One run of a suite; everything is made when it is first asked for, and kept.

    threads: of generators. own: datasets that are read already.
    """

    suite: Suite
    data_dir: Path | None
    out: Path
    vectors: Path
    open_encoder: OpenEncoder
    progress: Progress
    threads: int
    own: Mapping[str, RetrievalTask] = field(default_factory=dict)
    encoders: dict[str, CalibratedEncoder] = field(default_factory=dict)
    queries: dict[tuple[str, str, str], QueryVectors] = field(default_factory=dict)
    _tasks: dict[str, RetrievalTask] = field(default_factory=dict)
    _wholes: dict[str, RetrievalTask] = field(default_factory=dict)
    _materials: dict[tuple[str, str], Material] = field(default_factory=dict)
    _metrics: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _asked: dict[tuple[str, str], LanguageMeans] = field(default_factory=dict)
    _methods: Methods = field(init=False)

    def __post_init__(self) -> None:
        self._methods = Methods(self.vectors, threads=self.threads, progress=self.progress)

    def close(self) -> None:
        """Release what generators hold."""
        self._methods.close()

    def encoder(self, model: str) -> CalibratedEncoder:
        """The encoder of that name."""
        if model not in self.encoders:
            self.encoders[model] = self.open_encoder(model)
        return self.encoders[model]

    def task(self, dataset: str) -> RetrievalTask:
        """The dataset, with the suite's questions only."""
        if dataset not in self._tasks:
            task = self.own.get(dataset) or load_task(dataset, self.data_dir)
            self._wholes[dataset] = task
            self._tasks[dataset] = (
                task if self.suite.questions is None else sampled_questions(task, self.suite.questions)
            )
        return self._tasks[dataset]

    def metrics(self, dataset: str) -> tuple[str, ...]:
        """The suite's metrics, or the dataset's own, with recall by language where one pool has several."""
        if dataset not in self._metrics:
            task = self.task(dataset)
            wanted = self.suite.metrics or task.metrics
            mixed = has_same_and_cross(task, list(task.passages))
            self._metrics[dataset] = split_recalls(wanted) if mixed else wanted
        return self._metrics[dataset]

    def material(self, model: str, dataset: str) -> Material:
        """The dataset's vectors under an encoder."""
        whole, task = self.whole_material(model, dataset), self.task(dataset)
        return whole if len(task.queries) == len(whole.task.queries) else whole.narrowed(task)

    def whole_material(self, model: str, dataset: str) -> Material:
        """The same with every question of the dataset: they are encoded and kept together, however many are asked."""
        key = model, dataset
        if key not in self._materials:
            self.task(dataset)
            self._materials[key] = prepare(
                self._wholes[dataset], encoder=self.encoder(model), folder=self.vectors, progress=self.progress
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
            material = self.whole_material(*key)
            langs = [query.lang for query in material.task.queries]
            self._asked[key] = means_of_questions(material.question_vectors, langs)
        return self._asked[key]

    def placed(self, system: System, dataset: str, wordings: WordingVectors | None = None) -> Placed:
        """The system's vectors on that dataset; wordings: what it searches for in place of the questions."""
        material = self.material(system.encoder, dataset)
        placed = place(
            system, material, encoder=self.encoder(system.encoder), queries=self.query_vectors(system, dataset),
            asked=self.question_means(system), wordings=wordings,
        )  # fmt: skip
        if not system.hybrid:
            return placed
        questions = [query.text for query in material.task.queries] if wordings is None else wordings.joined()
        words = words_of(questions, material.passages)
        return replace(placed, words=words)

    def cell(self, system: System, dataset: str, *, store: VectorStore | None) -> tuple[Cell, Path]:
        """The finished cell and its TREC run, from disk where they are there."""
        folder = self.out / "cells"
        name = cell_key(self.facts(system, dataset))
        path, run = folder / f"{name}.json.gz", folder / f"{name}.trec.gz"
        cell = load_cell(path)
        if cell is None:
            self._refuse(system, dataset, store)
            cell, found = self._computed(system, dataset, store)
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            save_cell(path, cell, run=run, found=found)
        return cell, run

    def _refuse(self, system: System, dataset: str, store: VectorStore | None) -> None:
        """Raise DataError for what a system cannot do there."""
        if system.hybrid and store is None:
            raise DataError(f"system {system.name!r}: hybrid needs search = 'exact' or 'graph'.")
        if system.rerank is not None and BITEXT in self.metrics(dataset):
            raise DataError(
                f"system {system.name!r}: {BITEXT} compares vectors, so rerank cannot change it; leave it out."
            )

    def _computed(self, system: System, dataset: str, store: VectorStore | None) -> tuple[Cell, Run]:
        material, encoder = self.material(system.encoder, dataset), self.encoder(system.encoder)
        asked: Sequence[Question] = material.task.queries
        if system.expand or system.rerank:
            langs = question_languages(system, material)
            asked = [replace(query, lang=lang) for query, lang in zip(asked, langs, strict=True)]
        expanded = self._methods.wordings(system, asked, dataset=dataset)
        wordings = None
        if expanded is not None:
            encode = partial(
                encode_cached, encoder=encoder, kind="queries",
                folder=self.vectors, progress=self.progress, stage=f"{dataset}: questions of {system.name}",
            )  # fmt: skip
            wordings = vectors_of(expanded[0], encode)
        cell, found = run_cell(
            material.task, material.passages, self.placed(system, dataset, wordings), encoder=encoder.facts,
            metrics=self.metrics(dataset), depth=max(self.suite.depth, system.rerank.depth if system.rerank else 0),
            search=self.suite.search, store=store,
            again=self._methods.again(system, queries=asked, passages=material.passages),
        )  # fmt: skip
        return cell if expanded is None else with_spent(cell, expanded[1]), found

    def method_facts(self, system: System) -> dict[str, Any]:
        """What the system's generators are; raises ModelError when one is not there."""
        return self._methods.facts(system)

    def facts(self, system: System, dataset: str) -> dict[str, Any]:
        """All that a cell depends on: change any of it and it is another cell."""
        encoder = self.encoder(system.encoder)
        file = self.suite.query_file(system, dataset)
        usual = asdict(System(""))  # a setting that a later version adds changes no old cell
        settings = {name: value for name, value in asdict(system).items() if value != usual[name]}
        settings.update(name="", encoder="", queries=file and sha256_of(file), **self.method_facts(system))
        if self.task(dataset).not_itself:
            settings["not itself"] = True  # cells of the time before it found themselves
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
