"""Generate queries in several processes, one shard each, and join them: the same on one machine or on many.

    python examples/batch_in_shards.py corpus.jsonl queries.jsonl MODEL --shards 2 -l de -l sw

On many machines, run `xqg-vdb generate … --shard i/n` on each, copy the `queries.jsonl.shard-*` files together, and run
`xqg-vdb merge queries.jsonl` there. Stopped shards go on when the same command is run again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

XQG_VDB = [sys.executable, "-c", "from xqg_vdb.cli import main; main()"]


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("model")
@click.option("--shards", default=2, show_default=True)
@click.option("-l", "--query-langs", multiple=True, required=True)
@click.option("-n", "n", default=3, show_default=True)
def main(corpus: Path, out: Path, model: str, shards: int, query_langs: tuple[str, ...], n: int) -> None:
    """Start every shard, wait, merge; the exit code is that of the first shard that failed."""
    asked = [part for lang in query_langs for part in ("-l", lang)]
    common = ["generate", str(corpus), str(out), "--generator", model, *asked, "-n", str(n), "--threads", "1"]
    running = [subprocess.Popen([*XQG_VDB, *common, "--shard", f"{i}/{shards}"]) for i in range(1, shards + 1)]
    failed = [code for code in [process.wait() for process in running] if code]
    if failed:
        sys.exit(failed[0])
    sys.exit(subprocess.run([*XQG_VDB, "merge", str(out)], check=False).returncode)


if __name__ == "__main__":
    main()
