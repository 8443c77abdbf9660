"""The house in numbers: what a reader has to hold in mind, counted. `python tests/house.py` prints the table.

`GOALS` is where it should go; tests/test_house.py holds `TODAY`: a new feature pays with what it makes superfluous.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "xqg_vdb"
GOALS = {
    "modules": 130,
    "files at the top": 11,
    "lines": 20_500,
    "files that a load of four passages enters": 20,
    "files that a suite of four questions enters": 40,
    "modules with exactly one importer": 35,
    "public classes and type aliases": 200,
    "rungs of the import ladder": 14,
    "ways to fold queries into vectors": 1,
}
"""Where it should go; `files at the top` counts `__init__.py`."""

TODAY = GOALS | {
    "lines": 31_001,
}
"""At most so many until the goals are met; lower a number when you can. 2,500 lines came with chunks, cross-encoders,
assistants (MCP), clusters (Ray), alignment, killed servers, the report, questions in Latin letters and checkpoints of
other layouts, which deletions did not pay for.
"""


def sources() -> list[Path]:
    """Every module of the package."""
    return sorted(ROOT.rglob("*.py"))


def counted() -> dict[str, int]:
    """Every measure of `GOALS`."""
    return {
        "modules": len(sources()),
        "files at the top": len(list(ROOT.glob("*.py"))),
        "lines": sum(len(path.read_text("utf-8").splitlines()) for path in sources()),
        "files that a load of four passages enters": len(entered(a_load)),
        "files that a suite of four questions enters": len(entered(a_suite)),
        "modules with exactly one importer": len(with_one_importer()),
        "public classes and type aliases": sum(1 for path in sources() for _ in concepts(path)),
        "rungs of the import ladder": len(ladder()),
        "ways to fold queries into vectors": len(fusing()),
    }


def concepts(path: Path) -> Iterator[str]:
    """Public classes and type aliases of a module: what a reader must know a name of."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            alias = isinstance(node.value, ast.Subscript | ast.BinOp | ast.Attribute | ast.Name)
            if alias and re.fullmatch(r"[A-Z][a-z]\w*", name):
                yield name


def module_of(path: Path) -> str:
    """Its dotted name."""
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of our modules that a file imports anywhere."""
    known = {module_of(other) for other in sources()}
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & known
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            target = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield from {f"{target}.{alias.name}", target} & known


def with_one_importer() -> list[str]:
    """Modules that one other alone imports; commands, dataset readers and packages' own files apart."""
    importers = defaultdict(set)
    for path in sources():
        for name in set(imports(path)) - {module_of(path)}:
            importers[name].add(module_of(path))
    apart = re.compile(r"xqg_vdb\.(cli|evaluate\.datasets)\.")
    names = [module_of(path) for path in sources() if path.name != "__init__.py"]
    return [name for name in names if len(importers[name]) == 1 and not apart.match(name)]


def ladder() -> list[list[str]]:
    """The rows of tests/test_imports.py."""
    tree = ast.parse((ROOT.parent / "tests" / "test_imports.py").read_text("utf-8"))
    return next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS"
    )


def fusing() -> list[str]:
    """Functions that call `fuse`, or mix by alpha of their own; the one path has one."""
    found = []
    for path in sources():
        if path.name == "fusion.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.unparse(node)
                if re.search(r"\bfuse\(|\(1(\.0)? - \w*(\.\w+)*alpha\)", text):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    return found


def entered(job: Callable[[Path], object]) -> set[str]:
    """Our files in which `job` calls a function, on any thread; the first run, which imports, is not counted."""
    seen: set[str] = set()

    def look(frame: object, event: str, _: object) -> None:
        if event == "call" and (name := frame.f_code.co_filename).startswith(str(ROOT)):  # type: ignore[attr-defined]
            seen.add(str(Path(name).relative_to(ROOT)))

    with tempfile.TemporaryDirectory() as folder:
        job(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        threading.setprofile(look)
        sys.setprofile(look)
        try:
            job(Path(folder))
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
    return {name for name in seen if name != "testing.py"}


def a_load(folder: Path) -> object:
    """Four passages with a query each into an embedded collection."""
    from xqg_vdb.index.load import LoadOptions, load
    from xqg_vdb.store import open_store
    from xqg_vdb.testing import HashEncoder

    rows = [{"id": str(i), "text": f"the text number {i}", "lang": "en"} for i in range(4)]
    queries = [{"id": str(i), "generated_queries": {"sw": [f"swali namba {i}"]}} for i in range(4)]
    for name, records in (("corpus", rows), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    store = open_store(path=folder / "store")
    try:
        return load(
            folder / "corpus.jsonl",
            "four",
            encoder=HashEncoder(),
            queries=folder / "queries.jsonl",
            store=store,
            options=LoadOptions(build=folder / "build"),
        ).collection
    finally:
        store.close()


def a_suite(folder: Path) -> object:
    """A suite of one cell: four questions, plain and calibrated, to its report."""
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_cases

    from xqg_vdb.evaluate.report import write_report
    from xqg_vdb.evaluate.suite import read_suite

    bench_cases.write_afriqa(folder, per_lang=2)
    (folder / "suite.toml").write_text(SUITE)
    report = bench_cases.run(read_suite(folder / "suite.toml"), folder)
    return write_report(report, folder / "report")


SUITE = """
name = "four questions"
datasets = ["afriqa"]
metrics = ["R@1"]
[[systems]]
name = "plain"
calibration = 0
[[systems]]
name = "calibrated"
[[comparisons]]
baseline = "plain"
systems = ["calibrated"]
"""


def show() -> None:
    """Print the table, and the largest modules."""
    for name, value in counted().items():
        print(f"{name:48} {value:7,}   at most {TODAY[name]:,}   goal {GOALS[name]:,}")
    tests = sum(len(p.read_text("utf-8").splitlines()) for p in (ROOT.parent / "tests").rglob("*.py"))
    print(f"{'lines of tests for a line of source':48} {tests / counted()['lines']:7.3f}")
    sizes = Counter({str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in sources()})
    print("longest modules:", ", ".join(f"{name} {lines}" for name, lines in sizes.most_common(8)))


if __name__ == "__main__":
    show()
