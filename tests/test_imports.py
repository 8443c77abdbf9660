"""The order of the modules, what they load, and what the source never contains.

`LAYERS` is the architecture from the ground up: what stands in a row may import the rows before it, nothing beside or
above it. The modules of a folder may import each other, in no circle.
"""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import xqg_vdb

ROOT = Path(xqg_vdb.__file__).parent
LAYERS = [
    [
        "types",
        "errors",
        "progress",
    ],  # words and numbers that everybody shares; they know nothing of ours
    ["files"],  # bytes
    ["texts", "journal"],  # what users bring, and what is kept line by line
    ["fusion", "calibration"],  # the equations
    ["models", "testing"],  # what computes
    ["store", "generate"],  # all that is known of Qdrant; what writes queries
    ["search"],
    ["index"],
    ["export"],  # checkpoints into models
    ["evaluate"],
    ["tune", "train"],
    ["integrations"],  # RAG frameworks
    ["__init__"],  # names for users; loads what they are used for, when they are used
    ["cli"],
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
PACKAGES = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
SOURCES = sorted(ROOT.rglob("*.py"))
HEAVY = ["onnxruntime", "torch", "transformers", "qdrant_client", "qdrant_edge", "pyarrow", "scipy"]


def layer_of(path):
    """The name by which a file stands in LAYERS."""
    first = path.relative_to(ROOT).parts[0]
    return first if first in PACKAGES else path.stem


def imported(path):
    """(line, layer name) of everything of ours that a file imports, in functions too."""
    package = ["xqg_vdb", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for name in [alias.name for alias in node.names if alias.name.split(".")[0] == "xqg_vdb"]:
                yield node.lineno, [*name.split("."), "__init__"][1]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = [*base, *(node.module or "").split(".")] if node.module else base
            if target[0] == "xqg_vdb":
                for alias in node.names:
                    name = [*target, alias.name][1]
                    yield node.lineno, name if len(target) > 1 or is_module(name) else "__init__"


def is_module(name):
    return (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()


def test_every_module_has_a_place():
    modules = {layer_of(path) for path in SOURCES}
    assert modules - set(HEIGHT) == set(), "new modules: say in LAYERS where they stand"
    assert set(HEIGHT) - modules == set(), "these are gone: take them out of LAYERS"
    assert len(HEIGHT) == sum(map(len, LAYERS)), "a module stands twice"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = layer_of(path)
    found = [(line, name) for line, name in imported(path) if name != own]
    if own == "__init__":
        return  # __getattr__ and TYPE_CHECKING only; that it is light is tested below
    top = len(LAYERS)
    wrong = [f"line {n}: {own} imports {name}" for n, name in found if HEIGHT.get(name, top) >= HEIGHT.get(own, top)]
    assert wrong == []


def test_the_reader_of_imports_sees_all_forms(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "cli").mkdir()
    for name in ("languages", "errors"):
        (tmp_path / f"{name}.py").touch()
    file = tmp_path / "cli" / "a.py"
    lines = ["import xqg_vdb.files, os", "from xqg_vdb import languages, Recipe", "from ..types import Card"]
    lines += ["from .b import c", "from .. import errors", "def f():", "    from xqg_vdb.models.encoder import Encoder"]
    file.write_text("\n".join(lines))
    assert sorted(imported(file)) == [
        (1, "files"), (2, "__init__"), (2, "languages"), (3, "types"), (4, "cli"), (5, "errors"), (7, "models")
    ]  # fmt: skip


def test_no_module_is_called_utils():
    assert [path for path in SOURCES if path.stem in ("utils", "util", "common", "helpers", "misc")] == []


def loaded(statement, names):
    """Which of `names` a fresh Python has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*[n for n in {names!r} if n in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.split()


_HELP = "import sys\nsys.argv = {}\nfrom xqg_vdb.cli import main\ntry: main()\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    "statement",
    [
        "import xqg_vdb; dir(xqg_vdb); xqg_vdb.Recipe()",
        _HELP.format(["xqg-vdb", "--help"]),
        _HELP.format(["xqg-vdb", "load", "--help"]),
    ],
    ids=["import", "help", "load help"],
)
def test_importing_and_help_are_light(statement):
    assert loaded(statement, HEAVY) == []


def test_encoding_loading_and_searching_need_neither_torch_nor_transformers():
    statement = (
        "import xqg_vdb.models.encoder, xqg_vdb.search.retriever, xqg_vdb.index.load, xqg_vdb.export.encoder,"
        " xqg_vdb.store.embedded.store"
    )
    found = loaded(f"{statement}, xqg_vdb.store.server.store", [*HEAVY, "optimum", "onnx", "sentence_transformers"])
    assert set(found) - {"onnxruntime"} == {
        "qdrant_client",
        "qdrant_edge",
    }  # qdrant_client loads fastembed where it is there


FORBIDDEN = {
    "print(": "the library reports through callbacks, commands through click.echo",
    "import pickle": "a pickle can run code", "allow_pickle=True": "a pickle can run code",
    "trust_remote_code=True": "a model must not bring code", "eval(": "", "exec(": "", "shell=True": "",
}  # fmt: skip


def calls_and_names(tree):
    """Every called name, keyword=constant and imported module, spelled as in FORBIDDEN."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.lineno, f"{node.func.id}("
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant):
                    yield node.lineno, f"{keyword.arg}={keyword.value.value}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, f"import {node.module}"


def test_forbidden_things_are_absent():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name} {FORBIDDEN[name]}"
        for path in SOURCES
        for line, name in calls_and_names(ast.parse(path.read_text("utf-8")))
        if name in FORBIDDEN
    ]
    assert found == []


def functions(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_signatures_say_every_parameter():
    """No **kwargs: a misspelt option must be an error."""
    found = [f"{path.relative_to(ROOT)}:{node.lineno} {node.name}" for path in SOURCES for node in functions(path)
             if node.args.kwarg is not None]  # fmt: skip
    assert found == []


def modules():
    return [info.name for info in pkgutil.walk_packages([str(ROOT)], "xqg_vdb.")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_things_have_docstrings(path):
    """Read from the source: some modules need an extra to be imported."""
    tree = ast.parse(path.read_text("utf-8"))
    silent = [] if ast.get_docstring(tree) or not tree.body else ["the module"]
    for node in public(tree.body):
        if not ast.get_docstring(node):
            silent.append(node.name)
        if isinstance(node, ast.ClassDef):
            silent += [f"{node.name}.{one.name}" for one in public(node.body) if not ast.get_docstring(one)]
    assert silent == []


def public(body):
    """Public functions and classes of a body; overloads and properties' setters repeat what has a docstring."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for node in body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            decorators = [ast.unparse(one) for one in getattr(node, "decorator_list", [])]
            if not any(one.endswith((".setter", "overload")) for one in decorators):
                yield node


def test_the_top_level_names_exist_and_are_documented():
    for name in xqg_vdb.__all__:
        value = getattr(xqg_vdb, name)
        if name != "__version__":
            assert inspect.getdoc(value), name
    with pytest.raises(AttributeError, match="module 'xqg_vdb' has no attribute 'Retreiver'"):
        xqg_vdb.Retreiver  # noqa: B018


def test_no_module_does_anything_when_imported():
    """No line on stdout or stderr, no thread, no environment variable, no handler of a signal or a log."""
    names = [name for name in modules() if not name.endswith((".export.graphs", ".optimize"))]
    names = [n for n in names if n.split(".")[-1] not in ("contrastive", "trainer")]  # torch's own
    names = [name for name in names if ".integrations." not in name]  # the frameworks' own imports do many things
    code = """
import importlib, logging, os, signal, sys, threading
before = dict(os.environ), signal.getsignal(signal.SIGINT), list(logging.getLogger().handlers)
missing = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert not error.name.startswith("xqg_vdb"), name
assert before == (dict(os.environ), signal.getsignal(signal.SIGINT), list(logging.getLogger().handlers))
assert threading.active_count() == 1, threading.enumerate()
assert [type(handler) for handler in logging.getLogger("xqg_vdb").handlers] == [logging.NullHandler]
"""
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert importlib.import_module("xqg_vdb.types")
