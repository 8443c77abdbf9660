"""LAReQA: find the sentence that answers, in one pool of all languages (Roy et al. 2020; XQuAD-R is in XTREME-R).

Read as google-research/xtreme `third_party/utils_lareqa.py` does: candidate ids `{lang}_{paragraph}_{sentence}`,
question ids `{squad id}_{lang}`; candidate text is the sentence followed by its whole paragraph with nothing between,
newlines removed; relevant is every candidate, in any language, whose sentence equals the sentence in which that
question's answer begins, in the paragraph of that language. XTREME-R's mAP@20 averages over questions, not languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xqg_vdb.evaluate.datasets.squad import SquadParagraph, read_squad
from xqg_vdb.evaluate.datasets.task import RetrievalTask, by_language, language_files
from xqg_vdb.types import Passage, Question

SOURCE = "https://github.com/google-research-datasets/lareqa"


def read_lareqa(
    data_dir: Path, name: str, *, context: bool = True, langs: Sequence[str] | None = None
) -> RetrievalTask:
    """Read `xquad-r` (13,090 questions, 13,014 candidates, 11 answers each) or `mlqa-r` (2 to 4 answers a question).

    The languages are those of `{name}/{lang}.json`, or MLQA's `mlqa-dev-r/{lang}.json`; langs: these only (both sides).
    context: candidate text is sentence and paragraph, as published; False gives the bare sentence.
    Raises DataError when there is no file, or none for one of `langs`.
    """
    patterns = [f"{name}/{{lang}}.json", f"{name.removesuffix('-r')}-dev-r/{{lang}}.json"]
    passages: list[Passage] = []
    queries: list[Question] = []
    relevant: dict[str, list[str]] = {}  # SQuAD id -> candidates that answer it, in all languages
    topics: dict[str, str] = {}  # SQuAD id -> its paragraph, the same in all languages
    skipped = 0
    for lang, path in language_files(data_dir, *patterns, langs=langs, source=SOURCE):
        for paragraph in read_squad(path):
            sentences = paragraph.sentences
            known = (topics[question.id] for question in paragraph.questions if question.id in topics)
            topic = next(known, f"{lang}_{paragraph.number}")
            topics.update({question.id: topic for question in paragraph.questions})
            ids = [f"{lang}_{paragraph.number}_{place}" for place in range(len(sentences))]
            asked = [(question, paragraph.answer_sentence(question)) for question in paragraph.questions]
            skipped += sum(answer is None for _, answer in asked)
            if all(answer is None for _, answer in asked):
                continue  # the official loader meets a paragraph through its questions only
            passages += [_candidate(i, s, paragraph, lang, context) for i, s in zip(ids, sentences, strict=True)]
            for question, answer in asked:
                if answer is not None:
                    queries.append(Question(f"{question.id}_{lang}", question.text, lang))
                    answering = [i for i, sentence in zip(ids, sentences, strict=True) if sentence == answer]
                    relevant.setdefault(question.id, []).extend(answering)
    return RetrievalTask(
        name=name if context else f"{name}-sentences",
        passages=passages,
        queries=tuple(queries),
        qrels={query.id: dict.fromkeys(relevant[query.id.rsplit("_", 1)[0]], 1) for query in queries},
        metrics=("mAP@20", "mAP", "R@10", "own@20", "LPR@20", "Lang-nDCG@20", "RankDistance@100", "PEER@100"),
        groups=by_language(queries),
        average="queries",
        notes={"questions skipped: answer in no sentence": skipped},
        topics={query.id: topics[query.id.rsplit("_", 1)[0]] for query in queries},
    )


def _candidate(docid: str, sentence: str, paragraph: SquadParagraph, lang: str, context: bool) -> Passage:
    text = (sentence + paragraph.context).replace("\n", "") if context else sentence.replace("\n", " ").strip()
    return Passage(docid, text, lang=lang)
