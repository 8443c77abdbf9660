"""A system's two sets of vectors: passages as `load` writes them (`vectors_of`), questions as `Retriever` asks them.

With the switches that experiments need: fewer queries, other language means, and the controls that share everything
with xQG but the queries' content.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.calibration import (
    LanguageMeans,
    TextEncoder,
    calibrate,
    language_means,
    pack_means,
    passage_means,
    resolve_languages,
    unpack_means,
)
from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import RetrievalTask, language_code
from xqg_vdb.evaluate.suite import System
from xqg_vdb.files import disk_errors
from xqg_vdb.fusion import Sums, mean_rows, unit_rows
from xqg_vdb.index.build import Window
from xqg_vdb.index.encode import QueryVectors, encode_cached
from xqg_vdb.index.write import vectors_of
from xqg_vdb.progress import Progress, silent
from xqg_vdb.store.bm25 import SAMPLE, WordWriter, settings_of
from xqg_vdb.store.layout import TEXT_DENSE
from xqg_vdb.types import UNKNOWN_LANGUAGE, Bm25Settings, Card, Hybrid, Passage, Recipe, SparseVector, Vectors


@dataclass(frozen=True)
class Material:
    """One task under one encoder: rows of its passages (n, dim) and questions (q, dim), not calibrated."""

    task: RetrievalTask
    passages: tuple[Passage, ...]
    passage_vectors: Vectors
    question_vectors: Vectors


def prepare(task: RetrievalTask, *, encoder: TextEncoder, folder: Path, progress: Progress = silent) -> Material:
    """Encode the task's passages and questions, or take them from `folder`."""
    passages = tuple(task.passages)

    def encoded(texts: Sequence[str], kind: Literal["passages", "queries"], stage: str) -> Vectors:
        """Each distinct text once: pools of translations share their English side."""
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        rows = encode_cached(list(place), encoder=encoder, kind=kind, folder=folder, progress=progress, stage=stage)
        return rows if len(place) == len(texts) else rows[[place[text] for text in texts]]

    rows = encoded([passage.title_and_text for passage in passages], "passages", f"passages of {task.name}")
    asked = encoded([query.text for query in task.queries], "queries", f"questions of {task.name}")
    return Material(task, passages, rows, asked)


_SHUFFLE_SEED = 313


@dataclass(frozen=True)
class Wordings:
    """What is searched for: of all questions one after the other texts and languages (m,), vectors (m, dim).

    Vectors are not calibrated. starts: (q,) where each question's begin; it has one at least.
    """

    texts: Sequence[str]
    langs: Sequence[str]
    vectors: Vectors
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class Placed:
    """Passages (n, dim) and questions (q, dim), float32, ready to write and to ask.

    card: of their collection, before anything is in it. words: of a hybrid system, those of passages and of questions.
    """

    passages: Vectors
    questions: Vectors
    card: Card
    words: tuple[Sequence[SparseVector], Sequence[SparseVector]] | None = None

    def inside(self, rows: Sequence[int], asked: Sequence[int]) -> Placed:
        """These passages and these questions."""
        words = self.words and ([self.words[0][row] for row in rows], [self.words[1][row] for row in asked])
        return replace(self, passages=self.passages[rows], questions=self.questions[asked], words=words)


