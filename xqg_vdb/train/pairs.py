"""Question-passage pairs, the training data of both trainers, and what of them the evaluation must not have seen."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets import RetrievalTask, data_folder, is_dataset, load_task
from xqg_vdb.evaluate.datasets.afriqa import read_afriqa
from xqg_vdb.evaluate.datasets.xquad import squad_paragraphs
from xqg_vdb.texts import languages
from xqg_vdb.texts.corpus import suffix_of
from xqg_vdb.texts.languages import normalize
from xqg_vdb.texts.records import (
    BadRecord,
    Rejects,
    Source,
    check_record,
    hash64,
    language_of,
    line_of,
    made,
    parsed,
    read_objects,
    read_sources,
    record_id,
    text_of,
)
from xqg_vdb.types import UNKNOWN_LANGUAGE, Passage, option


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """One question and a passage that answers it.

    lang: the question's language, normalised. negatives: passages that do not answer it. translation: the question in
    English, "" when nobody gave one. copies: keys of the passage in other languages, which answer it too.
    """

    id: str
    query: str
    lang: str
    positive: Passage
    negatives: tuple[Passage, ...] = ()
    translation: str = ""
    copies: frozenset[str] = frozenset()


def content_key(passage: Passage) -> str:
    """A digest of title and text; ids are ignored, because they differ from file to file."""
    text = " ".join(passage.title.split()) + "\n" + " ".join(passage.text.split())
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def pool_of(pairs: Iterable[TrainingPair]) -> dict[str, Passage]:
    """All positives and negatives by their `content_key`."""
    return {content_key(passage): passage for pair in pairs for passage in (pair.positive, *pair.negatives)}


def leakage(train: Sequence[TrainingPair], dev: Sequence[TrainingPair]) -> str:
    """What both have in common, in a line: passages by content, questions letter for letter."""
    held_out = {content_key(pair.positive) for pair in dev}
    seen, questions = {content_key(pair.positive) for pair in train}, {pair.query for pair in train}
    pairs = sum(content_key(pair.positive) in held_out for pair in train)
    return (
        f"{len(held_out & seen)} of {len(held_out)} dev passages are positives of {pairs} training pairs, "
        f"{sum(pair.query in questions for pair in dev)} dev questions are training questions"
    )


def without_leaks(train: Sequence[TrainingPair], dev: Sequence[TrainingPair]) -> list[TrainingPair]:
    """Leave out the training pairs whose positive is an evaluation passage or whose question is one of dev's."""
    held_out = {content_key(pair.positive) for pair in dev}
    questions = {pair.query for pair in dev}
    return [p for p in train if content_key(p.positive) not in held_out and p.query not in questions]


def translated(pairs: Iterable[TrainingPair], *, also: bool = False) -> list[TrainingPair]:
    """Each pair with its English translation instead of the question, where there is one (zero-shot).

    also: besides the pair, which then need have none.
    """
    english = []
    for pair in pairs:
        english += [pair] if also else []
        if pair.translation and not (also and pair.lang == "en"):
            name = f"{pair.id}-en" if also else pair.id
            english.append(TrainingPair(name, pair.translation, "en", pair.positive, pair.negatives))
    return english


def hybrid(pairs: Iterable[TrainingPair]) -> list[TrainingPair]:
    """Each pair, and where others have its id in other languages, its question with the passage of one of them as well.

    So batches hold questions with passages in their own language and in others (XX and XY), for pools of several
    languages; the other languages take turns. Pairs without such fellows stay as they are.
    """
    fellows: dict[str, list[TrainingPair]] = {}
    for pair in pairs:
        fellows.setdefault(pair.id, []).append(pair)
    mixed = []
    for turn, several in enumerate(fellows.values()):
        copies = frozenset(content_key(pair.positive) for pair in several)
        for place, pair in enumerate(several):
            others = several[place + 1 :] + several[:place]
            mixed.append(replace(pair, copies=copies))
            if others:
                other = others[turn % len(others)]
                mixed.append(replace(pair, id=f"{pair.id}-{other.lang}", positive=other.positive, copies=copies))
    return mixed


def describe_pairs(pairs: Sequence[TrainingPair]) -> dict[str, Any]:
    """Count pairs, passages and languages, and digest all content in order, for model cards and resumed runs."""
    digest = hashlib.sha256()
    for pair in pairs:
        for text in (pair.query, pair.lang, content_key(pair.positive), *map(content_key, pair.negatives)):
            digest.update(text.encode() + b"\0")
    return {
        "pairs": len(pairs),
        "passages": len({content_key(pair.positive) for pair in pairs}),
        "languages": dict(sorted(Counter(pair.lang for pair in pairs).items())),
        "sha256": digest.hexdigest()[:16],
    }


# Where pairs come from: AfriQA's gold passages by name, or a file: plain JSON lines, Tevatron's, or SQuAD's format.

_PARENT = "_parentSection"


