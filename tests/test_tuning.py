"""Tuning and audit: known answers, and the commands as their users meet them."""

import json
import random
import shlex

import numpy as np
import pytest
from cli_cases import run_cli, sentence, write_lines
from click.testing import CliRunner
from tiny_model import write_tiny_encoder

from xqg_vdb import Recipe, Retriever, load
from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.cli.commands import cli
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.evaluate.metrics import parse_metrics
from xqg_vdb.store import open_store
from xqg_vdb.testing import HashEncoder
from xqg_vdb.tune.audit import audit
from xqg_vdb.tune.tune import NO_HELP, _split, choose, hash_order, labelled, tune
from xqg_vdb.types import Question, Search

(R1,) = parse_metrics(["R@1"])
SETTINGS = {"sample": 500, "progress": lambda *_: None}


def encoder(**options):
    means = LanguageMeans({"sw": np.full(32, 0.05, np.float32)}, {"sw": 3}, "bank")
    return HashEncoder(calibration=0.5, language_means=means, **options)


def write_world(folder, *, n=60, queries=3, useful=True, seed=0):
    """Passages of English words; questions and queries in words of another language, which only the queries link.

    useful: queries hold the words that questions ask for; otherwise they hold anything.
    """
    folder.mkdir(exist_ok=True)
    rng = random.Random(seed)
    corpus, generated, asked, qrels = [], [], [], []
    for i in range(n):
        corpus.append({"id": f"p{i}", "text": " ".join(f"en{rng.randrange(400)}" for _ in range(6)), "lang": "en"})
        own = {lang: [f"{lang}{i}w{j}" for j in range(4)] for lang in ("sw", "yo")}
        texts = {
            lang: [" ".join(rng.sample(words, 3) if useful else [f"x{rng.random()}"]) for _ in range(queries)]
            for lang, words in own.items()
        }
        generated.append({"id": f"p{i}", "generated_queries": texts})
        for lang, words in own.items():
            asked.append({"id": f"q{i}{lang}", "text": " ".join(rng.sample(words, 3) + corpus[i]["text"].split()[:1]),
                          "lang": lang})  # fmt: skip
            qrels.append(f"q{i}{lang} 0 p{i} 1\n")
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "queries.jsonl", generated)
    write_lines(folder / "questions.jsonl", asked)
    (folder / "qrels.txt").write_text("".join(qrels))
    return folder


def read_labelled(folder, made, **changed):
    files = {"questions": folder / "questions.jsonl", "qrels": folder / "qrels.txt", "folder": folder / "kept"}
    return labelled(
        folder / "corpus.jsonl", [folder / "queries.jsonl"], encoder=made, **{**SETTINGS, **files, **changed}
    )


# choosing


def test_useful_queries_raise_alpha_and_the_held_out_half_agrees(tmp_path):
    found = choose(read_labelled(write_world(tmp_path), encoder()), metric=R1)
    assert found.chosen.recipe.alpha > 0.0
    plain = found.held_out["plain"].macro
    assert plain.system > plain.baseline + 0.2 and plain.p_permutation < 0.01
    assert sum(found.questions.values()) + sum(found.held_out_questions.values()) == 120
    assert dict(found.alphas)[found.chosen.recipe.alpha] == pytest.approx(found.chosen.value)
    assert found.chosen.value >= found.default.value


def test_queries_that_do_not_help_are_told_in_words(tmp_path):
    found = choose(read_labelled(write_world(tmp_path, useful=False), encoder()), metric=R1)
    assert found.notes[-1] == NO_HELP and "write better ones with a larger model" in NO_HELP
    assert NO_HELP not in choose(read_labelled(write_world(tmp_path / "good"), encoder()), metric=R1).notes


def test_what_is_in_memory_is_tuned_like_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))
    files = {"queries": tmp_path / "queries.jsonl", "questions": tmp_path / "questions.jsonl"}
    write_world(tmp_path)
    from_files = tune(tmp_path / "corpus.jsonl", qrels=tmp_path / "qrels.txt", encoder=encoder(), metric="R@1", **files)
    corpus, queries, questions = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("corpus", "queries", "questions")
    )
    qrels = {question["id"]: {f"p{question['id'][1:-2]}": 1} for question in questions}
    given = {"queries": queries, "questions": questions, "qrels": qrels}
    assert tune(corpus, encoder=encoder(), metric="R@1", **given) == from_files


def test_ties_keep_the_default(tmp_path):
    """Questions that find their passage anyhow: nothing can be better than the default."""
    write_world(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "questions.jsonl", [{"id": r["id"], "text": r["text"], "lang": "sw"} for r in records])
    (tmp_path / "qrels.txt").write_text("".join(f"{r['id']} 0 {r['id']} 1\n" for r in records))
    found = choose(read_labelled(tmp_path, encoder()), metric=parse_metrics(["R@10"])[0])
    assert (found.chosen.recipe, found.chosen.strength) == (Recipe(), 0.5)


