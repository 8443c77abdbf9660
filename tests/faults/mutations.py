"""Mutation testing: one operator or constant of a module is changed, and its tests must fail.

    python tests/faults/mutations.py xqg_vdb/fusion.py tests/test_fusion.py --mutants 50 --seed 1

Prints the survivors, which somebody then reads, and how many were killed. Each mutant is a process of its own that
imports the changed module in place of the real one.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SWAPPED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
LIMIT = 300


def places(tree):
    """[(number of the node in the walk, what is done there)]: what may be changed, but for messages and annotations."""
    skipped = {id(part) for node in ast.walk(tree) for part in _no_code(node) for part in ast.walk(part)}
    found = []
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
            found.append((number, "comparison"))
        elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPPED:
            found.append((number, "operator"))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            found.append((number, "not"))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            found.append((number, "constant"))
        elif isinstance(node, ast.If | ast.IfExp):
            found.append((number, "condition"))
    return found


def _no_code(node):
    if isinstance(node, ast.Raise):
        yield node
    elif isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
        yield node.annotation
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from node.decorator_list
        yield from filter(None, [node.returns])
    elif isinstance(node, ast.JoinedStr):
        yield node


def mutant(tree, number, kind):
    """(the changed tree, the line, what it says now)."""
    changed = copy.deepcopy(tree)
    node = list(ast.walk(changed))[number]
    if kind == "comparison":
        node.ops[0] = SWAPPED[type(node.ops[0])]()
    elif kind == "operator":
        node.op = SWAPPED[type(node.op)]()
    elif kind == "not":
        node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
    elif kind == "constant":
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    else:
        node.test = ast.UnaryOp(ast.Not(), node.test)
    ast.fix_missing_locations(changed)
    return changed, node.lineno, ast.unparse(node).split("\n")[0]


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the mutant for the one module."""

    def __init__(self, name, tree):
        self.name, self.tree = name, tree

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(self.tree, f"<{self.name}, changed>", "exec"), vars(module))


def survives(name, tree, tests):
    """Whether all tests pass with the mutant; one that hangs is killed."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
        code = 1
        try:
            import pytest

            sys.meta_path.insert(0, Changed(name, tree))
            sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
        finally:
            os._exit(code)
    for _ in range(10 * LIMIT):  # not by an alarm in the child: tests set their own
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--mutants", type=int, default=50, help="drawn from all")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    import numpy
    import pytest  # what every mutant imports

    assert numpy and pytest
    name = ".".join(given.module.with_suffix("").parts)
    tree = ast.parse(given.module.read_text("utf-8"))
    if not survives(name, tree, given.tests):
        sys.exit("the tests fail without any change")
    found = places(tree)
    chosen = random.Random(given.seed).sample(found, min(given.mutants, len(found)))
    left = 0
    for number, kind in sorted(chosen):
        changed, line, text = mutant(tree, number, kind)
        if survives(name, changed, given.tests):
            left += 1
            print(f"  {given.module}:{line} ({kind}) survives as: {text[:110]}", flush=True)
    killed = len(chosen) - left
    share = f"{killed} of {len(chosen)} killed ({killed / len(chosen):.0%})"
    print(f"{given.module}: {share}, of {len(found)} in all, seed {given.seed}")


if __name__ == "__main__":
    main()
