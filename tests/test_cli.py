"""The commands as their users meet them: help, whole messages, exit codes, and what goes to which stream.

Real processes where streams, signals and locks matter, `main` in this process elsewhere; a minute real encoder.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import processes
import pytest
from cli_cases import command, environment, run_cli, write_inputs, write_lines, write_starter
from click.testing import CliRunner
from tiny_model import write_tiny_encoder

from xqg_vdb import files as disk
from xqg_vdb.cli import commands, main
from xqg_vdb.cli.commands import cli
from xqg_vdb.errors import DataError
from xqg_vdb.store.embedded import store as embedded

COMMANDS = sorted(cli.commands)
COLLECTION_COMMANDS = ["demo", "export", "info", "load", "search"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("models") / "tiny", calibration=0.5)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, model):
    """A folder with 30 passages, their queries and a collection `wiki` of them in `store`."""
    folder = tmp_path_factory.mktemp("loaded")
    write_inputs(folder, 30)
    done = run_cli(
        folder, "load", "corpus.jsonl", "wiki", "--queries", "queries.jsonl", "--encoder", model, "--path", "store"
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    """The current folder, empty, for `call`."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("XQG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def call(cwd, capsys, monkeypatch):
    """`main` with arguments in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["xqg-vdb", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return stop.value.code or 0, out, err

    return run


def corpus_of(folder, *records, name="corpus.jsonl"):
    return write_lines(folder / name, records)


# help


def test_every_command_is_listed():
    listed = CliRunner().invoke(cli, ["--help"]).output
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z]", listed, re.MULTILINE), name
    assert set(COLLECTION_COMMANDS) <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_that_it_accepts(name):
    text = CliRunner().invoke(cli, [name, "--help"], prog_name="xqg-vdb").output
    assert "\\b" not in text, "click's mark for 'do not wrap' is a backspace, which a raw docstring does not have"
    shown = text.partition("Example:")[2].partition("Options:")[0].replace("\\\n", " ")
    examples = re.findall(r"^ +(xqg-vdb .*)$", shown, re.MULTILINE)
    assert examples
    for line in examples:
        _, of, *arguments = shlex.split(line.replace("bench diff", "'bench diff'"))
        parent = click.Context(cli, **cli.context_settings)
        cli.commands[of].make_context(of, arguments, parent=parent)  # raises UsageError for a wrong option


def contexts(command_, name, parent=None):
    """The command's context and those of the commands inside."""
    own = click.Context(command_, info_name=name, parent=parent, terminal_width=80, max_content_width=80)
    yield own
    for inner, one in getattr(command_, "commands", {}).items():
        yield from contexts(one, inner, own)


def test_helps_fit_a_terminal_and_every_command_has_an_example():
    for context in contexts(cli, "xqg-vdb"):
        text = context.get_help()
        assert [line for line in text.splitlines() if len(line) > 80] == [], context.command_path
        assert context.parent is None or "Example:\n    xqg-vdb " in text, context.command_path


def test_what_a_user_does_not_say_is_accepted():
    for context in contexts(cli, "xqg-vdb"):
        for parameter in context.command.get_params(context):
            if not parameter.required:
                parameter.handle_parse_result(context, {}, [])  # raises BadParameter


def test_the_options_of_load_stand_in_sections():
    text = CliRunner().invoke(cli, ["load", "--help"]).output
    sections = {part.split(":\n")[0].split("\n")[-1]: part for part in re.split(r"\n\n(?=\S)", text)}
    for title, option in (
        ("Options", "--encoder"), ("Input", "--queries"), ("Recipe: how queries are folded in", "--alpha"),
        ("Layout of the collection", "--hnsw-m"), ("Where the data lives", "--url"),
    ):  # fmt: skip
        assert f"  {option} " in sections[title], title


