"""Translations found among sentences: Tatoeba and NTREX-128. Each language is a pool of its own.

Tatoeba (36 languages of XTREME, 41 of XTREME-R, or all of a folder): `tatoeba/tatoeba.{xxx}-eng.{xxx|eng}` of
facebookresearch/LASER, line i of one file translates line i of the other; up to 1,000 pairs a language. Accuracy per
language, mean over languages; XTREME searches the foreign file with the English sentences, most papers the other way.

NTREX (Federmann et al. 2022): 1,997 sentences of news in 124 languages and varieties besides English, the same in all:
`newstest2019-ref.{lang}.txt` and `newstest2019-src.eng.txt`. F1 as MTEB computes it, and accuracy, both directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import POOL, RetrievalTask, find_file, language_files
from xqg_vdb.texts.languages import normalize
from xqg_vdb.texts.records import text_lines
from xqg_vdb.types import Passage, Question

_TATOEBA = "https://github.com/facebookresearch/LASER (data/tatoeba/v1)"
_NTREX = "https://github.com/MicrosoftTranslator/NTREX (NTREX-128)"

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


def read_ntrex(data_dir: Path, *, direction: _Direction = "xx-en") -> RetrievalTask:
    """Read NTREX-128 from a checkout `ntrex/`, or its files there, without English varieties.

    Translations share a topic. Raises DataError when a file is missing or has not as many lines as the English one.
    """
    folders = [f"ntrex/{folder}newstest2019" for folder in ("NTREX-128/", "")]
    english = find_file(data_dir, *(f"{folder}-src.eng.txt" for folder in folders), source=_NTREX)
    there = language_files(data_dir, *(f"{folder}-ref.{{lang}}.txt" for folder in folders), source=_NTREX)
    pairs = {lang: _aligned(path, english) for lang, path in there if normalize(lang) != "en"}
    task = _translations(f"ntrex-{len(pairs)}-{direction}", pairs, direction, ("F1@1", "Accuracy"))
    return replace(task, topics={query.id: f"sentence {query.id.rpartition('-')[2]}" for query in task.queries})


def _aligned(foreign_file: Path, english_file: Path) -> tuple[list[str], list[str]]:
    foreign, english = (
        {line: text.strip() for line, text in text_lines(file)} for file in (foreign_file, english_file)
    )
    if odd := foreign.keys() ^ english.keys():
        name, counts = foreign_file.name.removesuffix(".gz").rpartition(".")[0], (len(foreign), len(english))
        raise DataError(
            f"{name} is not aligned: {counts[0]} foreign, {counts[1]} English lines; line {min(odd)} is in one alone."
        )
    return list(foreign.values()), list(english.values())


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