def read_pairs(
    source: str, *, split: Literal["train", "dev"], data_dir: Path | None = None, rejects: Rejects | None = None,
    lang: str | None = None,
) -> list[TrainingPair]:  # fmt: skip
    """Read `afriqa` (of `data_dir`, this split), a benchmark of translations by name, or a file by its suffix.

    Files: `.jsonl` (also `.gz`), SQuAD's `.json`, `.tsv` with text, translation and perhaps language.

    lang: of questions that name none, as SQuAD's do; None: detected. Repeated question-passage pairs are counted and
    left out. Raises DataError for what is missing or unknown, for more bad records than `rejects` allows, and when
    nothing is left.
    """
    rejects = Rejects() if rejects is None else rejects
    if source == "afriqa":
        return afriqa_pairs(data_folder(data_dir), split=split)
    path = Path(source)
    kind = suffix_of(path)
    if is_dataset(source):
        return _translations(load_task(source, data_dir))
    if kind == ".tsv":
        found = parsed(read_sources(path, rejects), _row_pair, rejects)
    elif kind in (".jsonl", ".ndjson"):
        rows = ((at, {"id": f"{path.name}:{at.line}", **record}) for at, record in read_objects(path, rejects))
        found = made(rows, _pair_of, rejects)
    elif kind == ".json":
        found = made(_squad_questions(path, rejects), _squad_pair, rejects)
    else:
        raise DataError(
            f"There are no pairs {source!r}: give afriqa, translations by name (tatoeba-all), or a file that ends in "
            ".jsonl, .json or .tsv (also .gz)."
        )
    pairs = _whole(found, rejects, lang and normalize(lang))
    if not pairs:
        raise DataError(
            f'{path} holds no pair that can be used; expected lines such as {{"query", "lang", "positive"}}.'
        )
    return pairs


def afriqa_pairs(data_dir: Path, *, split: Literal["train", "dev"]) -> list[TrainingPair]:
    """AfriQA's questions of one split with their gold passages and English translations. Raises like `read_afriqa`."""
    task = read_afriqa(data_dir, split=split, pool_splits=(split,))
    english = read_afriqa(data_dir, split=split, translated=True, pool_splits=(split,))
    translations = {query.id: query.text for query in english.queries}
    passages = {passage.id: passage for passage in task.passages}
    return [
        TrainingPair(
            query.id, query.text, query.lang or UNKNOWN_LANGUAGE, passages[next(iter(task.qrels[query.id]))],
            translation=translations[query.id],
        )
        for query in task.queries
    ]  # fmt: skip


def _translations(task: RetrievalTask) -> list[TrainingPair]:
    """A benchmark's sentences with their translations, which are the passages too. DataError for other benchmarks."""
    if not task.pooled or not task.qrels:
        raise DataError(f"{task.name} is no benchmark of translations: give afriqa, tatoeba-all or ntrex as --pairs.")
    passages = {passage.id: passage for passage in task.passages}
    return [
        TrainingPair(query.id, query.text, query.lang or UNKNOWN_LANGUAGE, passage, translation=passage.text)
        for query in task.queries
        for passage in [passages[min(task.qrels[query.id])]]
    ]


def _row_pair(raw: bytes) -> TrainingPair:
    """A text, its translation and perhaps its language, between tabs. Raises BadRecord."""
    cells = line_of(raw).split("\t")
    if not 2 <= len(cells) <= 3:
        raise BadRecord(f"{len(cells)} columns; expected text, translation and perhaps a language code, between tabs")
    record = dict(zip(("query", "translation", "lang"), map(str.strip, cells), strict=False))
    check_record(record)
    translation = text_of(record, "translation")
    passage = Passage("", translation)
    passage = replace(passage, id=content_key(passage))
    name, lang = f"{hash64(raw):016x}", language_of(record.get("lang") or None)
    return TrainingPair(name, text_of(record, "query"), lang, passage, translation=translation)


def _pair_of(record: Mapping[str, Any]) -> TrainingPair:
    if "positive_passages" in record:
        positives = _passages(record, "positive_passages")
        if not positives:
            raise BadRecord("positive_passages is empty, so there is nothing to learn from this question")
        positive, negatives = positives[0], _passages(record, "negative_passages")
    elif "positive" in record:
        positive, negatives = _passage(record["positive"], "positive"), _passages(record, "negatives")
    else:
        raise BadRecord('no positive (expected {"query": "…", "lang": "sw", "positive": "…"})')
    key = content_key(positive)
    return TrainingPair(
        id=str(record.get("query_id") or record["id"]),
        query=text_of(record, "query"),
        lang=language_of(record.get("lang")),
        positive=positive,
        negatives=tuple(passage for passage in negatives if content_key(passage) != key),
        translation=text_of(record, "translation") if record.get("translation") is not None else "",
    )


def _passages(record: Mapping[str, Any], key: str) -> list[Passage]:
    values = record.get(key) or []
    if not isinstance(values, list):
        raise BadRecord(f"{key} must be a list")
    return [_passage(value, key) for value in values]


