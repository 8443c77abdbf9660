"""The documents are run: Python blocks as programs, console lines as far as the commands' parsers.

A Python block whose first line is `# not run` is left alone. The others of a page run in order, in one process, in a
folder with the sample's corpus.jsonl and queries.jsonl, where a tiny encoder stands in for the starter.
"""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from cli_cases import environment, write_starter

from xqg_vdb.cli.commands import cli
from xqg_vdb.texts.corpus import sample_corpus

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLICK = tuple(map(int, version("click").split(".")[:2]))
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def text_of(page):
    return page.read_text("utf-8")


def blocks(text, language):
    """(line number of the block's first line, its text)."""
    for match in _FENCE.finditer(text):
        if match[1] == language:
            yield text.count("\n", 0, match.start(2)) + 1, match[2]


def program(text):
    """The page's Python blocks as one program whose line numbers are the page's."""
    lines = [""] * (text.count("\n") + 1)
    for start, block in blocks(text, "python"):
        if not block.lstrip().startswith("# not run"):
            own = block.rstrip("\n").split("\n")
            lines[start - 1 : start - 1 + len(own)] = own
    return "\n".join(lines)


def commands_in(text):
    """(line number, arguments) of every `xqg-vdb …` line in console blocks; continued lines are joined."""
    for language in ("console", "bash", "sh", "shell"):
        for start, block in blocks(text, language):
            joined = block.replace("\\\n", " ")
            for offset, line in enumerate(joined.split("\n")):
                for part in re.split(r"&&|\||;", line.removeprefix("$ ")):
                    words = shlex.split(part, comments=True) if "xqg-vdb" in part else []
                    if words[:1] == ["xqg-vdb"]:
                        yield start + offset, words[1:]


@pytest.fixture
def desk(tmp_path):
    """A folder as the documents suppose it."""
    write_starter(tmp_path / "cache")
    sample = sample_corpus()
    for path in (sample.corpus, sample.queries, sample.questions):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_blocks_run(page, desk):
    source = program(text_of(page))
    if not source.strip():
        return
    code = f"import sys; exec(compile(sys.stdin.read(), {str(page)!r}, 'exec'), {{'__name__': '__main__'}})"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, input=source, cwd=desk, env=environment(desk), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_mentioned_commands_exist(page):
    found = {name for code in re.findall(r"```.*?```|`[^`\n]+`", text_of(page), re.DOTALL)
             for name in re.findall(r"\bxqg-vdb ([a-z][\w-]*)", code)}  # fmt: skip
    assert found <= set(cli.commands)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_console_lines_are_accepted_by_the_commands(page):
    for line, (*arguments,) in commands_in(text_of(page)):
        if not arguments or arguments[0].startswith("-"):
            continue
        if arguments[:2] == ["bench", "diff"]:
            arguments = ["bench diff", *arguments[2:]]
        command, context = cli.commands.get(arguments[0]), click.Context(cli, **cli.context_settings)
        assert command is not None, f"{page.name}:{line}: no command {arguments[0]}"
        try:
            while inner := getattr(command, "commands", {}).get(arguments[1] if arguments[1:] else ""):
                context = command.make_context(arguments[0], arguments[1:], parent=context)
                command, arguments = inner, arguments[1:]
            command.make_context(arguments[0], arguments[1:], parent=context)
        except click.BadParameter as error:
            assert "does not exist" in error.format_message(), f"{page.name}:{line}: {error.format_message()}"
        except click.exceptions.Exit:
            pass  # --help
        except click.ClickException as error:
            pytest.fail(f"{page.name}:{line}: {error.format_message()}")


def test_the_commands_that_the_compose_file_prints_are_accepted():
    printed = re.findall(r"^#.* run --rm xqg-vdb (.*)", text_of(ROOT / "docker" / "compose.yml"), re.MULTILINE)
    for name, *arguments in map(shlex.split, printed):
        cli.commands[name].make_context(name, arguments, parent=click.Context(cli, **cli.context_settings))
        assert all((ROOT / one[6:]).is_file() for one in arguments if one.startswith("/work/"))
    assert len(printed) == 2


