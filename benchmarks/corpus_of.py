"""A benchmark dataset's passages as a corpus file for `generate` and `load`, to stdout.

python benchmarks/corpus_of.py xquad --data-dir DATA > xquad-corpus.jsonl
"""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets import load_task


@click.command()
@click.argument("dataset")
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="XQG_DATA_DIR", required=True)
def main(dataset: str, data_dir: Path) -> None:
    """Passages of DATASET as JSON lines: id, title, text, lang."""
    try:
        task = load_task(dataset, data_dir)
    except DataError as error:
        raise click.ClickException(str(error)) from error
    for passage in task.passages:
        line = {"id": passage.id, "title": passage.title, "text": passage.text, "lang": passage.lang}
        click.echo(orjson.dumps(line).decode())


if __name__ == "__main__":
    main()
