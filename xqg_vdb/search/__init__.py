"""Questions in, passages out, and the two neighbouring methods by their names: query expansion and UPR."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xqg_vdb.calibration import LanguageMeans, TextEncoder, calibrate, resolve_languages, unpack_means
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.progress import traced
from xqg_vdb.store.layout import check_langs
from xqg_vdb.texts.languages import normalize
from xqg_vdb.texts.records import expect, listed
from xqg_vdb.types import Card, Question, Vectors, option

if TYPE_CHECKING:
    from xqg_vdb.search.expand import Expander
    from xqg_vdb.search.rerank import Reranker


class QuestionEncoder:
    """Questions into calibrated vectors, for one collection or for any that the encoder made.

    encoder: ready, or its folder or name.
    collection: whose calibration to use: its card's λ and the language means that it measured itself; without one,
    the encoder's own. calibration: λ in place of either, 0 to switch it off.
    Raises MismatchError when the collection was made by another encoder, with both fingerprints.
    """

    def __init__(
        self, encoder: TextEncoder | str | Path, *, collection: Any = None, calibration: float | None = None
    ) -> None:
        self.encoder = encoder = ready_encoder(encoder)
        self.language_means = encoder.language_means
        recommended = encoder.calibration
        if collection is not None:
            card = collection.card
            check_same_encoder(encoder, card, name=collection.name.partition("@")[0])
            self.language_means = collection_means(encoder, card)
            recommended = card.calibration
        self.strength = recommended if calibration is None else calibration
        expect("calibration", self.strength, Real, "a number")

    def encode(self, questions: Sequence[Question | str]) -> tuple[Vectors, list[str]]:
        """The rows (n, dim) float32 for the questions, each calibrated for its language, and these languages.

        A language is detected when it is not given; it is "" where it was not needed. Raises DataError for a blank
        question and for what is no language code.
        """
        questions = as_questions(questions)
        langs = [None if question.lang is None else normalize(question.lang) for question in questions]
        texts = [question.text for question in questions]
        with traced("encode", {"texts": len(texts), "encoder": self.encoder.facts.source}):
            rows = self.encoder.encode_queries(texts, calibrate=False)
        if self.strength != 0.0 and self.language_means.means:
            with traced("calibrate", {"lambda": self.strength}) as noted:
                langs = list(resolve_languages(texts, langs))
                noted["lang"] = named(langs)
                unit, table = self.encoder.facts.normalize, self.language_means
                rows = calibrate(rows, langs=langs, table=table, strength=self.strength, normalize=unit)
        return rows, [lang or "" for lang in langs]


def named(langs: Iterable[str | None]) -> str:
    """Languages as a trace names them: each once, sorted."""
    return ",".join(sorted({lang for lang in langs if lang}))


def check_same_encoder(encoder: TextEncoder, card: Card, *, name: str) -> None:
    """Raise MismatchError unless the collection's vectors and this encoder's are comparable."""
    mine, theirs = encoder.facts, card.encoder
    if mine.fingerprint != theirs.fingerprint:
        raise MismatchError(
            f"Collection {name!r} was made by {theirs.source} ({theirs.precision}, fingerprint {theirs.fingerprint}),"
            f" not by {mine.source} ({mine.precision}, fingerprint {mine.fingerprint}): use that encoder, or load"
            " again."
        )


def collection_means(encoder: TextEncoder, card: Card) -> LanguageMeans:
    """The encoder's language means, with those that the collection measured on its own queries in their place."""
    measured = unpack_means(card.query_means, dim=card.encoder.dim)
    bank = encoder.language_means
    return LanguageMeans({**bank.means, **measured.means}, {**bank.counts, **measured.counts}, bank.source)


def ready_encoder(encoder: TextEncoder | str | Path) -> TextEncoder:
    """The encoder, opened when it is a folder or a name. Raises DataError for what is neither."""
    if isinstance(encoder, str | Path):
        from xqg_vdb.models.encoder import Encoder  # brings onnxruntime

        return Encoder(encoder)
    if not hasattr(encoder, "encode_queries"):
        raise DataError(f"An encoder is needed (such as Encoder('starter') or its name), found {encoder!r:.80}.")
    return encoder


def as_questions(asked: Sequence[Question | str]) -> list[Question]:
    """Questions; plain texts get their place in the list as an id. Raises DataError for a blank one and no text."""
    if isinstance(asked, Question):
        raise DataError(f"Give a list of questions, not one: [{asked!r:.60}].")
    asked = listed(asked, "questions")
    questions = [text if isinstance(text, Question) else Question(str(row), text) for row, text in enumerate(asked)]
    for question in questions:
        if not isinstance(question.text, str):
            raise DataError(f"A question is a text, found {question.text!r:.60}; `run` takes a list of several.")
        if not question.text.strip():
            raise DataError(f"Question {question.id!r} is blank: there is nothing to search for.")
    return questions


def passage_languages(langs: Sequence[str] | None) -> list[str] | None:
    """The codes under which passages in `langs` are stored, None for all.

    Raises DataError for a bare string, an empty list, and what is no language code.
    """
    check_langs(langs)
    return None if langs is None else [normalize(code) for code in langs]


@dataclass(frozen=True)
class Methods:
    """What a search does besides; nothing unless told."""

    expand: str | None = option(
        None,
        "Search also with a generator's (or an endpoint URL's) translation of the question, or with a passage that it "
        "writes: translation or pseudo-document.",
        metavar="METHOD:MODEL",
    )
    expand_lang: str | None = option(None, "Language of the expansion  [default: the question's]", metavar="CODE")
    expand_model: str = option("default", "Model name at an endpoint.", metavar="NAME")
    rerank: str | None = option(
        None,
        "Rank again, by how likely a generator finds the question (upr:MODEL) or by a cross-encoder (cross:MODEL).",
        metavar="METHOD:MODEL",
    )
    rerank_depth: int = option(100, "Passages that are ranked again.", least=1, most=10_000)
    rerank_weight: float | None = option(
        None, "Weight of that against the first score  [default: 0.25 of UPR, 1 of a cross-encoder]", least=0, most=1
    )

    @contextmanager
    def open(self, *, threads: int | None = None) -> Iterator[tuple[Expander | None, Reranker | None]]:
        """What `Retriever` takes. Raises DataError for another method, ModelError for what is no such generator."""
        expander = reranker = None
        if self.rerank is not None:
            from xqg_vdb.search.rerank import Reranker, reranker_spec

            model = reranker_spec(self.rerank)
            reranker = Reranker(model, depth=self.rerank_depth, weight=self.rerank_weight, threads=threads or 0)
        if self.expand is not None:
            from xqg_vdb.search.expand import Expander, expansion_spec

            method, model = expansion_spec(self.expand)
            expander = Expander(
                model, method=method, lang=self.expand_lang, endpoint_model=self.expand_model, threads=threads or 0
            )
        try:
            yield expander, reranker
        finally:
            if expander is not None:
                expander.close()
