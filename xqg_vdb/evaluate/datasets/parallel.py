"""Translations found among sentences: Tatoeba, NTREX-128 and BUCC 2018. Each language is a pool of its own.

Tatoeba (36 languages of XTREME, 41 of XTREME-R, or all of a folder): `tatoeba/tatoeba.{xxx}-eng.{xxx|eng}` of
facebookresearch/LASER, line i of one file translates line i of the other; up to 1,000 pairs a language. Accuracy per
language, mean over languages; XTREME searches the foreign file with the English sentences, most papers the other way.

NTREX (Federmann et al. 2022): 1,997 sentences of news in 124 languages and varieties besides English, the same in all:
`newstest2019-ref.{lang}.txt` and `newstest2019-src.eng.txt`. F1 as MTEB computes it, and accuracy, both directions.

BUCC (Zweigenbaum et al.): find the sentences of two monolingual corpora that translate each other. Lines
`id<TAB>sentence` in `bucc2018/{xx}-en.{dev|test}.{xx|en}`, XTREME's names for BUCC's `sample` and `training`, which are
found too (`bucc2018/{xx}-en/{xx}-en.{sample|training}.{xx|en}`); gold `id<TAB>id` in `.gold`. Scored by `bitext.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import POOL, RetrievalTask, find_file, language_files, look_for
from xqg_vdb.evaluate.metrics import read_pairs
from xqg_vdb.texts.languages import normalize
from xqg_vdb.texts.records import open_lines
from xqg_vdb.types import Passage, Question

_TATOEBA = "https://github.com/facebookresearch/LASER (data/tatoeba/v1)"
_NTREX = "https://github.com/MicrosoftTranslator/NTREX (NTREX-128)"
_BUCC = "https://comparable.limsi.fr/bucc2018/bucc2018-task.html"

XTREME = {
    "af": "afr", "ar": "ara", "bg": "bul", "bn": "ben", "de": "deu", "el": "ell", "es": "spa", "et": "est", "eu": "eus",
    "fa": "pes", "fi": "fin", "fr": "fra", "he": "heb", "hi": "hin", "hu": "hun", "id": "ind", "it": "ita", "ja": "jpn",
    "jv": "jav", "ka": "kat", "kk": "kaz", "ko": "kor", "ml": "mal", "mr": "mar", "nl": "nld", "pt": "por", "ru": "rus",
    "sw": "swh", "ta": "tam", "te": "tel", "th": "tha", "tl": "tgl", "tr": "tur", "ur": "urd", "vi": "vie", "zh": "cmn",
}  # fmt: skip
"""XTREME's 36 languages: its code -> the code in the file names."""

XTREME_R = XTREME | {"az": "aze", "lt": "lit", "pl": "pol", "ro": "ron", "uk": "ukr"}
"""XTREME-R's 41 languages."""


_Direction = Literal["xx-en", "en-xx"]


def read_tatoeba(
    data_dir: Path, *, direction: _Direction = "xx-en", langs: Sequence[str] | None = tuple(XTREME)
) -> RetrievalTask:
    """Read aligned sentences from `tatoeba/`: 31,692 pairs in XTREME's 36 languages, 36,692 in XTREME-R's 41.

    direction: `xx-en` asks with the foreign sentence (MTEB and most papers), `en-xx` with the English one (XTREME
    itself); state it, the two differ by 1 to 3 points.
    langs: by XTREME's codes or the files' own; None for all that the folder has.
    Raises DataError when a file is missing or a pair of files has not equally many lines.
    """
    if langs is None:
        names = {code: lang for lang, code in XTREME_R.items()}
        there = language_files(data_dir, "tatoeba/tatoeba.{lang}-eng.{lang}", source=_TATOEBA)
        langs = [names.get(code, code) for code, _ in there]
    pairs = {}
    for lang in langs:
        code = XTREME_R.get(lang, lang)
        files = [find_file(data_dir, f"tatoeba/tatoeba.{code}-eng.{side}", source=_TATOEBA) for side in (code, "eng")]
        pairs[lang] = _aligned(files[0], files[1])
    return _translations(f"tatoeba-{len(langs)}-{direction}", pairs, direction, ("Accuracy",))


def read_ntrex(data_dir: Path, *, direction: _Direction = "xx-en", langs: Sequence[str] | None = None) -> RetrievalTask:
    """Read NTREX-128 from a checkout `ntrex/`, or its files there; English varieties only where `langs` names them.

    langs: by the files' codes (`hau`, `zho-CN`), all that are there by default. Translations share a topic.
    Raises DataError when a file is missing or has not as many lines as the English one.
    """
    folders = [f"ntrex/{folder}newstest2019" for folder in ("NTREX-128/", "")]
    english = find_file(data_dir, *(f"{folder}-src.eng.txt" for folder in folders), source=_NTREX)
    there = language_files(data_dir, *(f"{folder}-ref.{{lang}}.txt" for folder in folders), langs=langs, source=_NTREX)
    pairs = {lang: _aligned(path, english) for lang, path in there if langs or normalize(lang) != "en"}
    task = _translations(f"ntrex-{len(pairs)}-{direction}", pairs, direction, ("F1@1", "Accuracy"))
    return replace(task, topics={query.id: f"sentence {query.id.rpartition('-')[2]}" for query in task.queries})


