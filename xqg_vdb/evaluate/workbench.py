"""What the systems of a suite share while it runs: open encoders, read datasets, vectors, finished cells.

vectors/   vectors of texts, by encoder and content    (any suite with the same texts reuses them)
likelihoods-*.log, expansions-*.log    what generators computed, beside the vectors
out/cells/    values and run of every finished cell, by all that they depend on
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import orjson

from xqg_vdb.calibration import PRIOR, LanguageMeans, TextEncoder
from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.cells import Cell, load_cell, run_cell
from xqg_vdb.evaluate.datasets import load_task
from xqg_vdb.evaluate.datasets.task import RetrievalTask, sampled_questions
from xqg_vdb.evaluate.methods import Generators
from xqg_vdb.evaluate.metrics import Run, write_run
from xqg_vdb.evaluate.mixed import has_same_and_cross, split_recalls
from xqg_vdb.evaluate.suite import Suite, System
from xqg_vdb.evaluate.systems import (
    Material,
    Placed,
    Wordings,
    means_of_questions,
    offsets,
    place,
    prepare,
    question_languages,
    read_vectors,
)
from xqg_vdb.files import disk_errors, sha256_of
from xqg_vdb.index.encode import QueryVectors, digest_of, encode_cached, encode_query_files
from xqg_vdb.progress import Progress, silent
from xqg_vdb.texts.languages import question_bank
from xqg_vdb.types import Question, Vectors, VectorStore

T = TypeVar("T")


@dataclass
class Workbench:
    """One run of a suite; everything is made when it is first asked for, and kept.

    open_encoder: model name -> encoder. out: of cells, runs and reports. vectors: where texts' vectors are kept.
    data_dir: of the benchmarks. threads: of generators. own: datasets that are read already.
    """

    suite: Suite
    open_encoder: Callable[[str], TextEncoder]
    out: Path
    vectors: Path
    data_dir: Path | None = None
    progress: Progress = silent
    threads: int = 1
    own: Mapping[str, RetrievalTask] = field(default_factory=dict)
    _made: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generators = Generators(self.vectors, threads=self.threads, progress=self.progress)

    def _once(self, make: Callable[[], T], *key: str) -> T:
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def encoder(self, model: str) -> TextEncoder:
        """The encoder of that name."""
        return self._once(partial(self.open_encoder, model), "encoder", model)

    def task(self, dataset: str) -> RetrievalTask:
        """The dataset, with the suite's questions only."""
        n = self.suite.questions
        whole = self._whole_task(dataset)
        return whole if n is None else self._once(lambda: sampled_questions(whole, n), "task", dataset)

    def _whole_task(self, dataset: str) -> RetrievalTask:
        return self._once(lambda: self.own.get(dataset) or load_task(dataset, self.data_dir), "whole task", dataset)

    def metrics(self, dataset: str) -> tuple[str, ...]:
        """The suite's metrics, or the dataset's own, with recall by language where one pool has several."""
        task = self.task(dataset)
        wanted = self.suite.metrics or task.metrics
        mixed = self._once(lambda: has_same_and_cross(task, list(task.passages)), "mixed", dataset)
        return split_recalls(wanted) if mixed else wanted

    def material(self, model: str, dataset: str) -> Material:
        """The dataset's vectors under an encoder, of the suite's questions."""
        return self._prepared(model, self.task(dataset))

    def _prepared(self, model: str, task: RetrievalTask) -> Material:
        make = partial(prepare, task, encoder=self.encoder(model), folder=self.vectors, progress=self.progress)
        return self._once(make, "material", model, task.name, str(len(task.queries)))

    def query_vectors(self, system: System, dataset: str) -> QueryVectors | None:
        """The vectors of the queries that the system folds in there."""
        file = self.suite.query_file(system, dataset)
        if file is None:
            return None
        ids = [passage.id for passage in self.material(system.encoder, dataset).passages]
        encoder = self.encoder(system.encoder)
        make = partial(encode_query_files, [file], ids, encoder=encoder, folder=self.vectors, progress=self.progress)
        return self._once(make, "queries", system.encoder, dataset, str(file))

    def check_means(self, system: System) -> None:
        """DataError for what is no source of language means, before anything is encoded."""
        usual = ("refined", "bank", "generated"), ("own", "own offsets")
        for source, known in zip((system.means, system.passage_means), usual, strict=True):
            if source.endswith((".npz", ".json")):
                sha256_of(Path(source))
            elif source.startswith("offsets:") or (source not in known and known is usual[0]):
                self._whole_task(source.removeprefix("offsets:"))
            elif source not in known:
                words = f"{', '.join(known)}, offsets:DATASET, or a file .npz or .json"
                raise DataError(f"system {system.name!r}: passage_means is one of {words}, not {source!r}.")

    def _means(
        self, model: str, source: str, dataset: str, kind: Literal["queries", "passages"]
    ) -> LanguageMeans | None:
        """The language means that a system takes from elsewhere: a file, parallel sentences, a dataset's questions."""
        encoder = self.encoder(model)
        if source in ("refined", "bank", "generated", "own", "own offsets"):
            return None
        if source.endswith((".npz", ".json")):
            return read_vectors(Path(source), dim=encoder.facts.dim)
        if source.startswith("offsets:"):
            make = partial(self._offsets, encoder, source.removeprefix("offsets:"), dataset, kind)
            return self._once(make, "offsets", model, source, dataset, kind)
        material = self._prepared(model, self._whole_task(source))
        langs = [query.lang for query in material.task.queries]
        table = self._once(partial(means_of_questions, material.question_vectors, langs), "means", model, source)
        bank = encoder.language_means
        return LanguageMeans({**bank.means, **table.means}, {**bank.counts, **table.counts}, table.source)

    def _offsets(
        self, encoder: TextEncoder, parallel: str, dataset: str, kind: Literal["queries", "passages"]
    ) -> LanguageMeans:
        """SHIFT's vectors of a dataset's languages, from the questions and the right passages of a parallel one."""
        task, here = self._whole_task(parallel), self.task(dataset)
        text = {passage.id: passage.text for passage in task.passages}
        wanted = {query.lang for query in here.queries} | {passage.lang for passage in here.passages}
        sides: dict[str, tuple[list[str], list[str]]] = {}
        for query in task.queries:
            if query.lang in wanted and query.lang not in (None, "en"):
                ours, pivot = sides.setdefault(query.lang, ([], []))
                ours.append(query.text)
                pivot.append(text[min(task.qrels[query.id])])
        if not sides:
            raise DataError(f"offsets:{parallel} has no sentences with English translations in languages of {dataset}.")
        encode = partial(encode_cached, encoder=encoder, kind=kind, folder=self.vectors, progress=self.progress)
        pairs = {lang: (encode(ours), encode(pivot)) for lang, (ours, pivot) in sides.items()}
        return offsets(pairs, dim=encoder.facts.dim)

    def _bank(self, system: System, dataset: str) -> dict[str, Vectors]:
        """Rows of the bank's questions, by those languages of a dataset's questions that it has."""
        if not system.lir and not system.csls:
            return {}
        encoder, asked = self.encoder(system.encoder), {query.lang for query in self.task(dataset).queries}
        return {
            lang: encode_cached(texts, encoder=encoder, kind="queries", folder=self.vectors)
            for lang, texts in question_bank().items()
            if lang in asked
        }

    def placed(self, system: System, dataset: str, wordings: Wordings | None = None) -> Placed:
        """The system's vectors on that dataset; wordings: what it searches for in place of the questions."""
        return place(
            system, self.material(system.encoder, dataset), encoder=self.encoder(system.encoder),
            queries=self.query_vectors(system, dataset), bank=self._bank(system, dataset), wordings=wordings,
            asked=self._means(system.encoder, system.means, dataset, "queries"),
            moved_by=self._means(system.encoder, system.passage_means, dataset, "passages"),
        )  # fmt: skip

    def cell(self, system: System, dataset: str, *, store: VectorStore | None) -> tuple[Cell, Path]:
        """The finished cell and its TREC run, from disk where they are there."""
        facts = orjson.dumps(self._facts(system, dataset), option=orjson.OPT_SORT_KEYS)
        folder, name = self.out / "cells", hashlib.blake2b(facts, digest_size=12).hexdigest()
        path, run = folder / f"{name}.json.gz", folder / f"{name}.trec.gz"
        cell = load_cell(path)
        if cell is None:
            cell, ranking = self._computed(system, dataset, store)
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_run(run, ranking, tag="xqg-vdb")
            cell.save(path)  # last, so that where the cell is, its run is too
        return cell, run

    def _computed(self, system: System, dataset: str, store: VectorStore | None) -> tuple[Cell, Run]:
        methods, material = system.methods, self.material(system.encoder, dataset)
        if system.hybrid and store is None:
            raise DataError(f"system {system.name!r}: hybrid needs search = 'exact' or 'graph'.")
        if system.csls and store is not None:
            raise DataError(f"system {system.name!r}: csls is no dot product of vectors: search = 'memory'.")
        asked: Sequence[Question] = material.task.queries
        if methods.expand or methods.rerank:
            langs = question_languages(system, material)
            asked = [replace(query, lang=lang) for query, lang in zip(asked, langs, strict=True)]
        wordings = spent = again = None
        if methods.expand:
            stage = f"{dataset}: expansions of {system.name}"
            expanded, spent = self.generators.expand(methods, asked, stage=stage)
            wordings = self._encoded(expanded, system, dataset)
        if methods.rerank:
            again = partial(self.generators.rank_again, methods, questions=asked, passages=material.passages)
        cell, ranking = run_cell(
            material.task, material.passages, self.placed(system, dataset, wordings), metrics=self.metrics(dataset),
            depth=max(self.suite.depth, methods.rerank_depth if methods.rerank else 0), search=self.suite.asked,
            store=store, again=again,
        )  # fmt: skip
        return cell if spent is None else cell.and_spent(spent), ranking

    def _encoded(self, expanded: Sequence[Sequence[Question]], system: System, dataset: str) -> Wordings:
        flat = list(chain.from_iterable(expanded))
        texts = [question.text for question in flat]
        vectors = encode_cached(
            texts, encoder=self.encoder(system.encoder), kind="queries", folder=self.vectors, progress=self.progress,
            stage=f"{dataset}: questions of {system.name}",
        )  # fmt: skip
        starts = np.cumsum([0, *(len(several) for several in expanded[:-1])])
        return Wordings(texts, [question.lang or "" for question in flat], vectors, starts)

    def _facts(self, system: System, dataset: str) -> dict[str, Any]:
        """All that a cell depends on: change any of it and it is another cell."""
        encoder = self.encoder(system.encoder)
        file = self.suite.query_file(system, dataset)
        usual = asdict(System(""))  # a setting that a later version adds changes no old cell
        settings = {name: value for name, value in asdict(system).items() if value != usual[name] and name != "methods"}
        settings.update(name="", encoder="", queries=file and sha256_of(file), **self.generators.facts(system.methods))
        if self.task(dataset).not_itself:
            settings["not itself"] = True  # cells of the time before it found themselves
        for source in (system.means, system.passage_means):
            if source.endswith((".npz", ".json")):
                settings["vectors of " + source] = sha256_of(Path(source))
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
            **({} if self.suite.ef is None else {"ef": self.suite.ef}),
        }

    def data_digest(self, dataset: str) -> str:
        """A hash of passages, questions and judgements as they were read."""
        task = self.task(dataset)
        texts = [f"{passage.id}\t{passage.lang}\t{passage.title_and_text}" for passage in task.passages]
        texts += [f"{query.id}\t{query.lang}\t{query.text}" for query in task.queries]
        texts += [f"{qid}\t{docid}\t{grade}" for qid, of in task.qrels.items() for docid, grade in of.items()]
        return digest_of(texts)
