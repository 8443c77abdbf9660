"""BUCC 2018 of XTREME: find the sentences that translate each other in two monolingual corpora (Zweigenbaum et al.).

Lines `id<TAB>sentence` in `bucc2018/{xx}-en.{dev|test}.{xx|en}`, XTREME's names for BUCC's `sample` and `training`,
which are found too (`bucc2018/{xx}-en/{xx}-en.{sample|training}.{xx|en}`); gold `id<TAB>id` in `.gold`. Foreign
sentences are the queries, English ones the pool, per language; scored by `bitext.bucc_mine`, threshold tuned on dev.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xqg_vdb.evaluate.datasets.task import POOL, RetrievalTask, find_file, language_files, look_for
from xqg_vdb.evaluate.metrics import read_pairs
from xqg_vdb.types import Passage, Question

SOURCE = "https://comparable.limsi.fr/bucc2018/bucc2018-task.html"
_BUCC_NAMES = {"dev": "sample", "test": "training"}


def read_bucc(data_dir: Path, *, split: str = "dev", langs: Sequence[str] | None = None) -> RetrievalTask:
    """Read both sides of the languages that are there; a sentence that its file repeats is kept under its first id.

    Such sentences are searched, but their pairs do not count (`ignored`), as in XTREME, while gold pairs with them stay
    in the denominator. Without a `.gold` file (XTREME deletes that of test) qrels are empty and `notes` says so.
    Raises DataError when a sentence file is missing or malformed.
    """
    passages: list[Passage] = []
    queries: list[Question] = []
    qrels: dict[str, dict[str, int]] = {}
    ignored: set[str] = set()
    notes: dict[str, int | str] = {}
    names = _names("{lang}", split, "{lang}")
    for lang, _ in language_files(data_dir, *names, langs=langs, source=SOURCE):
        foreign, english = (_side(data_dir, lang, split, side) for side in (lang, "en"))
        queries += [Question(docid, text, lang) for docid, text in foreign.sentences.items()]
        passages += [
            Passage(f"{lang}/{i}", text, lang="en", meta={POOL: lang}) for i, text in english.sentences.items()
        ]
        ignored |= foreign.repeated | {f"{lang}/{docid}" for docid in english.repeated}
        gold = look_for(data_dir, *_names(lang, split, "gold"))
        notes[f"gold pairs {lang}"] = "no gold file" if gold is None else _add_gold(gold, lang, qrels)
    return RetrievalTask(
        name=f"bucc2018-{split}",
        passages=passages,
        queries=tuple(queries),
        qrels=qrels,
        metrics=("F1",),
        groups={query.id: str(query.lang) for query in queries},
        pooled=True,
        ignored=frozenset(ignored),
        notes=notes,
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """Distinct sentences by their first id, and which of those ids stand for several lines."""

    sentences: dict[str, str]
    repeated: set[str]


def _side(data_dir: Path, lang: str, split: str, side: str) -> _Side:
    first: dict[str, str] = {}
    repeated: set[str] = set()
    for docid, text in read_pairs(find_file(data_dir, *_names(lang, split, side), source=SOURCE)):
        if first.setdefault(text, docid) != docid:
            repeated.add(first[text])
    return _Side({docid: text for text, docid in first.items()}, repeated)


def _add_gold(path: Path, lang: str, qrels: dict[str, dict[str, int]]) -> int:
    pairs = read_pairs(path)
    for foreign, english in pairs:
        qrels.setdefault(foreign, {})[f"{lang}/{english}"] = 1
    return len(pairs)


def _names(lang: str, split: str, side: str) -> list[str]:
    theirs = _BUCC_NAMES.get(split, split)
    return [
        f"bucc2018/{lang}-en.{split}.{side}",
        f"bucc2018/{lang}-en.{theirs}.{side}",
        f"bucc2018/{lang}-en/{lang}-en.{theirs}.{side}",
    ]