@pytest.mark.parametrize(("typed", "offered"), [
    ("search w", ["plain,wiki"]), ("info ", ["plain,wiki"]), ("load a b --pool s", ["plain,shrunk", "plain,sum"]),
    ("sea", ["plain,search"]), ("bench diff --met", ["plain,--metric"]), ("info x", []),
    ("generate a b -l yo", ["plain,yo"]), ("search wiki x --passage-langs sw", ["plain,sw"]),
])  # fmt: skip
def test_the_shell_completes_commands_options_values_and_collections(loaded, typed, offered):
    words = ["xqg-vdb", *typed.split()]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "XQG_VDB_PATH": "store"}
    environment |= {
        "_XQG_VDB_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - (not typed.endswith(" "))),
    }
    argv = [sys.executable, "-c", "from xqg_vdb.cli import main; main()"]
    done = subprocess.run(argv, cwd=loaded, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == offered, done.stderr


def test_every_option_has_help_or_speaks_for_itself():
    silent = {"precision", "prompt"}
    for command_ in cli.commands.values():
        for parameter in command_.get_params(click.Context(command_)):
            if isinstance(parameter, click.Option) and parameter.name not in silent:
                assert parameter.help, f"{command_.name} {parameter.name}"


def test_version_and_short_help(call):
    code, out, err = call("--version")
    assert code == 0 and re.fullmatch(r"xqg-vdb, version \S+\n", out) and err == ""
    assert call("load", "-h")[0] == 0


# messages


def test_unknown_model(call, cwd, model):
    corpus_of(cwd, {"id": "1", "text": "w1"})
    (cwd / "tiny").symlink_to(model)
    assert call("load", "corpus.jsonl", "wiki", "--encoder", "tinny") == (
        3, "",
        "Error: There is no model 'tinny': give a model folder, a hub id (owner/model) or 'starter'."
        " Did you mean 'tiny'?\n",
    )  # fmt: skip


def test_a_hub_model_without_a_network(call, cwd):
    pytest.importorskip("torch")  # without it that is said before anything is downloaded
    corpus_of(cwd, {"id": "1", "text": "w1"})
    code, out, err = call("load", "corpus.jsonl", "wiki", "--encoder", "nobody/nothing")
    last = err.splitlines()[-1]
    assert (code, out) == (3, "")
    said = r"Error: There is no folder 'nobody/nothing', and it cannot be downloaded \(\w+\); without a network use .*"
    assert re.fullmatch(said, last)
    assert not any((cwd / "cache").rglob("model.json"))


def test_a_checkpoint_where_a_model_folder_is_needed(call, cwd):
    corpus_of(cwd, {"id": "1", "text": "w1"})
    (cwd / "checkpoint").mkdir()
    code, out, err = call("load", "corpus.jsonl", "wiki", "--encoder", "checkpoint")
    assert (code, out) == (3, "")
    assert err == (
        "Error: checkpoint has no model.json: if it is a checkpoint, run `xqg-vdb export checkpoint OUT` and use OUT.\n"
    )


def test_a_wrong_corpus_name_is_said_before_any_model_is_exported(call, cwd):
    corpus_of(cwd, {"id": "1", "text": "w1"})
    assert call("load", "corpsu.jsonl", "wiki") == (
        3, "", "Error: There is no file corpsu.jsonl; that folder has corpus.jsonl.\n"
    )  # fmt: skip
    assert call("load", "corpus.jsonl", "../wiki")[0] == 3
    assert call("load", "corpus.jsonl", "wiki", "--queries", "nothing.jsonl")[0] == 3
    assert sorted(path.name for path in cwd.iterdir()) == ["corpus.jsonl"]


BAD_CORPORA = {
    "no ids": (
        ['{"text": "w1"}'],
        "{corpus} line 1: no id (expected one of the keys id, _id, docid, id_); found 'text'; number them:"
        " jq -c '.' FILE | jq -c '. + {{id: \"\\(input_line_number)\"}}' > NEW.jsonl; correct the data, or use"
        " --max-rejects to continue without such records.",
    ),
    "duplicate": (
        ['{"id": "a", "text": "w1"}', '{"id": "b", "text": "w1"}', '{"id": "a", "text": "w2"}'],
        "{corpus} line 3: id 'a' appeared before with other content; correct the data, or use --max-rejects to continue"
        " without such records.",
    ),
    "empty": ([], '{corpus} holds no passage that can be used; expected lines such as {{"id": "1", "text": "…"}}.'),
    "blank lines": (
        ["", " "],
        '{corpus} holds no passage that can be used; expected lines such as {{"id": "1", "text": "…"}}.',
    ),
    "bad line": (
        ['{"id": "a", "text": "w1"}', "", '{"id": "b", "text": '],
        "{corpus} line 3: not JSON: unexpected end of data: line 1 column 21 (char 20); correct the data, or use"
        " --max-rejects to continue without such records.",
    ),
    "blank text": (
        ['{"id": "a", "text": "\\u200b "}'],
        "{corpus} line 1: text is blank; correct the data, or use --max-rejects to continue without such records.",
    ),
}


@pytest.mark.parametrize("case", BAD_CORPORA)
def test_bad_corpora(call, cwd, model, case):
    lines, message = BAD_CORPORA[case]
    (cwd / "corpus.jsonl").write_text("".join(line + "\n" for line in lines))
    assert call("load", "corpus.jsonl", "wiki", "--encoder", model, "--path", "store") == (
        3, "", f"Error: {message.format(corpus='corpus.jsonl')}\n"
    )  # fmt: skip
    assert not (cwd / "store").exists()
    corpus_of(cwd, {"id": "a", "text": "w1"})
    assert call("load", "corpus.jsonl", "wiki", "--encoder", model, "--path", "store")[0] == 0, "the next run continues"


def test_rejects_are_borne_and_written(call, cwd, model):
    (cwd / "corpus.jsonl").write_text('{"id": "a", "text": "w1"}\n{"text": "w2"}\n{"id": "a", "text": "w1"}\n')
    (cwd / "queries.jsonl").write_text('{"id": "a", "generated_queries": {"sw": ["w3"]}}\nno\n'
                                       '{"id": "z", "generated_queries": {"sw": ["w3"]}}\n')  # fmt: skip
    code, out, err = call("load", "corpus.jsonl", "wiki", "--encoder", model, "--path", "st ore", "--max-rejects", "1",
                          "--rejects", "bad.jsonl", "--queries", "queries.jsonl")  # fmt: skip
    assert (code, out) == (
        0,
        "wiki: 1 passages; queries folded in: 1 sw\nleft out: 1 duplicates, 1 rejected\n"
        "left out of the queries and questions: 1 rejected\n1 query records belong to no passage of this corpus\n",
    )
    assert err == f"next: xqg-vdb search wiki 'your question' --path 'st ore' --encoder {model}\n"
    assert json.loads((cwd / "bad.jsonl").read_text())["line"] == 2
    assert json.loads((cwd / "bad.queries.jsonl").read_text())["line"] == 2
    assert call(*shlex.split(err.removeprefix("next: xqg-vdb ")))[0] == 0


def test_a_collection_made_by_another_encoder(call, loaded, tmp_path):
    other = write_tiny_encoder(tmp_path / "other", seed=1)
    code, out, err = call("search", "wiki", "w1", "--path", loaded / "store", "--encoder", other)
    assert (code, out) == (4, "")
    prints = re.fullmatch(
        r"Error: Collection 'wiki' was made by tiny \(fp32, fingerprint (\w{16})\), not by tiny \(fp32, fingerprint"
        r" (\w{16})\): use that encoder, or load again.\n", err,
    )  # fmt: skip
    assert prints and prints[1] != prints[2]


def test_the_encoder_that_made_a_collection_is_found_by_name_only(call, loaded):
    code, out, err = call("search", "wiki", "w1", "--path", loaded / "store")
    assert (code, out) == (3, "")
    assert re.fullmatch(
        r"Error: Collection 'wiki' was made by an encoder from 'tiny' \(fingerprint \w{16}\), which cannot be found by"
        r" that name: give its model folder \(encoder, --encoder\).\n", err,
    )  # fmt: skip


def test_the_precision_that_made_a_collection_is_taken(call, cwd):
    """With int8 and fp32 of one model in the cache, a search takes the one that the collection was made with."""
    corpus_of(cwd, {"id": "1", "text": "w1 w2"}, {"id": "2", "text": "w3"})
    for seed, precision in enumerate(("int8", "fp32")):
        write_starter(cwd / "cache", precision=precision, seed=seed)
    assert call("load", "corpus.jsonl", "wiki", "--encoder", "cache/starter-fp32")[0] == 0
    code, out, _ = call("search", "wiki", "w1 w2", "--json")
    assert code == 0 and len(json.loads(out)[0]["hits"]) == 2
    code, out, _ = call("load", "corpus.jsonl", "wiki", "--json")
    assert code == 0 and json.loads(out)["unchanged"]


def test_unknown_collections(call, loaded, cwd):
    store = loaded / "store"
    for arguments in (["search", "wikki", "w1"], ["info", "wikki"]):
        assert call(*arguments, "--path", store) == (
            3, "", f"Error: There is no collection 'wikki' in {store}. Did you mean wiki? It has: wiki.\n"
        )  # fmt: skip
    assert call("search", "wiki", "w1") == (
        3, "", "Error: There is no collection 'wiki' in xqg-data: it has none yet; make one with `xqg-vdb load`.\n"
    )  # fmt: skip
    assert not (cwd / "xqg-data").exists(), "asking creates nothing"


def test_paths_below_a_regular_file(call, cwd, model):
    corpus = corpus_of(cwd, {"id": "1", "text": "w1"})
    below = f"{corpus.name}/below"
    said = "corpus.jsonl/below{} is not inside a folder; give another path."
    for arguments in (
        ["load", corpus, "wiki", "--encoder", model],
        ["search", "wiki", "w1"],
        ["list"],
        ["info", "wiki"],
    ):
        code, out, err = call(*arguments, "--path", below)
        assert (code, out) == (3, ""), arguments
        assert err in {f"Error: {said.format(rest)}\n" for rest in ("", "/wiki", "/wiki/CURRENT")}
    for option in ("--build", "--rejects"):
        (cwd / "bad.jsonl").write_text('{"id": "1", "text": "w1"}\n{}\n')
        code, out, err = call("load", "bad.jsonl", "wiki", "--encoder", model, option, below, "--max-rejects", 1)
        assert code in (3, 6) and out == "" and re.fullmatch(r"Error: corpus.jsonl/below\S* .*\.\n", err), err
    code, out, err = call("export", "starter:encoder", f"{below}/model")
    assert code in (3, 6) and out == "" and err.startswith("Error: ") and err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_paths_without_permission(call, cwd, model):
    corpus = corpus_of(cwd, {"id": "1", "text": "w1"})
    (cwd / "closed").mkdir(mode=0o500)
    code, out, err = call("load", corpus, "wiki", "--encoder", model, "--path", "closed/store")
    assert (code, out) == (6, "") and "may not be used (Permission denied)" in err


def test_a_cache_that_cannot_be_written(call, cwd, model, monkeypatch):
    corpus_of(cwd, {"id": "1", "text": "w1"})
    (cwd / "file").write_text("")
    monkeypatch.setenv("XQG_VDB_CACHE", "file/cache")
    code, out, err = call("load", "corpus.jsonl", "wiki", "--encoder", model)
    assert code in (3, 6) and out == "" and re.fullmatch(r"Error: file/cache/builds/wiki-\w+ .*\.\n", err)


def test_a_full_disk(call, cwd, model, monkeypatch):
    corpus_of(cwd, {"id": "1", "text": "w1"})
    usage = disk.shutil.disk_usage(cwd)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=100 * disk.MIB))
    code, out, err = call("load", "corpus.jsonl", "wiki", "--encoder", model, "--path", "store")
    assert (code, out, err) == (
        6, "",
        "Error: store/wiki needs 256 MiB of free disk, has 100 MiB; free some space and run the same command again: it"
        " continues where it stopped.\n",
    )  # fmt: skip
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=10 << 30))
    assert call("load", "corpus.jsonl", "wiki", "--encoder", model, "--path", "store")[0] == 0


