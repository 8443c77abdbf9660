"""Tatoeba sentence retrieval of XTREME (36 languages), XTREME-R (41), or of a folder: translate by nearest neighbour.

Plain text `tatoeba.{xxx}-eng.{xxx|eng}` (three-letter codes, from facebookresearch/LASER `data/tatoeba/v1`), line i of
one file translates line i of the other; up to 1,000 pairs a language. Each language is its own pool. Accuracy per
language, mean over languages; XTREME searches the foreign file with the English sentences, most papers the other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import POOL, RetrievalTask, find_file, language_files
from xqg_vdb.texts.languages import normalize
from xqg_vdb.texts.records import open_lines
from xqg_vdb.types import Passage, Question

SOURCE = "https://github.com/facebookresearch/LASER (data/tatoeba/v1)"
Direction = Literal["xx-en", "en-xx"]

XTREME = {
    "af": "afr", "ar": "ara", "bg": "bul", "bn": "ben", "de": "deu", "el": "ell", "es": "spa", "et": "est", "eu": "eus",
    "fa": "pes", "fi": "fin", "fr": "fra", "he": "heb", "hi": "hin", "hu": "hun", "id": "ind", "it": "ita", "ja": "jpn",
    "jv": "jav", "ka": "kat", "kk": "kaz", "ko": "kor", "ml": "mal", "mr": "mar", "nl": "nld", "pt": "por", "ru": "rus",
    "sw": "swh", "ta": "tam", "te": "tel", "th": "tha", "tl": "tgl", "tr": "tur", "ur": "urd", "vi": "vie", "zh": "cmn",
}  # fmt: skip
"""XTREME's 36 languages: its code -> the code in the file names."""

XTREME_R = XTREME | {"az": "aze", "lt": "lit", "pl": "pol", "ro": "ron", "uk": "ukr"}
"""XTREME-R's 41 languages."""


def read_tatoeba(
    data_dir: Path, *, direction: Direction = "xx-en", langs: Sequence[str] | None = tuple(XTREME)
) -> RetrievalTask:
    """Read aligned sentences from `tatoeba/`: 31,692 pairs in XTREME's 36 languages, 36,692 in XTREME-R's 41.

    direction: `xx-en` asks with the foreign sentence (MTEB and most papers), `en-xx` with the English one (XTREME
    itself); state it, the two differ by 1 to 3 points.
    langs: by XTREME's codes or the files' own; None for all that the folder has.
    Raises DataError when a file is missing or a pair of files has not equally many lines.
    """
    if langs is None:
        names = {code: lang for lang, code in XTREME_R.items()}
        there = language_files(data_dir, "tatoeba/tatoeba.{lang}-eng.{lang}", source=SOURCE)
        langs = [names.get(code, code) for code, _ in there]
    passages: list[Passage] = []
    queries: list[Question] = []
    for lang in langs:
        foreign, english = read_pairs(data_dir, lang)
        asked, asked_lang, pool, pool_lang = (
            (foreign, normalize(lang), english, "en")
            if direction == "xx-en"
            else (english, "en", foreign, normalize(lang))
        )
        queries += [Question(f"{lang}-{i}", text, asked_lang) for i, text in enumerate(asked)]
        passages += [Passage(f"{lang}-{i:04}", text, lang=pool_lang, meta={POOL: lang}) for i, text in enumerate(pool)]
    return RetrievalTask(
        name=f"tatoeba-{len(langs)}-{direction}",
        passages=passages,
        queries=tuple(queries),
        qrels={q.id: {p.id: 1} for q, p in zip(queries, passages, strict=True)},
        metrics=("Accuracy",),
        groups={q.id: str(p.meta[POOL]) for q, p in zip(queries, passages, strict=True)},
        pooled=True,
    )


def read_pairs(data_dir: Path, lang: str) -> tuple[list[str], list[str]]:
    """Read the foreign and the English sentences of one language (XTREME's or the files' code), aligned."""
    code = XTREME_R.get(lang, lang)
    foreign, english = (_sentences(data_dir, f"tatoeba/tatoeba.{code}-eng.{side}") for side in (code, "eng"))
    if len(foreign) != len(english):
        raise DataError(f"tatoeba.{code}-eng is not aligned: {len(foreign)} foreign, {len(english)} English lines.")
    return foreign, english


def _sentences(data_dir: Path, name: str) -> list[str]:
    path = find_file(data_dir, name, source=SOURCE)
    return [source.raw.decode("utf-8").strip() for source in open_lines(path) if not source.cut]