def place(
    system: System,
    material: Material,
    *,
    encoder: TextEncoder,
    queries: QueryVectors | None,
    asked: LanguageMeans | None = None,
    moved_by: LanguageMeans | None = None,
    bank: Mapping[str, Vectors] = MappingProxyType({}),
    wordings: Wordings | None = None,
) -> Placed:
    """Fuse the passages and calibrate the questions of one system; asked: the means of `means = "DATASET"`.

    moved_by: what `passage_means` names, other than the passages' own. bank: rows of the bank's questions by language,
    for LIR and CSLS. wordings: what is searched for in place of the questions, the mean of each one's vectors.
    Raises DataError when the recipe wants a language that the query file lacks.
    """
    table = means_of(system, encoder=encoder, queries=queries, asked=asked)
    facts = encoder.facts
    langs: tuple[str, ...] = ()
    if queries is not None and system.recipe.alpha > 0.0:
        langs = tuple(sorted(system.recipe.query_langs or queries.langs))
    passage_langs = [passage.lang for passage in material.passages]
    centred = [(material.passage_vectors, passage_langs)] if system.passage_calibration else []
    centres = passage_means(centred)
    if system.passage_means == "own offsets":
        # what a pool's own passages say of SHIFT's vectors: means less that of English, or of the first language
        pivot = centres.means.get("en", centres.means[min(centres.counts)])
        offsets = {lang: mean - pivot for lang, mean in centres.means.items()}
        centres = LanguageMeans(offsets, centres.counts, centres.source)
    card = Card(
        encoder=facts,
        distance="cosine" if facts.normalize else "dot",
        recipe=system.recipe if langs else Recipe(alpha=0.0),
        bm25=settings_of(material.passages[:SAMPLE], Hybrid()) if system.hybrid else None,
        calibration=encoder.calibration if system.calibration is None else system.calibration,
        query_langs=langs,
        query_means=pack_means(LanguageMeans({lang: table.means[lang] for lang in langs if lang in table.means})),
        passage_calibration=system.passage_calibration,
        passage_means=pack_means(moved_by or centres),
    )
    window = rows_of(system, material, queries if langs else None, means=unpack_means(card.query_means, dim=facts.dim))
    fused = vectors_of(window, langs=passage_langs, card=card)[TEXT_DENSE]
    asked_in = question_languages(system, material)
    texts = [query.text for query in material.task.queries]
    said = wordings or Wordings(texts, asked_in, material.question_vectors, np.arange(len(texts)))
    questions = calibrate(
        said.vectors, langs=said.langs, table=table, strength=card.calibration, normalize=facts.normalize
    )
    if len(said.starts) < len(questions):
        questions = mean_rows(questions, said.starts, normalize=facts.normalize)
    if system.lir:
        lang_of = np.array(passage_langs)
        rows = {lang: material.passage_vectors[lang_of == lang] for lang in sorted(set(passage_langs))}
        fused = without_directions(fused, passage_langs, rows, rank=system.lir, normalize=facts.normalize)
        questions = without_directions(questions, asked_in, bank, rank=system.lir, normalize=facts.normalize)
    if system.csls:
        fused, questions = with_hub_columns(fused, questions, asked_in, bank, system.csls)
    return Placed(fused, questions, card, None if card.bm25 is None else _words(card.bm25, material.passages, said))


def _words(
    settings: Bm25Settings, passages: Sequence[Passage], said: Wordings
) -> tuple[list[SparseVector], list[SparseVector]]:
    """The sparse side, as `load` and `Retriever` make it."""
    writer, ends = WordWriter(settings), [*said.starts[1:].tolist(), len(said.texts)]
    joined = ["\n".join(said.texts[a:b]) for a, b in zip(said.starts.tolist(), ends, strict=True)]
    return [writer.document(passage) for passage in passages], [writer.question(text) for text in joined]


def means_of(
    system: System, *, encoder: TextEncoder, queries: QueryVectors | None, asked: LanguageMeans | None
) -> LanguageMeans:
    """The language means of a system. DataError when they shall come from queries that it does not have."""
    bank = encoder.language_means
    if system.means == "bank":
        return bank
    if system.means not in ("refined", "generated"):
        return asked or LanguageMeans()
    if queries is None:
        if system.means == "generated":
            raise DataError(f"system {system.name!r}: means = 'generated' needs queries.")
        return bank
    generated = queries.means()
    return generated if system.means == "generated" else bank.refined(generated, capped=True)


def means_of_questions(vectors: Vectors, langs: Sequence[str | None]) -> LanguageMeans:
    """The language means of some dataset's questions, (q, dim)."""
    known = sorted({lang for lang in langs if lang})
    rows = {lang: vectors[[i for i, given in enumerate(langs) if given == lang]] for lang in known}
    return language_means(rows, source="questions")


def question_languages(system: System, material: Material) -> list[str]:
    """The language that each question is calibrated for."""
    asked = material.task.queries
    if system.languages == "unknown":
        return [UNKNOWN_LANGUAGE] * len(asked)
    given = [query.lang if system.languages == "given" else None for query in asked]
    return resolve_languages([query.text for query in asked], given)


def rows_of(system: System, material: Material, queries: QueryVectors | None, *, means: LanguageMeans) -> Window:
    """What the system's collection is made from: passage rows and query sums, its own or a control's.

    means: of the generated queries, for the control that has nothing else.
    """
    ids, n = [passage.id for passage in material.passages], len(material.passages)
    sums: Sums = {}
    if queries is not None:
        langs = system.recipe.query_langs
        if missing := sorted(set(langs or ()) - set(queries.langs)):
            raise DataError(f"system {system.name!r}: no queries in {', '.join(missing)}; there are {queries.langs}.")
        sums = queries.sums(passages=n, n=system.n, langs=langs)
    window = Window(ids, np.zeros(n, np.uint64), material.passage_vectors, sums)
    if system.content == "own" or not sums:
        return window
    if system.content == "shuffled":
        return shuffled(window)
    # the control in which every query is its language's mean: no content
    sums = {lang: (n.astype(np.float32)[:, None] * means.means[lang], n) for lang, (_, n) in sums.items()}
    return replace(window, sums=sums)