def _aligned(foreign_file: Path, english_file: Path) -> tuple[list[str], list[str]]:
    foreign, english = (
        [line.raw.decode("utf-8").strip() for line in open_lines(file) if not line.cut]
        for file in (foreign_file, english_file)
    )
    if len(foreign) != len(english):
        name = foreign_file.name.removesuffix(".gz").rpartition(".")[0]
        raise DataError(f"{name} is not aligned: {len(foreign)} foreign, {len(english)} English lines.")
    return foreign, english


def _translations(
    name: str, pairs: Mapping[str, tuple[list[str], list[str]]], direction: _Direction, metrics: tuple[str, ...]
) -> RetrievalTask:
    """The task of lines that translate each other, foreign and English by language."""
    passages: list[Passage] = []
    queries: list[Question] = []
    for lang, (foreign, english) in pairs.items():
        sides = (normalize(lang), foreign), ("en", english)
        (asked_lang, asked), (pool_lang, pool) = sides if direction == "xx-en" else sides[::-1]
        queries += [Question(f"{lang}-{i}", text, asked_lang) for i, text in enumerate(asked)]
        passages += [Passage(f"{lang}-{i:04}", text, lang=pool_lang, meta={POOL: lang}) for i, text in enumerate(pool)]
    return RetrievalTask(
        name=name,
        passages=passages,
        queries=tuple(queries),
        qrels={q.id: {p.id: 1} for q, p in zip(queries, passages, strict=True)},
        metrics=metrics,
        groups={q.id: str(p.meta[POOL]) for q, p in zip(queries, passages, strict=True)},
        pooled=True,
    )


def read_bucc(data_dir: Path, *, split: str = "dev", langs: Sequence[str] | None = None) -> RetrievalTask:
    """Read both sides of the languages that are there; a sentence that its file repeats is kept under its first id.

    Foreign sentences ask, English ones are the pool. Repeated ones are searched, but their pairs do not count
    (`ignored`), as in XTREME, while gold pairs with them stay in the denominator. Without a `.gold` file (XTREME
    deletes that of test) qrels are empty and `notes` says so.
    Raises DataError when a sentence file is missing or malformed.
    """
    passages: list[Passage] = []
    queries: list[Question] = []
    qrels: dict[str, dict[str, int]] = {}
    ignored: set[str] = set()
    notes: dict[str, int | str] = {}
    for lang, _ in language_files(data_dir, *_bucc_names("{lang}", split, "{lang}"), langs=langs, source=_BUCC):
        (foreign, repeated), (english, repeated_english) = (
            _distinct(find_file(data_dir, *_bucc_names(lang, split, side), source=_BUCC)) for side in (lang, "en")
        )
        queries += [Question(docid, text, lang) for text, docid in foreign.items()]
        passages += [Passage(f"{lang}/{docid}", text, lang="en", meta={POOL: lang}) for text, docid in english.items()]
        ignored |= repeated | {f"{lang}/{docid}" for docid in repeated_english}
        file = look_for(data_dir, *_bucc_names(lang, split, "gold"))
        gold = [] if file is None else read_pairs(file)
        for foreign_id, english_id in gold:
            qrels.setdefault(foreign_id, {})[f"{lang}/{english_id}"] = 1
        notes[f"gold pairs {lang}"] = "no gold file" if file is None else len(gold)
    return RetrievalTask(
        name=f"bucc2018-{split}",
        passages=passages,
        queries=tuple(queries),
        qrels=qrels,
        metrics=("F1",),
        pooled=True,
        ignored=frozenset(ignored),
        notes=notes,
    )


def _distinct(path: Path) -> tuple[dict[str, str], set[str]]:
    """Each sentence with its first id, and which of those ids stand for several lines."""
    first: dict[str, str] = {}
    repeated = {first[text] for docid, text in read_pairs(path) if first.setdefault(text, docid) != docid}
    return first, repeated


def _bucc_names(lang: str, split: str, side: str) -> list[str]:
    theirs = {"dev": "sample", "test": "training"}.get(split, split)
    names = [f"{lang}-en.{split}.{side}", f"{lang}-en.{theirs}.{side}", f"{lang}-en/{lang}-en.{theirs}.{side}"]
    return [f"bucc2018/{name}" for name in names]
