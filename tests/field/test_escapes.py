"""Texts with control sequences, line breaks and overriding directions: none of them acts on a terminal."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from cli_cases import run_cli, run_here, write_lines
from tiny_model import write_tiny_encoder

from xqg_vdb.errors import printable

ESCAPES = Path(__file__).parent / "inputs" / "escape.jsonl"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a [2Jb"), ("a\nb\rc\td", "a b c d"), ("a\x9b31mb\x07\x7f", "a 31mb  "),
        ("a\u2028b\u2029c", "a b c"),
        ("\u202ecba\u202c \u2066x\u2069", "cba x"), ("\ufeffa\u200b\U000e0041", "a"),
        ("نمی\u200cخواهم", "نمی\u200cخواهم"), ("क्\u200dष 👩\u200d🔬", "क्\u200dष 👩\u200d🔬"),
        ("größe 日本", "größe 日本"),
    ],
)  # fmt: skip
def test_what_a_terminal_would_obey_is_taken_out(text, shown):
    assert printable(text) == shown


def test_no_command_writes_it(tmp_path):
    model = write_tiny_encoder(tmp_path / "model")
    assert run_here(tmp_path, "load", ESCAPES, "wiki", "--encoder", model).returncode == 0
    hostile = "\x1b[2J\u202e\u2028\x07"
    pairs = [(f"d{i}{hostile}", f"w{i} {hostile} w{i + 1}") for i in range(1, 5)]
    write_lines(tmp_path / "c.jsonl", [{"id": id, "text": text, "title": hostile + "t"} for id, text in pairs])
    queries = [{"id": id, "generated_queries": {"en": [text, text + "?", text + "."]}} for id, text in pairs]
    write_lines(tmp_path / "made.jsonl", queries)
    write_lines(tmp_path / "asked.jsonl", [{"id": f"q{i}", "text": text} for i, (_, text) in enumerate(pairs)])
    write_lines(tmp_path / "plain.jsonl", [{"id": f"d{i}", "text": text} for i, (_, text) in enumerate(pairs)])
    (tmp_path / "qrels.txt").write_text("q0 0 d1 1\nq1 0 d1 1\n")
    bench = ("bench", "plain.jsonl", "--questions", "asked.jsonl", "--qrels", "qrels.txt", "--encoder", model)
    (tmp_path / "q.jsonl").write_text('{"id": "\\u001b[1m", "text": "w1\\u001b]0;x\\u0007 w2"}\n')
    for words in (
        ("search", "wiki", "w1 \x1b[31m w2", "--encoder", model),
        ("search", "wiki", "--questions", "q.jsonl", "--encoder", model),
        ("info", "wiki"), ("versions", "wiki"), ("info",), ("gc", "wiki"), ("merge", "made.jsonl"),
        ("load", "c.jsonl", "other", "--encoder", model, "--queries", "made.jsonl"),
        ("audit", "other", "made.jsonl", "--encoder", model), ("filter", "made.jsonl", "good.jsonl"),
        (*bench, "--out", "one"), (*bench, "--out", "two"), ("bench", "diff", "one", "two"),
        ("tune", "plain.jsonl", *bench[2:], "--queries", "made.jsonl"),
        ("search", "other", "w1", "--encoder", model, "--question-lang", hostile),
        ("load", "c.jsonl", "third", "--encoder", model, "--default-lang", hostile),
    ):  # fmt: skip
        done = run_here(tmp_path, *words)
        for stream in (done.stdout, done.stderr):
            assert not set(stream) & set("\x1b\x07\x9b\u202e\u202c\u2028"), words
    found = run_here(tmp_path, "search", "wiki", "w1 \u202e\u2028\x7f", "--encoder", model, "--json").stdout
    assert not set(found) & set("\x7f\u202e\u2028") and json.loads(found)[0]["text"] == "w1 \u202e\u2028\x7f"
    for words in (("mcp", hostile), ("search", f"--{hostile}")):  # the parser's own messages
        said = run_cli(tmp_path, *words).stderr
        assert "Error: " in said and not set(said) & set("\x1b\x07\u202e\u2028")
    failed = run_cli(tmp_path, "load", "no\x1b[2J.jsonl", "wiki", "--encoder", model)
    assert failed.stderr.startswith("Error: There is no file no [2J.jsonl; that folder has ")
    hits = run_here(tmp_path, "search", "wiki", "w1", "--encoder", model).stdout
    assert len(hits.splitlines()) == 4 and "fake line 2" in hits.splitlines()[0] + hits.splitlines()[2]
