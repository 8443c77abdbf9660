"""XQuAD and MLQA in the files of LAReQA, SQuAD-style JSON with sentence breaks: two tasks (Artetxe, Roy et al. 2020).

`read_lareqa`: find the sentence that answers, in one pool of all languages (XQuAD-R is in XTREME-R), read as
google-research/xtreme `third_party/utils_lareqa.py` does: candidate ids `{lang}_{paragraph}_{sentence}`, question ids
`{squad id}_{lang}`; candidate text is the sentence followed by its whole paragraph with nothing between, newlines
removed; relevant is every candidate, in any language, whose sentence equals the sentence in which that question's
answer begins, in the paragraph of that language. XTREME-R's mAP@20 averages over questions, not languages.

`read_xquad`: a question in language X, the 240 English paragraphs, which are parallel in 11 languages. Not a published
task. `read_xquad_pool`: paragraphs of several languages; each language by itself is MTEB's XQuADRetrieval.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.afriqa import read_afriqa_passages
from xqg_vdb.evaluate.datasets.task import POOL, RetrievalTask, language_files
from xqg_vdb.texts.records import read_whole
from xqg_vdb.types import Passage, Question

_SOURCE = "https://github.com/google-research-datasets/lareqa"
_MAX_DOCUMENT = 2 << 30  # bytes of a file, which is read at once
_XQUAD_FILES = ("xquad-r/{lang}.json", "xquad/xquad.{lang}.json")


@dataclass(frozen=True, slots=True)
class _SquadParagraph:
    """One paragraph, numbered from 1 within its file as LAReQA does.

    sentences: cut from the context by its breaks, as LAReQA does; the file's own differ in one Turkish case.
    questions: id (shared by its translations), text, answers, and the sentence in which the first one begins: None
    where it begins between two.
    """

    number: int
    title: str
    context: str
    sentences: tuple[str, ...]
    questions: tuple[tuple[str, str, tuple[str, ...], str | None], ...]


def squad_paragraphs(path: Path) -> list[tuple[Any, Any]]:
    """The titles and paragraphs of a file in SQuAD's format, as they stand there. DataError when it is none."""
    text = read_whole(path, most=_MAX_DOCUMENT)
    try:
        return [(article.get("title"), p) for article in orjson.loads(text)["data"] for p in article["paragraphs"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{path} is not SQuAD JSON ({type(error).__name__}: {error}); name JSON lines .jsonl."
        raise DataError(said) from error


def read_squad(path: Path) -> Iterator[_SquadParagraph]:
    """Read the paragraphs of one file. Raises DataError when it is missing or not SQuAD JSON."""
    try:
        for number, (title, paragraph) in enumerate(squad_paragraphs(path), start=1):
            yield _paragraph(number, str(title or ""), paragraph)
    except IndexError:
        typed = "jq -c '.data[].paragraphs[].qas |= map(select(.answers != []))' FILE > NEW"
        raise DataError(f"{path} has questions without an answer, as SQuAD 2.0 has; leave them out: {typed}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not SQuAD v1.1 JSON ({type(error).__name__}: {error}); fetch it again.") from error


def _paragraph(number: int, title: str, record: dict[str, Any]) -> _SquadParagraph:
    context, breaks = record["context"], [(int(start), int(end)) for start, end in record.get("sentence_breaks", ())]
    questions = []
    for qa in record["qas"]:
        answers, begin = tuple(answer["text"] for answer in qa["answers"]), int(qa["answers"][0]["answer_start"])
        sentence = next((context[start:end] for start, end in breaks if start <= begin < end), None)
        questions.append((str(qa["id"]), qa["question"], answers, sentence))
    return _SquadParagraph(number, title, context, tuple(context[start:end] for start, end in breaks), tuple(questions))


def read_lareqa(data_dir: Path, name: str, *, context: bool = True) -> RetrievalTask:
    """Read `xquad-r` (13,090 questions, 13,014 candidates, 11 answers each) or `mlqa-r` (2 to 4 answers a question).

    The languages are those of `{name}/{lang}.json`, or MLQA's `mlqa-dev-r/{lang}.json`. context: candidate text is
    sentence and paragraph, as published; False gives the bare sentence. Raises DataError when there is no file.
    """
    patterns = [f"{name}/{{lang}}.json", f"{name.removesuffix('-r')}-dev-r/{{lang}}.json"]
    passages: list[Passage] = []
    queries: list[Question] = []
    relevant: dict[str, list[str]] = {}  # SQuAD id -> candidates that answer it, in all languages
    topics: dict[str, str] = {}  # SQuAD id -> its paragraph, the same in all languages
    skipped = 0
    for lang, path in language_files(data_dir, *patterns, source=_SOURCE):
        for paragraph in read_squad(path):
            known = (topics[question[0]] for question in paragraph.questions if question[0] in topics)
            topic = next(known, f"{lang}_{paragraph.number}")
            topics.update({question[0]: topic for question in paragraph.questions})
            answered = [question for question in paragraph.questions if question[3] is not None]
            skipped += len(paragraph.questions) - len(answered)
            if not answered:
                continue  # the official loader meets a paragraph through its questions only
            sentences = {f"{lang}_{paragraph.number}_{i}": text for i, text in enumerate(paragraph.sentences)}
            for docid, sentence in sentences.items():
                whole = (sentence + paragraph.context).replace("\n", "")
                passages.append(Passage(docid, whole if context else sentence.replace("\n", " ").strip(), lang=lang))
            for squad_id, text, _, answer in answered:
                queries.append(Question(f"{squad_id}_{lang}", text, lang))
                answering = [docid for docid, sentence in sentences.items() if sentence == answer]
                relevant.setdefault(squad_id, []).extend(answering)
    return RetrievalTask(
        name=name if context else f"{name}-sentences",
        passages=passages,
        queries=tuple(queries),
        qrels={query.id: dict.fromkeys(relevant[query.id.rsplit("_", 1)[0]], 1) for query in queries},
        metrics=("mAP@20", "mAP", "R@10", "own@20", "LPR@20", "Lang-nDCG@20", "RankDistance@100"),
        average="queries",
        notes={"questions skipped: answer in no sentence": skipped},
        topics={query.id: topics[query.id.rsplit("_", 1)[0]] for query in queries},
    )


def read_xquad(data_dir: Path, *, distractors: bool = False) -> RetrievalTask:
    """Read 1,190 questions per language, 240 English paragraphs: `xquad-r/{lang}.json` or `xquad/xquad.{lang}.json`.

    distractors: add the passages of AfriQA, which answer none of the questions (3,120 with train and dev). English,
    which must be there, is the ceiling; answers are the English ones, as the passages. Raises DataError.
    """
    english = language_files(data_dir, *_XQUAD_FILES, langs=["en"], source=_SOURCE)[0][1]
    files = language_files(data_dir, *_XQUAD_FILES, source=_SOURCE)
    passages: list[Passage] = []
    place: dict[str, tuple[str, tuple[str, ...]]] = {}
    for paragraph in read_squad(english):
        docid = f"xquad-{paragraph.number}"
        passages.append(Passage(docid, paragraph.context, paragraph.title.replace("_", " "), "en"))
        place.update({squad_id: (docid, answers) for squad_id, _, answers, _ in paragraph.questions})
    given = [(lang, *found[:2]) for lang, path in files for part in read_squad(path) for found in part.questions]
    asked = {Question(f"{name}_{lang}", text, lang): place[name] for lang, name, text in given if name in place}
    strange = sum(name not in place for _, name, _ in given)
    return RetrievalTask(
        name="xquad+afriqa" if distractors else "xquad",
        passages=passages + (read_afriqa_passages(data_dir) if distractors else []),
        queries=tuple(asked),
        qrels={query.id: {docid: 1} for query, (docid, _) in asked.items()},
        metrics=("R@1", "R@10", "MRR@10"),
        answers={query.id: answers for query, (_, answers) in asked.items()},
        notes={"questions skipped: not in the English file": strange} if strange else {},
    )


def read_xquad_pool(data_dir: Path, *, split: str = "en-de-es", monolingual: bool = False) -> RetrievalTask:
    """Read the 240 paragraphs of several languages as one pool, and the 1,190 questions of each.

    split: the languages, "" for all that are there. Every copy of a question's paragraph is relevant; what a translator
    wrote of one paragraph belongs together. monolingual: each language is a pool of its own (MTEB's XQuADRetrieval).
    """
    passages: list[Passage] = []
    asked: dict[Question, int] = {}
    langs = list(dict.fromkeys(filter(None, re.split(r"-(?![A-Z])", split))))  # hi-Latn is one
    files = language_files(data_dir, *_XQUAD_FILES, langs=langs or None, source=_SOURCE)
    for lang, path in files:
        meta = {POOL: lang} if monolingual else {}
        for paragraph in read_squad(path):
            title = paragraph.title.replace("_", " ")
            passages.append(Passage(f"{lang}-{paragraph.number}", paragraph.context, title, lang, meta))
            for squad_id, text, _, _ in paragraph.questions:
                asked[Question(f"{squad_id}_{lang}", text, lang)] = paragraph.number
    kind = "monolingual" if monolingual else "pool"
    return RetrievalTask(
        name=f"xquad-{kind}:{split}" if split else f"xquad-{kind}",
        passages=passages,
        queries=tuple(asked),
        qrels={
            query.id: {f"{lang}-{number}": 1 for lang in ([str(query.lang)] if monolingual else dict(files))}
            for query, number in asked.items()
        },
        metrics=("nDCG@10", "R@1", "R@10") if monolingual else ("R@10",),
        topics={query.id: f"paragraph {number}" for query, number in asked.items()},
        pooled=monolingual,
    )