def shuffled(window: Window) -> Window:
    """The control in which every passage that has queries gets another's: a cycle through a random order."""
    has_queries = np.flatnonzero(np.add.reduce([counts for _, counts in window.sums.values()]))
    moved = np.arange(len(window))
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(has_queries)
    moved[order] = np.roll(order, 1)
    return replace(window, sums={lang: (total[moved], counts[moved]) for lang, (total, counts) in window.sums.items()})


# What others subtract: SHIFT's language vectors, LIR's directions, CSLS's hubs. Each here as its authors define it.

NEAREST = 10
"""k of CSLS."""


def offsets(pairs: Mapping[str, tuple[Vectors, Vectors]], *, dim: int) -> LanguageMeans:
    """SHIFT's vectors (Jang et al., arXiv 2606.18801): the mean of E(x) - E(y) over sentences x (n, dim) of a language.

    y: their translations into the pivot, which has the vector 0, as have languages without pairs. A passage becomes
    E(p) - λ·v of its language.
    """
    means = {
        lang: (rows.mean(axis=0, dtype=np.float64) - pivot.mean(axis=0, dtype=np.float64)).astype(np.float32)
        for lang, (rows, pivot) in pairs.items()
    }
    zero = np.zeros(dim, np.float32)
    counts = {lang: len(rows) for lang, (rows, _) in pairs.items()}
    return LanguageMeans({UNKNOWN_LANGUAGE: zero, "en": zero, **means}, counts, "parallel sentences")


def read_vectors(path: Path, *, dim: int) -> LanguageMeans:
    """Published vectors, one a language: arrays of an `.npz` by language, or the object of a `.json`.

    Languages are any codes or English names; those that are not there are not moved. Raises DataError.
    """
    with disk_errors(path):
        raw = path.read_bytes()
    try:
        if path.suffix == ".json":
            vectors = {str(name): np.asarray(row, np.float32) for name, row in orjson.loads(raw).items()}
        else:
            with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
                vectors = {name: np.asarray(arrays[name], np.float32) for name in arrays.files}
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no vectors ({error}); give an .npz or a .json with one a language.") from error
    means = {UNKNOWN_LANGUAGE: np.zeros(dim, np.float32)}
    for name, row in vectors.items():
        lang = language_code(name)
        if lang is None or row.shape != (dim,) or not np.isfinite(row).all():
            raise DataError(
                f"{path}: {name!r} with shape {row.shape} is no language with one vector of {dim} finite numbers; "
                "is it of another encoder?"
            )
        means[lang] = row
    return LanguageMeans(means, dict.fromkeys(means, 1), path.name)


def without_directions(
    rows: Vectors, langs: Sequence[str], examples: Mapping[str, Vectors], *, rank: int, normalize: bool
) -> Vectors:
    """LIR (Yang et al. 2021, arXiv 2109.04727): rows less their part along their language's first singular vectors.

    examples: rows of each language, from which these come; rows of other languages stay as they are.
    """
    moved, names = np.array(rows), np.array(langs)
    for lang in sorted(set(langs) & set(examples)):
        axes = np.linalg.svd(examples[lang], full_matrices=False)[2][: int(rank)]
        moved[names == lang] -= (moved[names == lang] @ axes.T) @ axes
    return unit_rows(moved) if normalize else moved


def with_hub_columns(
    passages: Vectors, questions: Vectors, langs: Sequence[str], bank: Mapping[str, Vectors], weight: float
) -> tuple[Vectors, Vectors]:
    """CSLS (Lample et al. 2018) as a dot product: q·p - weight·r, r the passage's mean similarity to its nearest.

    These are the ten nearest of the bank's questions of q's language; a column a language holds them.
    """
    known = sorted(set(langs) & set(bank))
    columns = [np.sort(passages @ bank[lang].T, axis=1)[:, -NEAREST:].mean(axis=1, dtype=np.float32) for lang in known]
    chosen = np.array([[np.float32(lang == column) for column in known] for lang in langs], np.float32)
    hubs = np.stack(columns, axis=1) if columns else np.zeros((len(passages), 0), np.float32)
    return np.hstack([passages, np.float32(-weight) * hubs]), np.hstack([questions, chosen.reshape(len(langs), -1)])
