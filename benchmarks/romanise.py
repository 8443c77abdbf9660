"""XQuAD-R with its Arabic, Greek and Hindi questions in Latin letters, by uroman, beside them as they are.

    pip install uroman==1.3.1.1
    python benchmarks/romanise.py DATA OUT
    xqg-vdb bench benchmarks/suites/romanised.toml --data-dir OUT --out REPORT

uroman (Hermjakob et al. 2018) writes every letter, and no short vowels of Arabic; people leave letters out and put
vowels in. So these questions are harder than what is typed, and the same for everybody.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import uroman

LANGUAGES = {"ar": "ara", "el": "ell", "hi": "hin"}


def main(data: Path, out: Path) -> None:
    """Write `xquad-r/{en,ar,ar-Latn,…}.json`."""
    reader = uroman.Uroman()
    (out / "xquad-r").mkdir(parents=True, exist_ok=True)
    for lang, code in {"en": "", **LANGUAGES}.items():
        text = (data / "xquad-r" / f"{lang}.json").read_text("utf-8")
        (out / "xquad-r" / f"{lang}.json").write_text(text, "utf-8")
        record = json.loads(text)
        for question in (q for article in record["data"] for p in article["paragraphs"] for q in p["qas"]):
            question["question"] = reader.romanize_string(question["question"], lcode=code) if code else ""
        if code:
            (out / "xquad-r" / f"{lang}-Latn.json").write_text(json.dumps(record, ensure_ascii=False), "utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
