"""Two newcomers: one reads README, one the tutorial, and each types exactly what stands there, from an empty cache.

`make journeys` (or `python tests/journeys.py`) takes a fresh clone, installs with `make demo`, and prints minutes and
megabytes. tests/test_journeys.py takes the same steps in the environment that is there, with torch hidden.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: str, kind: str) -> list[str]:
    """The code blocks of a page in its order."""
    return re.findall(rf"^```{kind}\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: str) -> Iterator[list[str]]:
    """What the page types after `$`; not what needs a server."""
    for block in blocks(page, "console"):
        for line in re.findall(r"^\$ (.*)", block.replace("\\\n", " "), re.MULTILINE):
            words = shlex.split(line, comments=True)
            if words[0] == "xqg-vdb" and "--url" not in words:
                yield words[1:]


def readme(desk: Path) -> Iterator[tuple[str, list[str]]]:
    """README's lines of Python; they need no file."""
    (code,) = blocks("README.md", "python")
    yield "README's Python", ["-c", code]


def tutorial(desk: Path) -> Iterator[tuple[str, list[str]]]:
    """The tutorial's commands, then its Python as one program."""
    python = blocks("docs/tutorial.md", "python")
    corpus, edit = (block for block in python if "Path(" in block)
    yield "the corpus", ["-c", corpus]
    for words in commands("docs/tutorial.md"):
        if "--build" in words:
            yield "the edited corpus", ["-c", "from pathlib import Path\n" + edit]
        yield shlex.join(["xqg-vdb", *words]), ["-c", "from xqg_vdb.cli import main; main()", *words]
    yield "the tutorial's Python", ["-c", "\n".join(python)]


def walk(
    journey, desk: Path, run: Callable[[Path, str, list[str]], tuple[int, str]]
) -> Iterator[tuple[str, float, str]]:
    """Take every step; yields its name, its seconds and what it said. run: Python code, with arguments, at the desk."""
    desk.mkdir()
    for name, (_, code, *words) in journey(desk):
        begun = time.monotonic()
        returned, said = run(desk, code, words)
        assert returned == 0, f"{name}\n{said}"
        yield name, time.monotonic() - begun, said


def by(python: str, **environment: str) -> Callable[[Path, str, list[str]], tuple[int, str]]:
    """Runs steps in processes of an environment."""

    def run(desk: Path, code: str, words: list[str]) -> tuple[int, str]:
        done = subprocess.run(
            [python, "-c", code, *words], cwd=desk, env={**os.environ, **environment}, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    return run


def megabytes(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) // 10**6


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clone, cache = Path(folder) / "clone", Path(folder) / "cache"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = {"XQG_VDB_CACHE": str(cache), "PYTHONPATH": ""}
        begun = time.monotonic()
        subprocess.run(["make", "demo"], cwd=clone, env={**os.environ, **environment}, check=True)
        print(f"\nmake demo: {(time.monotonic() - begun) / 60:.1f} min; environment {megabytes(clone / '.venv')} MB")
        for journey in (readme, tutorial):
            shutil.rmtree(cache)
            steps = []
            run = by(str(clone / ".venv/bin/python"), **environment)
            for name, seconds, _ in walk(journey, Path(folder) / journey.__name__, run):
                steps.append(seconds)
                print(f"  {seconds:6.1f} s  {name}")
            print(f"{journey.__name__}: {sum(steps) / 60:.1f} min from an empty cache; cache {megabytes(cache)} MB")


if __name__ == "__main__":
    sys.exit(main())