def _passage(value: Any, key: str) -> Passage:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise BadRecord(f'{key} must be a text or {{"title", "text"}}')
    title = value.get("title")
    if not isinstance(title, str | None):
        raise BadRecord(f"{key}: title must be text")
    text, lang = text_of(value, "text"), language_of(value.get("lang"))
    named = any(name in value for name in ("id", "_id", "docid"))
    passage = Passage("", text, title or "", lang)
    return replace(passage, id=record_id(value) if named else content_key(passage))


def _squad_questions(path: Path, rejects: Rejects) -> Iterator[tuple[Source, tuple[Any, Any, Any]]]:
    for number, (title, paragraph) in enumerate(squad_paragraphs(path), start=1):  # the line is the paragraph here
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        for question in questions if isinstance(questions, list) else [None]:
            rejects.read += 1
            yield Source(str(path), number, None, orjson.dumps(question)[:800]), (title, paragraph, question)


def _squad_pair(parts: tuple[Any, Any, Any]) -> TrainingPair:
    title, paragraph, question = parts
    if not isinstance(paragraph, dict) or not isinstance(question, dict) or not isinstance(title, str | None):
        raise BadRecord("a paragraph with context and qas was expected")
    text = text_of(paragraph, "context")
    if title and _PARENT in title:
        title = title[: title.index(_PARENT)].removeprefix("title:")  # XOR-TyDi's gold paragraphs
    passage = Passage("", text, (title or "").replace("_", " ").strip())
    passage = replace(passage, id=content_key(passage))
    lang = language_of(question.get("lang") or paragraph.get("lang"))
    return TrainingPair(record_id(question), text_of(question, "question"), lang, passage)


def _whole(found: Iterable[tuple[Source, TrainingPair]], rejects: Rejects, known: str | None) -> list[TrainingPair]:
    """Each pair once, its language detected where it is missing; where it cannot be told, the pair is refused."""
    kept: dict[tuple[str, str], tuple[Source, TrainingPair]] = {}
    for source, pair in found:
        if kept.setdefault((pair.query, content_key(pair.positive)), (source, pair))[1] is not pair:
            rejects.duplicates += 1
    unknown = [key for key, (_, pair) in kept.items() if pair.lang == UNKNOWN_LANGUAGE]
    found_langs = [known] * len(unknown) if known else languages.detect([query for query, _ in unknown])
    detected = dict(zip(unknown, found_langs, strict=True))
    pairs = []
    for key, (source, pair) in kept.items():
        lang = detected.get(key, pair.lang)
        if lang == UNKNOWN_LANGUAGE:
            rejects.reject(source, "the question's language cannot be told; give lang, or --pairs-lang for all")
        else:
            rejects.accepted += 1
            pairs.append(replace(pair, lang=lang))
    return pairs


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Which pairs are trained on, and which are evaluated on. Raises ValueError without any to train on."""

    pairs: tuple[str, ...] = option((), "afriqa, tatoeba-all, a .jsonl, .tsv or SQuAD file.", metavar="SOURCE")
    dev: tuple[str, ...] = option((), "Pairs to evaluate on.", metavar="SOURCE")
    data_dir: Path | None = option(None, "Folder of afriqa and the like  [default: XQG_DATA_DIR]")
    pairs_lang: str | None = option(None, "Language of questions that name none  [default: detected]")
    question_langs: tuple[str, ...] = option((), "Question language; repeat it  [default: all]")
    english: Literal["no", "also", "only"] = option("no", "The questions' human English translations.")
    hybrid: bool = option(
        False, "Questions that several --pairs have by id are also trained with the passage in another language."
    )
    drop_leaks: bool = option(False, "Leave out pairs whose passage or question is in --dev.")
    max_rejects: int = option(0, "Bad records to skip in each source  [default: 0]", least=0)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("Missing option '--pairs'.")

    def read(self, say: Callable[[str], None]) -> tuple[list[TrainingPair], list[TrainingPair]]:
        """Training and dev pairs, and in a line what they share. Dev keeps its own questions, untranslated.

        Raises DataError like `read_pairs`, and when nothing is left to train on.
        """
        langs = {normalize(lang) for lang in self.question_langs}

        def chosen(sources: tuple[str, ...], split: Literal["train", "dev"]) -> list[TrainingPair]:
            read = (
                read_pairs(
                    source, split=split, data_dir=self.data_dir, rejects=Rejects(self.max_rejects), lang=self.pairs_lang
                )
                for source in sources
            )
            return [pair for pair in chain.from_iterable(read) if not langs or pair.lang in langs]

        train, dev = chosen(self.pairs, "train"), chosen(self.dev, "dev")
        if dev:
            say(leakage(train, dev))
        if self.drop_leaks:
            kept = without_leaks(train, dev)
            say(f"{len(train) - len(kept)} training pairs left out, because dev has their passage or question")
            train = kept
        if self.english != "no":
            train = translated(train, also=self.english == "also")
        if self.hybrid:
            before, train = len(train), hybrid(train)
            say(f"{len(train) - before} questions also with their passage in another language")
        if not train:
            raise DataError("No training pair is left: check --pairs, --question-langs and --english.")
        return train, dev