def test_a_disk_that_is_full_for_the_vectors(call, cwd, model, monkeypatch):
    import errno

    from xqg_vdb import files

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    corpus_of(cwd, {"id": "1", "text": "w1"})
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_folder", full)
        code, out, err = call("load", "corpus.jsonl", "wiki", "--encoder", model, "--build", "build")
    assert (code, out) == (6, "")
    assert re.fullmatch(
        r"Error: The disk is full while writing build\S* \(.*\); free some space and run .* again\.\n", err
    )
    assert call("load", "corpus.jsonl", "wiki", "--encoder", model, "--build", "build")[0] == 0


HOLD = """
import sys
from xqg_vdb.store.embedded.store import EmbeddedStore
store = EmbeddedStore(sys.argv[1])
print(store.count("wiki"), flush=True)
sys.stdin.read()
"""


def test_a_store_that_another_process_has_open(loaded, model, call):
    with processes.start(
        [sys.executable, "-c", HOLD, str(loaded / "store")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "30\n"
        assert call("info", "wiki", "--path", loaded / "store")[0] == 0, "a card can be read all the same"
        done = run_cli(loaded, "search", "wiki", "w1", "--path", "store", "--encoder", model)
        assert (done.returncode, done.stdout) == (7, "")
        assert re.fullmatch(
            rf"Error: Collection 'wiki' in store is in use by process {other.pid} on \S+ since \S+; close that one, or"
            r" use a Qdrant server \(--url\) for several.\n", done.stderr,
        ), done.stderr  # fmt: skip
        other.stdin.close()


def test_a_collection_that_another_process_loads(cwd, model, call):
    from xqg_vdb.files import lock_folder
    from xqg_vdb.models.encoder import Encoder

    corpus_of(cwd, {"id": "1", "text": "w1"})
    holder = "import sys, time; from pathlib import Path; from xqg_vdb.{}; print(1, flush=True); sys.stdin.read()"
    with Encoder(model, threads=1) as encoder:
        ours = cwd / "cache" / "builds" / f"wiki-{encoder.facts.fingerprint}"
    ours.mkdir(parents=True)
    load_lock = cwd / "store" / "wiki" / "load.lock"
    load_lock.parent.mkdir(parents=True)
    for statement, said in (
        (f"files import lock_folder; held = lock_folder(Path({str(ours)!r}))",
         r"Error: Collection 'wiki' is being loaded already: \S+ is used by process {} on \S+ since \S+; wait until it"
         r" ends or use another folder \(--build\)\.\n"),
        (f"files import FileLock; held = FileLock.take(Path({str(load_lock)!r}), busy='')",
         r"Error: Collection 'wiki' in store is being loaded by process {} on \S+ since \S+\n"),
    ):  # fmt: skip
        with processes.start(
            [sys.executable, "-c", holder.format(statement)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout.readline() == "1\n"
            code, out, err = call("load", "corpus.jsonl", "wiki", "--encoder", model, "--path", "store")
            assert (code, out) == (7, "") and re.fullmatch(said.format(other.pid), err), err
            other.stdin.close()
    lock_folder(ours).release()
    assert call("load", "corpus.jsonl", "wiki", "--encoder", model, "--path", "store")[0] == 0


def test_a_server_that_is_away(call, cwd, model, monkeypatch):
    """Said before anything is encoded."""
    from xqg_vdb.store.server import client as retry

    corpus_of(cwd, {"id": "1", "text": "w1"})
    patient = retry.Server.__init__
    monkeypatch.setattr(
        retry.Server,
        "__init__",
        lambda self, where, *, deadline, secret: patient(self, where, deadline=0.2, secret=secret),
    )
    for arguments in (["load", "corpus.jsonl", "wiki", "--encoder", model], ["search", "wiki", "w1"], ["list"]):
        code, out, err = call(*arguments, "--url", "http://127.0.0.1:9")
        assert (code, out) == (5, "")
        assert re.fullmatch(
            r"Error: 127\.0\.0\.1:9 is away \(.*\); check that it runs, then run the same command"
            r" again\.\n",
            err,
        )
    assert not (cwd / "cache").exists()


def test_damaged_stores(call, cwd, model):
    corpus_of(cwd, {"id": "1", "text": "w1"})
    assert call("load", "corpus.jsonl", "wiki", "--encoder", model)[0] == 0
    (cwd / "xqg-data" / "wiki" / "v0001" / "card.json").write_text("{}")
    code, out, err = call("search", "wiki", "w1")
    assert (code, out) == (8, "") and re.fullmatch(
        r"Error: .*card.json is not a card \(.*\); load the collection again\.\n", err
    )
    assert call("load", "corpus.jsonl", "wiki", "--encoder", model)[0] == 0


USAGE = {
    "no arguments": ["load"],
    "an option that is none": ["load", "c", "wiki", "--alhpa", "0.3"],
    "alpha": ["load", "c", "wiki", "--alpha", "1.5"],
    "not a number": ["load", "c", "wiki", "--alpha", "nan"],
    "pool": ["load", "c", "wiki", "--pool", "max"],
    "threads": ["load", "c", "wiki", "--threads", "0"],
    "two places": ["list", "--path", "a", "--url", "http://localhost"],
    "no question": ["search", "wiki"],
    "two kinds of question": ["search", "wiki", "w1", "--queries", "questions.jsonl"],
    "k": ["search", "wiki", "w1", "-k", "0"],
    "huge k": ["search", "wiki", "w1", "-k", str(2**70)],
    "no such command": ["serach", "wiki", "w1"],
    "a file for a store": ["list", "--path", __file__],
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_errors(call, case):
    code, out, err = call(*USAGE[case])
    assert (code, out) == (2, "")
    assert err.startswith("Usage: xqg-vdb ") and "\nError: " in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--question-lang", "swahli"],
            "Error: 'swahli' is not a language code such as en or sw; perhaps sw (Swahili).\n",
        ),
        (
            ["--passage-langs", "englisch"],
            "Error: 'englisch' is not a language code such as en or sw; perhaps en (English)",
        ),
    ],
)
def test_wrong_languages(call, loaded, model, arguments, said):
    code, out, err = call("search", "wiki", "w1", "--path", loaded / "store", "--encoder", model, *arguments)
    assert (code, out) == (3, "") and err.startswith(said)


def test_a_blank_question(call, loaded, model):
    assert call("search", "wiki", " ", "--path", loaded / "store", "--encoder", model) == (
        3, "", "Error: Question '0' is blank: there is nothing to search for.\n"
    )  # fmt: skip


# output


def test_load_search_info_as_json(call, cwd, model):
    write_inputs(cwd, 20)
    code, out, err = call("load", "corpus.jsonl", "wiki", "--encoder", model, "--queries", "queries.jsonl", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["collection"] == "wiki" and report["passages"] == 20 and report["queries"] == {"ar": 20, "sw": 20}
    assert report["counts"] == {"read": 20, "accepted": 20, "duplicates": 0, "blank": 0, "rejected": 0}
    code, out, err = call(
        "search",
        "wiki",
        "w1 w2",
        "-k",
        3,
        "--passage-langs",
        "deu",
        "--encoder",
        model,
        "--question-lang",
        "swa",
        "--json",
    )
    (answer,) = json.loads(out)
    assert (code, err) == (0, "")
    assert (answer["id"], answer["text"], answer["lang"], len(answer["hits"])) == ("0", "w1 w2", "sw", 3)
    assert all(
        set(hit) == {"id", "score", "text", "title", "lang", "meta", "span"} and hit["lang"] == "de"
        for hit in answer["hits"]
    )
    code, out, err = call("info", "wiki", "--json")
    card = json.loads(out)
    assert (code, err, card["count"], card["query_langs"], card["encoder"]["dim"]) == (0, "", 20, ["ar", "sw"], 12)


def test_info_in_words(call, loaded):
    code, out, err = call("info", "wiki", "--path", loaded / "store")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        r"passages     30 \(loaded 20\S+, v0001\)\nencoder      tiny fp32, 12 dimensions, fingerprint \w{16}\n"
        r"distance     cosine\nqueries      ar, sw\nrecipe       alpha 0.3, pool shrunk\ncalibration  λ = 0.5\n"
        r"languages    10 de, 20 en\nindex        green, \d+ of 30 vectors in a graph, \d segments\n"
        r"disk         [\d.]+ MiB\n", out,
    )  # fmt: skip


def test_an_empty_store_has_no_names_on_stdout(call):
    assert call("list") == (0, "", "No collections yet; make one with `xqg-vdb load` (see its --help).\n")
    assert call("list", "--json") == (0, "[]\n", "")


def test_search_prints_hits_and_nothing_else(call, loaded, model):
    arguments = ["search", "wiki", "w1 w2", "-k", 2, "--path", loaded / "store", "--encoder", model]
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"( \d  0\.\d{3}  p\d+  \[(en|de)\]  w\d+\n    (w\d+ ){7}w\d+\n){2}", out)
    code, out, err = call(*arguments, "--passage-langs", "yo")
    nothing = "Nothing found: no passage of the collection has these languages and fields.\n"
    assert (code, out, err) == (0, "", nothing)
    assert call(*arguments, "--where", f"year={10**30}") == (0, "", nothing)
    past = "Nothing found: no passage of the collection stands behind the first 99.\n"
    assert call(*arguments, "--offset", 99) == (0, "", past)


def test_questions_without_texts_are_named_with_what_can_be_done(call, loaded, model, tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"id": "1", "text": " "}\n')
    code, _, err = call("search", "wiki", "--questions", tmp_path / "questions.jsonl", "--path", loaded / "store",
                        "--encoder", model)  # fmt: skip
    assert (code, err) == (3, f"Error: {tmp_path}/questions.jsonl line 1: text is blank; correct the data.\n")


def test_no_calibration_changes_scores(call, loaded, model):
    arguments = [
        "search",
        "wiki",
        "w1 w2",
        "--path",
        loaded / "store",
        "--encoder",
        model,
        "--question-lang",
        "sw",
        "--json",
    ]
    calibrated, plain = (json.loads(call(*arguments, *more)[1])[0] for more in ([], ["--no-calibration"]))
    assert [hit["score"] for hit in calibrated["hits"]] != [hit["score"] for hit in plain["hits"]]


def test_search_with_a_file_of_questions(call, loaded, model, cwd):
    write_lines(cwd / "asked.jsonl", [{"id": "a", "text": "w1", "lang": "swa"}, {"id": "b", "question": "w2 w3"}])
    (cwd / "plain.txt").write_text("w1\n\nw2 w3\n")
    where = ["--path", loaded / "store", "--encoder", model, "-k", 1]
    code, out, err = call("search", "wiki", "--questions", "asked.jsonl", "--question-lang", "ar", "--json", *where)
    answers = json.loads(out)
    assert (code, err) == (0, "")
    assert [(a["id"], a["text"], a["lang"]) for a in answers] == [("a", "w1", "sw"), ("b", "w2 w3", "ar-Latn")]
    code, out, err = call("search", "wiki", "--questions", "plain.txt", *where)
    lines = out.splitlines()
    assert (code, err, lines[0], lines[3], len(lines)) == (0, "", "1\tw1", "3\tw2 w3", 6)
    (cwd / "none.txt").write_text("\n")
    assert call("search", "wiki", "--questions", "none.txt", *where) == (
        3, "", "Error: none.txt holds no question; expected one a line, as text or as JSON with id and text.\n"
    )  # fmt: skip


def test_plain_and_restricted_loads_say_what_was_folded_in(call, cwd, model):
    write_inputs(cwd, 8)
    arguments = ["load", "corpus.jsonl", "wiki", "--encoder", model, "--queries", "queries.jsonl", "--build", "b"]
    assert call(*arguments, "--query-langs", "swa")[1] == "wiki: 8 passages; queries folded in: 8 sw\n"
    assert call(*arguments, "--alpha", "0", "--query-langs", "sw")[1] == "wiki: 8 passages; queries folded in: none\n"
    assert "plain passages" in call("info", "wiki")[1]
    code, out, err = call(*arguments, "--query-langs", "yo")
    assert (code, out) == (3, "") and "no generated queries in yo" in err


def test_environment_variables_say_where_the_data_lives(call, cwd, loaded, monkeypatch):
    monkeypatch.setenv("XQG_VDB_PATH", str(loaded / "store"))
    assert call("list")[1].startswith("wiki  ")
    monkeypatch.setenv("XQG_VDB_URL", "ftp://nowhere")
    code, _, err = call("list")
    assert code == 3 and err.startswith("Error: The address of a Qdrant server looks like")
    assert call("list", "--path", loaded / "store")[1].startswith("wiki  ")


def test_an_output_that_is_closed_ends_quietly(loaded, model):
    """Far more output than a pipe holds, and a reader that leaves after one line."""
    write_lines(loaded / "many.jsonl", ({"id": str(i), "text": f"w{i % 40}"} for i in range(400)))
    argv = command("search", "wiki", "--questions", "many.jsonl", "--path", "store", "--encoder", model)
    with processes.start(
        argv, cwd=loaded, env=environment(loaded), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"0\tw0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def test_a_c_locale_prints_utf8(tmp_path, model):
    write_lines(tmp_path / "corpus.jsonl", [{"id": "نيل", "title": "Größe", "text": "河 w1 🌊", "lang": "ar"}])
    assert run_cli(tmp_path, "load", "corpus.jsonl", "wiki", "--encoder", model, more=ASCII).returncode == 0
    for flags in ([], ["--json"]):
        done = run_cli(tmp_path, "search", "wiki", "w1", "--encoder", model, *flags, more=ASCII, text=False)
        assert done.returncode == 0 and done.stderr == b""
        assert all(word in done.stdout.decode() for word in ("نيل", "Größe", "河", "🌊"))
    done = run_cli(tmp_path, "search", "größe", "w1", more={"LC_ALL": "C"}, text=False)
    assert done.returncode == 3 and "'größe' cannot name a collection" in done.stderr.decode()
    done = run_cli(tmp_path, "search", "größe", "w1", more=ASCII, text=False)  # such a Python cannot read its arguments
    assert done.returncode == 3 and b"Traceback" not in done.stderr


def test_a_path_that_is_no_unicode_is_shown_not_crashed_on(tmp_path):
    name = os.fsdecode(b"\xff.jsonl")
    done = run_cli(tmp_path, "load", name, "wiki")
    assert done.returncode == 3 and "Traceback" not in done.stderr and "udcff.jsonl" in done.stderr


def test_progress_goes_to_stderr_and_only_on_a_terminal(tmp_path, model):
    import pty
    import termios

    write_inputs(tmp_path, 40)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    argv = command("load", "corpus.jsonl", "wiki", "--encoder", model, "--json")
    with processes.start(
        argv, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        out, shown = process.stdout.read(), b""
        while True:
            try:
                block = os.read(ours, 4096)
            except OSError:
                break
            shown += block
        assert process.wait() == 0
    os.close(ours)
    assert json.loads(out)["passages"] == 40
    assert b"encoding" in shown and b"40/40" in shown and b"Traceback" not in shown


def test_demo_end_to_end_with_a_stand_in(call, cwd):
    """The sample corpus through the whole flow; the encoder knows no such words, so only the form is looked at."""
    write_starter(cwd / "cache")
    code, out, err = call("demo", "--json")
    result = json.loads(out)
    assert code == 0 and result["questions"] == 600 and result["passages"] == 60
    assert set(result["macro"]) == {"plain", "calibrated", "calibrated + xQG"} and len(result["recall"]) == 10
    code, out, err = call("demo", "--path", "other place")
    assert code == 0 and out.startswith("\nRecall@1 of 600 held-out questions over 60 passages\n")
    following = [line.strip() for line in err.splitlines() if line.startswith("  xqg-vdb ")]
    assert len(following) == 4 and following[2].startswith("xqg-vdb serve --path 'other place'  # a page")
    for line in following[:2] + following[3:]:
        assert call(*shlex.split(line)[1:])[0] == 0, line


def test_an_error_of_our_own_making_keeps_its_traceback(monkeypatch, cwd):
    monkeypatch.setattr(embedded.EmbeddedStore, "names", lambda self: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["xqg-vdb", "list"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_no_process_is_left_waiting_for_an_answer():
    """`--help` waits for nothing: else the limit of a test ends this one."""
    done = subprocess.run(command("--help"), capture_output=True, cwd=Path(__file__).parent, check=True)
    assert done.stdout


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("f4")),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
        ImportError("/x/onnxruntime.so: failed to map segment from shared object"),
        Exception("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
        Exception("Failed to allocate memory for requested buffer of size 9"),
    ],
)
def test_too_little_memory_is_a_sentence_with_a_way_on(error, capsys):
    assert commands._explained(error) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: There is not enough memory, or too few processes are allowed (")
    assert said.endswith("then run the same command again; what was committed is kept.\n") and "()" not in said


def test_a_name_with_such_words_is_none(capsys):
    assert commands._explained(DataError("There is no file bad_alloc.jsonl; check the path.")) == 3
    assert capsys.readouterr().err == "Error: There is no file bad_alloc.jsonl; check the path.\n"
    with pytest.raises(RuntimeError, match="of ours"):
        commands._explained(RuntimeError("a mistake of ours"))