def test_a_value_is_what_a_loaded_collection_scores(tmp_path):
    """The chosen recipe, loaded for real, answers the held-out questions as the report says."""
    made = encoder()
    data = read_labelled(write_world(tmp_path), made)
    found = choose(data, metric=R1)
    made.calibration = found.chosen.strength
    with load(
        tmp_path / "corpus.jsonl",
        "w",
        encoder=made,
        queries=tmp_path / "queries.jsonl",
        recipe=found.chosen.recipe,
        store=open_store(tmp_path / "store"),
    ).collection as collection:
        asked = [Question(r["id"], r["text"], r["lang"])
                 for r in map(json.loads, (tmp_path / "questions.jsonl").read_text().splitlines())]  # fmt: skip
        answers = Retriever(made, collection).run(asked, Search(1, exact=True))
    right = {a.question.id: a.hits[0].id == a.question.id[1:-2].join(["p", ""]) for a in answers}
    _, held = _split(data, R1)
    own = held.by_id(found.chosen)
    assert sum(own.values()) == sum(right[qid] for qid in own)


def test_both_halves_never_share_a_passage(tmp_path):
    dev, held = _split(read_labelled(write_world(tmp_path), encoder()), R1)
    assert not {qid[:-2] for qid in dev.ids} & {qid[:-2] for qid in held.ids}


def test_nothing_is_encoded_twice(tmp_path):
    made = encoder()
    read_labelled(write_world(tmp_path), made)
    seen = made.texts_seen
    read_labelled(tmp_path, made)
    assert made.texts_seen == seen


def test_questions_of_another_corpus(tmp_path):
    write_world(tmp_path)
    (tmp_path / "qrels.txt").write_text("q0sw 0 elsewhere 1\n")
    with pytest.raises(DataError, match=r"No question in .* are the ids the same"):
        read_labelled(tmp_path, encoder())