def unclear_words():
    """What CONTRIBUTING's table says not to write, and what instead."""
    table = re.search(r"\| not \| say \|\n\|---\|---\|\n((?:\|.*\|\n)+)", text_of(ROOT / "CONTRIBUTING.md"))
    for row in table[1].splitlines():
        words, better = (cell.strip() for cell in row.strip("|").split("|"))
        yield from ((word, better) for word in words.split(", "))


def told():
    """(where, text) of what people read: pages, helps of all commands, and all texts in the code, docstrings too."""
    yield from ((page.name, _FENCE.sub("", text_of(page))) for page in PAGES)
    for name, command in cli.commands.items():
        yield name, command.get_help(click.Context(command, info_name=name))
    yield from ((page.name, text_of(page)) for kind in ("j2", "html") for page in (ROOT / "xqg_vdb").rglob(f"*.{kind}"))
    for module in sorted((ROOT / "xqg_vdb").rglob("*.py")):
        texts = (node.value for node in ast.walk(ast.parse(text_of(module))) if isinstance(node, ast.Constant))
        yield module.name, "\n".join(text for text in texts if isinstance(text, str))


def test_pages_and_helps_have_none_of_the_unclear_words():
    words = dict(unclear_words())
    assert len(words) > 12 and "goes on" in words
    found = re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)
    wrong = [
        f"{where}: {m[0]!r}; say {words[m[0].lower()]}: {' '.join(text[max(0, m.start() - 40) : m.end()].split())}"
        for where, text in told()
        for m in found.finditer(text)
    ]
    assert wrong == []


def test_examples_do_not_show_what_the_pages_advise_against():
    """The starter generator for languages that it cannot write, or to expand questions with."""
    weak = re.compile(r"starter:generator.* -l (?!(?:de|es|en)\b)\w+|(?:translation|pseudo-document):starter")
    texts = [*told(), *((page.name, text_of(page)) for page in PAGES)]
    lines = [(where, line) for where, text in texts for line in text.replace("\\\n", " ").splitlines()]
    recorded = "benchmarks/queries/xquad-en.starter.raw.jsonl"  # how the file was made that the page judges
    assert [one for one in lines if weak.search(one[1]) and recorded not in one[1]] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text_of(page))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_walks_of_the_architecture_name_files_that_are_there():
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", text_of(ROOT / "docs" / "architecture.md")))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists() and not (ROOT / "xqg_vdb" / name).exists()] == []


def test_every_command_is_in_the_reference():
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == sorted(cli.commands)


@pytest.mark.skipif(
    tuple(map(int, version("click").split(".")[:2])) < (8, 5),
    reason="earlier versions of click word defaults otherwise",
)
def test_the_reference_is_what_the_commands_say(tmp_path):
    argv = [sys.executable, str(ROOT / "docs" / "make_cli_reference.py"), "--check"]
    for columns in ("40", "200"):
        done = subprocess.run(argv, env=environment(tmp_path, COLUMNS=columns), capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


PAGE = """Text `xqg-vdb info`.

```python
# not run
raise SystemExit(3)
```

```console
$ xqg-vdb load corpus.jsonl wiki \\
    --alpha 0.5   # a comment
xqg-vdb serach wiki 'a question' | head
```

```python
one = 1
```

```python
raise ValueError(one)
```
"""


def test_how_a_page_is_read():
    assert list(commands_in(PAGE)) == [
        (9, ["load", "corpus.jsonl", "wiki", "--alpha", "0.5"]), (10, ["serach", "wiki", "a question"])
    ]  # fmt: skip
    source = program(PAGE)
    assert "SystemExit" not in source
    with pytest.raises(ValueError, match="1") as caught:
        exec(compile(source, "page", "exec"), {})
    assert caught.traceback[-1].lineno + 1 == PAGE[: PAGE.index("raise ValueError")].count("\n") + 1
