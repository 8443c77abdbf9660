"""Show generated queries of a file, a few per language, drawn by a seed: to be read by people, not chosen by them.

    python benchmarks/query_examples.py benchmarks/queries/xquad-en.starter.filtered.jsonl -n 10 > examples.md

With the prompt `pivot` the i-th query of every language translates the i-th English one, which stands beside it.
"""

from __future__ import annotations

import random
from pathlib import Path

import click
import orjson

from xqg_vdb.texts.languages import english_name


@click.command()
@click.argument("queries", type=click.Path(path_type=Path, exists=True))
@click.option("--raw", type=click.Path(path_type=Path, exists=True), help="Unfiltered file, for the English originals.")
@click.option("-n", "n", default=10, show_default=True)
@click.option("--seed", default=313, show_default=True)
def main(queries: Path, raw: Path | None, n: int, seed: int) -> None:
    """Print Markdown: one list per language."""
    records = [orjson.loads(line) for line in queries.read_bytes().splitlines()]
    originals = [orjson.loads(line) for line in (raw or queries).read_bytes().splitlines()]
    before = {record["id"]: record["generated_queries"] for record in originals}
    for lang in sorted({lang for record in records for lang in record["generated_queries"]}):
        every = [(r["id"], text) for r in records for text in r["generated_queries"].get(lang, [])]
        click.echo(f"\n**{english_name(lang)}** ({lang}, {len(every)} queries)\n")
        for id_, text in random.Random(seed).sample(every, min(n, len(every))):
            click.echo(f"- {text}{_english(before.get(id_, {}), lang, text)}")


def _english(own: dict[str, list[str]], lang: str, text: str) -> str:
    """The English query that `text` was translated from, when the file still has it."""
    texts, english = own.get(lang, []), own.get("en", [])
    place = texts.index(text) if text in texts else len(english)
    return "" if lang == "en" or place >= len(english) else f" ← *{english[place]}*"


if __name__ == "__main__":
    main()
