"""Ctrl-C and SIGTERM: the batch is finished, what is kept is said, the exit code tells the signal, nothing is lost."""

import json
import os
import signal
import subprocess
import time

import processes
import pytest
from cli_cases import command, environment, run_cli, run_here, write_inputs, write_lines
from generation_cases import FakeGenerator, write_corpus
from tiny_model import write_tiny_encoder

from xqg_vdb.generate.run import Job, generate_file

SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from generation_cases import FakeGenerator
import xqg_vdb.generate.local as local
class Slow(FakeGenerator):
    def generate_batch(self, batch, **options):
        with open("beat", "a") as file:
            file.write("x")
        time.sleep({pause})
        return super().generate_batch(batch, **options)
local.open_generator = lambda *words, **options: Slow()
"""
WORDS = ("generate", "c.jsonl", "q.jsonl", "--generator", "fake", "-l", "de", "-n", "2")


def slow(pause):
    return SLOW.format(tests=os.path.dirname(__file__), pause=pause)


def started(folder, *words, before):
    process = processes.start(
        command(*words, before=before), cwd=folder, env=environment(folder), stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not (folder / "beat").exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_stops_after_its_batch_and_the_same_command_goes_on(tmp_path, number, code):
    corpus = write_corpus(tmp_path / "c.jsonl", 12)
    process = started(tmp_path, *WORDS, before=slow(1.0))
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in said
    assert "Interrupted; 3 of 12 passages are kept: run the same command again to continue." in said
    done = run_cli(tmp_path, *WORDS, "--json", before=slow(0.0))
    assert done.returncode == 0 and json.loads(done.stdout)["resumed"] == 3, done.stderr
    generate_file(corpus, tmp_path / "whole.jsonl", generator=FakeGenerator(), job=Job(("de",), 2))
    assert (tmp_path / "q.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


NO_THREAD = """
import threading
def start(self):
    raise RuntimeError("can't start new thread")
threading.Timer.start = start
"""


@pytest.mark.parametrize("more", ["", NO_THREAD])
def test_a_second_signal_stops_at_once(tmp_path, more):
    write_corpus(tmp_path / "c.jsonl", 12)
    process = started(tmp_path, *WORDS, before=slow(30.0) + more)
    process.send_signal(signal.SIGINT)
    assert "Stopping when this batch is committed" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143 and "Stopped at once" in said and "Traceback" not in said


def test_a_long_batch_does_not_hold_the_process(tmp_path):
    write_corpus(tmp_path / "c.jsonl", 12)
    process = started(tmp_path, *WORDS, before=slow(30.0))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["click", "xqg_vdb.cli.commands", "xqg_vdb.cli.search", "xqg_vdb.errors"])
def test_a_signal_amid_the_imports_ends_without_a_traceback(tmp_path, number, module):
    hook = f"""
import os, sys
class Hook:
    def find_spec(name, *rest):
        if name == {module!r}:
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Hook)
"""
    done = run_cli(tmp_path, "versions", "nothing", before=hook)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


def test_a_closed_standard_error_and_no_home_end_in_the_right_code(tmp_path):
    write_lines(tmp_path / "c.jsonl", [{"id": "1", "text": "a"}])
    script = 'exec "$@" 2>&-'
    argv = ["sh", "-c", script, "sh", *command("load", "nothing.jsonl", "wiki")]
    assert subprocess.run(argv, cwd=tmp_path, env=environment(tmp_path), check=False).returncode == 3
    homeless = "import pathlib, os\nos.environ.pop('XQG_VDB_CACHE')\ndef gone(cls): raise RuntimeError\n"
    done = run_cli(tmp_path, "load", "c.jsonl", "wiki", before=homeless + "pathlib.Path.home = classmethod(gone)")
    assert done.returncode == 3 and "This user has no home folder: set XQG_VDB_CACHE" in done.stderr


def test_quiet_says_errors_only(tmp_path):
    write_corpus(tmp_path / "c.jsonl", 3)
    for words in (("--quiet", *WORDS), (*WORDS, "--quiet")):
        assert run_cli(tmp_path, *words, before=slow(0.0)).stderr == ""
    assert "no file" in run_cli(tmp_path, "--quiet", "generate", "x.jsonl", *WORDS[2:], before=slow(0.0)).stderr


def test_a_log_file_has_what_is_said_and_what_the_parts_log(tmp_path):
    write_corpus(tmp_path / "c.jsonl", 3)
    done = run_cli(tmp_path, "--quiet", "--log-file", "log.txt", *WORDS, before=slow(0.0))
    assert done.returncode == 0 and done.stderr == ""
    assert run_cli(tmp_path, "load", "nothing.jsonl", "w", "--log-file", "log.txt").returncode == 3
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert sum(" INFO xqg_vdb.said: xqg-vdb " in line for line in lines) == 2
    assert "Error: There is no file" in lines[-1] and len(lines) > 3
    done = run_here(tmp_path, "--log-file", "nowhere/log.txt", "list")
    assert done.returncode == 2 and "nowhere/log.txt cannot be written" in done.stderr


WRITING = """
import time
from pathlib import Path
import xqg_vdb.index.write as writing
import xqg_vdb.store.embedded.writer as writer
writing.COMMIT_EVERY = 16
upsert = writer._EmbeddedWriter.upsert
def slowly(self, batch):
    upsert(self, batch)
    Path("beat").write_text("x")
    time.sleep(0.5)
writer._EmbeddedWriter.upsert = slowly
"""


def test_ctrl_c_while_points_are_written_says_so_and_the_same_command_goes_on(tmp_path):
    write_inputs(tmp_path, 80)
    write_tiny_encoder(tmp_path / "tiny")
    words = ("load", "corpus.jsonl", "wiki", "--encoder", "tiny")
    process = started(tmp_path, *words, before=WRITING)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    assert "Interrupted; what was committed is kept: run the same command again to continue." in said
    done = run_cli(tmp_path, *words)
    assert done.returncode == 0 and done.stdout.startswith("wiki: 80 passages"), done.stderr
    assert "80 points" in run_cli(tmp_path, "verify", "wiki").stdout
