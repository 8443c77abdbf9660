"""XQuAD paragraphs as a cross-lingual passage task: a question in language X, the 240 English paragraphs.

Made from the XQuAD-R files, whose paragraphs and question ids are parallel in 11 languages (Artetxe et al. 2020). Not a
published task: MTEB's XQuADRetrieval is monolingual, XTREME-R's XQuAD-R retrieves sentences of all languages at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xqg_vdb.evaluate.datasets.afriqa import read_afriqa_passages
from xqg_vdb.evaluate.datasets.lareqa import SOURCE
from xqg_vdb.evaluate.datasets.squad import read_squad
from xqg_vdb.evaluate.datasets.task import RetrievalTask, by_language, language_files
from xqg_vdb.types import Passage, Question

_NAMES = ("xquad-r/{lang}.json", "xquad/xquad.{lang}.json")


def read_xquad(data_dir: Path, *, distractors: bool = False, langs: Sequence[str] | None = None) -> RetrievalTask:
    """Read 1,190 questions per language, 240 English paragraphs: `xquad-r/{lang}.json` or `xquad/xquad.{lang}.json`.

    distractors: add the passages of AfriQA, which answer none of the questions (3,120 with train and dev).
    langs: question languages, all that are there by default; English, which must be there, is the ceiling. Answers are
    the English ones, as the passages. Raises DataError when a file is missing.
    """
    english = language_files(data_dir, *_NAMES, langs=["en"], source=SOURCE)[0][1]
    files = language_files(data_dir, *_NAMES, langs=langs, source=SOURCE)
    passages: list[Passage] = []
    place: dict[str, str] = {}
    answers: dict[str, tuple[str, ...]] = {}
    for paragraph in read_squad(english):
        docid = f"xquad-{paragraph.number}"
        passages.append(Passage(docid, paragraph.context, paragraph.title.replace("_", " "), "en"))
        for question in paragraph.questions:
            place[question.id], answers[question.id] = docid, question.answers
    asked = [
        (question.id, Question(f"{question.id}_{lang}", question.text, lang))
        for lang, path in files
        for paragraph in read_squad(path)
        for question in paragraph.questions
    ]
    queries = tuple(query for _, query in asked)
    return RetrievalTask(
        name="xquad+afriqa" if distractors else "xquad",
        passages=passages + (read_afriqa_passages(data_dir) if distractors else []),
        queries=queries,
        qrels={query.id: {place[squad_id]: 1} for squad_id, query in asked},
        metrics=("R@1", "R@10", "MRR@10"),
        groups=by_language(queries),
        answers={query.id: answers[squad_id] for squad_id, query in asked},
    )
