"""XQuAD paragraphs as a cross-lingual passage task: a question in language X, the 240 English paragraphs.

Made from the XQuAD-R files, whose paragraphs and question ids are parallel in 11 languages (Artetxe et al. 2020). Not a
published task: MTEB's XQuADRetrieval is monolingual, XTREME-R's XQuAD-R retrieves sentences of all languages at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xqg_vdb.evaluate.datasets import afriqa
from xqg_vdb.evaluate.datasets.lareqa import SOURCE, XQUAD_LANGUAGES
from xqg_vdb.evaluate.datasets.squad import read_squad
from xqg_vdb.evaluate.datasets.task import RetrievalTask, by_language, find_file
from xqg_vdb.types import Passage, Question


def load(data_dir: Path, *, distractors: bool = False, langs: Sequence[str] | None = None) -> RetrievalTask:
    """Read 1,190 questions per language, 240 English paragraphs: `xquad-r/{lang}.json` or `xquad/xquad.{lang}.json`.

    distractors: add the English passages of AfriQA, which answer none of the questions (3,120 with train and dev).
    langs: question languages, all 11 by default; English is the ceiling. Answers are the English ones, as the passages.
    Raises DataError when a file is missing.
    """
    passages: list[Passage] = []
    place: dict[str, str] = {}
    answers: dict[str, tuple[str, ...]] = {}
    for paragraph in read_squad(_file(data_dir, "en")):
        docid = f"xquad-{paragraph.number}"
        passages.append(Passage(docid, paragraph.context, paragraph.title.replace("_", " "), "en"))
        for question in paragraph.questions:
            place[question.id], answers[question.id] = docid, question.answers
    asked = [
        (question.id, Question(f"{question.id}_{lang}", question.text, lang))
        for lang in langs or XQUAD_LANGUAGES
        for paragraph in read_squad(_file(data_dir, lang))
        for question in paragraph.questions
    ]
    queries = tuple(query for _, query in asked)
    return RetrievalTask(
        name="xquad+afriqa" if distractors else "xquad",
        passages=passages + (afriqa.passages(data_dir) if distractors else []),
        queries=queries,
        qrels={query.id: {place[squad_id]: 1} for squad_id, query in asked},
        metrics=("R@1", "R@10", "MRR@10"),
        groups=by_language(queries),
        answers={query.id: answers[squad_id] for squad_id, query in asked},
    )


def _file(data_dir: Path, lang: str) -> Path:
    return find_file(data_dir, f"xquad-r/{lang}.json", f"xquad/xquad.{lang}.json", source=SOURCE)
