"""How far work is: a tick a batch, a line every 30 s without a terminal, what a stopped load has kept, --verbose."""

import pytest
from cli_cases import run_cli, write_lines
from tiny_model import write_tiny_encoder

from xqg_vdb import Encoder, load
from xqg_vdb import progress as progress_module
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.progress import LINE_SECONDS, bars, tick, ticks
from xqg_vdb.store import open_store
from xqg_vdb.testing import HashEncoder


def records(n):
    return [{"id": str(i), "text": f"w{i % 20} w{i % 7}", "lang": "en"} for i in range(n)]


def test_encoding_ticks_by_batches_and_never_says_more_than_there_is(tmp_path):
    seen = []
    queries = [{"id": str(i), "generated_queries": {"sw": [f"w{i % 9}", f"w{i % 5}"]}} for i in range(0, 600, 2)]
    with (
        Encoder(write_tiny_encoder(tmp_path / "tiny"), batch_tokens=64) as encoder,
        load(
            write_lines(tmp_path / "corpus.jsonl", records(600)), "w", encoder=encoder, queries=queries,
            store=open_store(tmp_path / "s"),
            progress=lambda stage, done, total: seen.append((done, total)) if stage == "encoding" else None,
        ).collection,
    ):  # fmt: skip
        pass
    done = [row for row, _ in seen]
    assert done == sorted(done) and done[0] == 0 and done[-1] == 600 and {total for _, total in seen} == {600}
    first = [row for row in done if 0 < row < 512]
    assert len(first) > 20 and 511 in first, "the end of a window is told when it is written"


def test_nobody_else_hears_the_ticks():
    heard = []
    with ticks(heard.append):
        tick(3)
        with ticks(lambda texts: None):
            tick(4)
        tick(5)
    tick(6)
    assert heard == [3, 5]


def test_a_line_every_half_minute_without_a_terminal(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(progress_module, "monotonic", lambda: now)
    with bars(unit=" passages") as show:
        for second in range(91):
            now = 100.0 + second
            show("encoding", 2 * second, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "encoding: 60 of 1,000 passages, 2.0 a second, 0:07:50 to go",
        "encoding: 120 of 1,000 passages, 2.0 a second, 0:07:20 to go",
        "encoding: 180 of 1,000 passages, 2.0 a second, 0:06:50 to go",
    ]
    assert LINE_SECONDS == 30.0


@pytest.mark.parametrize(("stop", "kept"), [(1, "nothing was finished yet, so nothing is kept"), (2, "the first 512")])
def test_a_stopped_load_says_what_is_kept_and_goes_on(tmp_path, stop, kept):
    class Stopped(HashEncoder):
        windows = 0

        def encode_passages(self, texts):
            self.windows += 1
            if self.windows == stop:
                raise KeyboardInterrupt
            return super().encode_passages(texts)

    corpus, store = write_lines(tmp_path / "corpus.jsonl", records(600)), open_store(tmp_path / "s")
    options = LoadOptions(build=tmp_path / "b")
    with pytest.raises(KeyboardInterrupt, match=kept):
        load(corpus, "w", encoder=Stopped(), store=store, options=options)
    again = HashEncoder()
    load(corpus, "w", encoder=again, store=store, options=options).collection.close()
    assert again.texts_seen == 600 - 512 * (stop - 1)


LOGS = """
import logging
import xqg_vdb.store as store
opens = store.open_store
def open_store(*words, **options):
    logging.getLogger("xqg_vdb.store").info("opened")
    return opens(*words, **options)
store.open_store = open_store
"""


@pytest.mark.parametrize("words", [("--verbose", "list"), ("list", "--verbose"), ("list",), ("--quiet", "list")])
def test_verbose_shows_what_the_parts_log(tmp_path, words):
    done = run_cli(tmp_path, *words, before=LOGS)
    assert done.returncode == 0
    assert done.stderr.count(" xqg_vdb.store: opened\n") == ("--verbose" in words), done.stderr
    assert ("No collections yet" in done.stderr) == ("--quiet" not in words)