def test_a_head_start_of_passages_with_queries_is_told(tmp_path):
    write_world(tmp_path)
    lines = (tmp_path / "queries.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "queries.jsonl").write_text("".join(lines[:20]))
    kept = [line for line in (tmp_path / "qrels.txt").read_text().splitlines(keepends=True)
            if int(line.split()[2][1:]) < 20]  # fmt: skip
    (tmp_path / "qrels.txt").write_text("".join(kept))
    notes = read_labelled(tmp_path, encoder()).notes
    assert "100% of the passages asked for have queries, but 0% of the others" in notes[0]
    assert "80 questions without a relevant passage in the corpus are left out" in notes[1]


# the audit


def loaded(folder, made, **options):
    return load(folder / "corpus.jsonl", "w", encoder=made, store=open_store(folder / "store"), **options).collection


def test_audit_against_a_search_of_every_query(tmp_path):
    made = encoder()
    write_world(tmp_path)
    lines = (tmp_path / "queries.jsonl").read_text() + '{"id": "gone", "generated_queries": {"sw": ["w"]}}\n'
    (tmp_path / "queries.jsonl").write_text(lines)
    with loaded(tmp_path, made) as collection:
        found = audit(collection, [tmp_path / "queries.jsonl"], encoder=made, folder=tmp_path / "kept", k=3)
        hits = {}
        for record in map(json.loads, lines.splitlines()):
            for lang, texts in record["generated_queries"].items():
                text = texts[hash_order(record["id"]) % len(texts)]
                (answer,) = collection.nearest(made.encode_queries([text], calibrate=False), Search(3))
                hits.setdefault(lang, []).append(any(hit.id == record["id"] for hit in answer))
    assert (found.passages, found.in_collection, found.strangers, found.first_strangers) == (60, 60, 1, ("gone",))
    for one in found.languages:
        expected = hits[one.lang][:60]
        assert one.plain.value == pytest.approx(np.mean(expected)) and one.queries == 60 and not one.folded
        assert one.plain.low <= one.plain.value <= one.plain.high
    recalls = [one.calibrated.value for one in found.languages]
    assert recalls == sorted(recalls) and 0 < len(found.lost) < 60


def test_a_collection_with_the_queries_folded_in_is_marked(tmp_path):
    made = encoder()
    write_world(tmp_path)
    with loaded(
        tmp_path, made, queries=tmp_path / "queries.jsonl", recipe=Recipe(alpha=0.9, query_langs=("sw",))
    ) as wiki:
        found = audit(wiki, [tmp_path / "queries.jsonl"], encoder=made, folder=tmp_path / "kept")
    assert {one.lang: one.folded for one in found.languages} == {"sw": True, "yo": False}
    assert found.languages[0].lang == "yo"


def test_audit_refuses_another_encoder_and_other_queries(tmp_path):
    made = encoder()
    write_world(tmp_path)
    with loaded(tmp_path, made) as collection:
        with pytest.raises(MismatchError, match="use that encoder"):
            audit(collection, [tmp_path / "queries.jsonl"], encoder=encoder(name="other"), folder=tmp_path / "kept")
        write_lines(tmp_path / "others.jsonl", [{"id": "z", "generated_queries": {"sw": ["w"]}}])
        with pytest.raises(DataError, match=r"No query of .*others.jsonl belongs to a passage of collection 'w'"):
            audit(collection, [tmp_path / "others.jsonl"], encoder=made, folder=tmp_path / "kept")


# the commands


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A corpus with two queries and a question a language, and a tiny real encoder."""
    folder = tmp_path_factory.mktemp("tune")
    write_tiny_encoder(folder / "tiny", calibration=0.5)
    rng = random.Random(1)
    write_lines(folder / "corpus.jsonl", ({"id": f"p{i}", "text": sentence(rng, 8), "lang": "en"} for i in range(40)))
    write_lines(folder / "queries.jsonl", (
        {"id": f"p{i}", "generated_queries": {c: [sentence(rng, 4) for _ in range(2)] for c in ("sw", "ar")}}
        for i in range(40)
    ))  # fmt: skip
    asked = [{"id": f"q{i}{c}", "text": sentence(rng, 4), "lang": c} for i in range(40) for c in ("sw", "ar")]
    write_lines(folder / "questions.jsonl", asked)
    (folder / "qrels.txt").write_text("".join(f"q{i}{c} 0 p{i} 1\n" for i in range(40) for c in ("sw", "ar")))
    return folder


def test_the_line_that_tune_prints_is_accepted_by_load(desk):
    asked = ["--queries", "queries.jsonl", "--questions", "questions.jsonl", "--qrels", "qrels.txt"]
    done = run_cli(desk, "tune", "corpus.jsonl", *asked, "--encoder", "tiny")
    assert done.returncode == 0, done.stderr
    assert "R@10, macro over 2 languages; 40 passages, 80 questions" in done.stdout
    assert "note: fewer than 30 held-out questions in ar-Latn, sw" in done.stdout
    line = shlex.split(done.stdout.splitlines()[-1])
    assert line[:4] == ["xqg-vdb", "load", "corpus.jsonl", "NAME"] and "--calibration" in line
    assert run_cli(desk, *line[1:], "--path", "pasted").returncode == 0
    again = run_cli(desk, "tune", "corpus.jsonl", *asked, "--encoder", "tiny", "--json")
    found = json.loads(again.stdout)
    assert shlex.split(found["command"]) == line
    assert set(found["held_out"]) == {"plain", "calibrated", "default"}


def test_audit_command(desk):
    assert run_cli(desk, "load", "corpus.jsonl", "wiki", "--encoder", "tiny", "--path", "s").returncode == 0
    done = run_cli(desk, "audit", "wiki", "queries.jsonl", "--encoder", "tiny", "--path", "s", "-k", "3")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.startswith("wiki: 40 of 40 passages asked for; recall@3\n")
        and "found by no language:" in done.stdout
        and "note: an estimate without labels" in done.stdout
        and "warning: 40 queries are in Latin letters (-Latn)" in done.stdout
    )
    done = run_cli(desk, "audit", "wiki", "queries.jsonl", "--encoder", "tiny", "--path", "s", "--json")
    found = json.loads(done.stdout)
    assert {one["lang"] for one in found["languages"]} == {"sw", "ar-Latn"} and isinstance(found["lost"], list)


def test_wrong_use_is_told_before_a_model_is_exported():
    runner = CliRunner()
    for given in ([], ["--qrels", "x"], ["--questions", "x"]):
        done = runner.invoke(cli, ["tune", "c.jsonl", "--queries", "q.jsonl", *given])
        assert done.exit_code == 2 and "tune needs --questions and --qrels: write down questions" in done.output
        assert "or keep the default recipe: xqg-vdb load CORPUS NAME --queries FILE" in done.output
    done = runner.invoke(cli, ["load", "c.jsonl", "w", "--calibration", "nan"])
    assert done.exit_code == 2 and "finite" in done.output
    done = runner.invoke(cli, ["tune", "c.jsonl", "--queries", "nowhere.jsonl", "--questions", "q", "--qrels", "r"])
    assert isinstance(done.exception, DataError) and "nowhere.jsonl" in str(done.exception)
