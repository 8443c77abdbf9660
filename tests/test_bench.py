"""The harness: a suite's numbers are those of `load` and `Retriever`; controls control; nothing is computed twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
from bench_cases import encoder, run, value, write_afriqa, write_queries
from hypothesis import given, settings
from hypothesis import strategies as st
from rankings import assert_same, scored

from xqg_vdb import Recipe, Retriever, load
from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.cells import run_cell
from xqg_vdb.evaluate.datasets import load_task
from xqg_vdb.evaluate.matrix import per_query
from xqg_vdb.evaluate.metrics import macro_mean, parse_metrics, read_run
from xqg_vdb.evaluate.records import Report
from xqg_vdb.evaluate.suite import Comparison, Suite, SweepPlan, System, preset, read_suite
from xqg_vdb.evaluate.systems import place, prepare, rows_of
from xqg_vdb.index.encode import digest_of, encode_cached, encode_query_files
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.store import open_store
from xqg_vdb.types import Hybrid, Search


@pytest.fixture
def data(tmp_path):
    """A folder with the miniature data and a query file for it."""
    write_afriqa(tmp_path)
    write_queries(tmp_path / "queries.jsonl", load_task("afriqa", tmp_path))
    return tmp_path


def suite(data, **more):
    made = preset("afriqa", queries=data / "queries.jsonl")
    return replace(made, **{"search": "memory", "depth": 10, **more})


def test_a_system_is_what_load_and_retriever_do(data):
    """The twin: the product itself, from files to hits."""
    task, made = load_task("afriqa", data), encoder()
    corpus = data / "corpus.jsonl"
    records = [{"id": p.id, "title": p.title, "text": p.text, "lang": "en"} for p in task.passages]
    corpus.write_text("\n".join(map(json.dumps, records)))
    with open_store(data / "store") as store:
        collection = load(corpus, "c", encoder=made, queries=data / "queries.jsonl", store=store).collection
        answers = Retriever(made, collection).run(task.queries, Search(10, exact=True))
        theirs = {a.question.id: scored(a.hits) for a in answers}
    report = run(suite(data), data, made=made)
    ours = read_run(_run(data, "calibrated + xQG"))
    same_runs(ours, theirs)
    metric = parse_metrics(["R@10"])[0]
    expected = macro_mean(per_query(theirs, task.qrels, metrics=[metric])[metric], groups=task.groups)
    assert value(report, "calibrated + xQG") == pytest.approx(expected)


def same_runs(found, expected):
    assert found.keys() == expected.keys()
    for qid, hits in expected.items():
        assert_same(found[qid], hits, atol=1e-4)  # a card keeps means in 16 bits


def _run(data, system):
    name = "".join(char if char.isalnum() or char in "+-_." else "-" for char in system)
    return data / "out" / "runs" / f"afriqa.{name}.trec.gz"


@pytest.mark.parametrize("search", ["exact", "graph"])
def test_a_real_collection_ranks_as_the_matrix_does(data, search):
    """Graph search is exact on collections as small as this."""
    task, made = load_task("afriqa", data), encoder()
    material = prepare(task, encoder=made, folder=data / "v")
    queries = encode_query_files(
        [data / "queries.jsonl"], [p.id for p in material.passages], encoder=made, folder=data / "v"
    )
    placed = place(System("s", queries="q"), material, encoder=made, queries=queries)
    options = {"metrics": ["R@1", "MRR@10", "R@2kt", "R@2kt strict"], "depth": 10}
    memory, in_memory = run_cell(task, material.passages, placed, **options)
    with open_store(data / "store") as store:
        asked, ask = [], store.search
        store.search = lambda name, rows, wanted: asked.append(wanted) or ask(name, rows, wanted)
        search = Search(exact=search == "exact", ef=70)
        cell, found = run_cell(task, material.passages, placed, search=search, store=store, **options)
        assert store.names() == []
    assert {(wanted.exact, wanted.ef) for wanted in asked} == {(search.exact, 70)}
    same_runs(found, in_memory)
    for metric, values in memory.values.items():
        assert cell.values[metric] == pytest.approx(values)
    assert set(cell.values) == set(options["metrics"])


def test_pooled_tasks_search_their_own_pool(tmp_path):
    place_of = tmp_path / "tatoeba"
    place_of.mkdir()
    for lang in ("afr", "ara"):
        (place_of / f"tatoeba.{lang}-eng.{lang}").write_text("".join(f"same{i} w{i}\n" for i in range(5)))
        (place_of / f"tatoeba.{lang}-eng.eng").write_text("".join(f"same{i} v{i}\n" for i in range(5)))
    task, made = _tatoeba(tmp_path), encoder()
    material = prepare(task, encoder=made, folder=tmp_path / "v")
    placed = place(System("s", calibration=0.0), material, encoder=made, queries=None)
    options = {"metrics": ["Accuracy"], "depth": 10}
    with open_store(tmp_path / "store") as store:
        cell, run_ = run_cell(task, material.passages, placed, store=store, **options)
    memory, _ = run_cell(task, material.passages, placed, **options)
    assert cell.values == memory.values
    assert set(cell.values["Accuracy"].values()) == {1.0}
    assert all(docid.split("-")[0] == qid.split("-")[0] for qid, found in run_.items() for docid, _ in found)
    assert all(len(found) == 5 for found in run_.values())


def _tatoeba(folder):
    from xqg_vdb.evaluate.datasets.parallel import read_tatoeba

    return read_tatoeba(folder, langs=["af", "ar"])


def test_controls_have_everything_but_the_content(data):
    task, made = load_task("afriqa", data), encoder()
    material = prepare(task, encoder=made, folder=data / "v")
    queries = encode_query_files(
        [data / "queries.jsonl"], [p.id for p in material.passages], encoder=made, folder=data / "v"
    )
    means = made.language_means.means
    own, direction, shuffled = (
        rows_of(System("s", queries="q", content=content), material, queries, means=made.language_means).sums
        for content in ("own", "direction", "shuffled")
    )
    for lang, (total, count) in own.items():
        np.testing.assert_array_equal(direction[lang][1], count)
        np.testing.assert_allclose(direction[lang][0], count[:, None] * means[lang], rtol=1e-6)
        assert sorted(shuffled[lang][1]) == sorted(count)
        assert not (shuffled[lang][0] == total).all(axis=1).any(), "a passage kept its own queries"
        np.testing.assert_allclose(shuffled[lang][0].sum(axis=0), total.sum(axis=0), atol=1e-4)


def test_query_sums_against_a_loop(data):
    task, made = load_task("afriqa", data), encoder()
    passages = tuple(task.passages)
    write_queries(data / "some.jsonl", task, n=4, skip=[passages[0].id])
    queries = encode_query_files([data / "some.jsonl"], [p.id for p in passages], encoder=made, folder=data / "v")
    records = {r["id"]: r["generated_queries"] for r in map(json.loads, (data / "some.jsonl").read_text().splitlines())}
    for n in (None, 1, 3):
        sums = queries.sums(passages=len(passages), n=n)
        for lang in ("ha", "zu"):
            for row, passage in enumerate(passages):
                texts = records.get(passage.id, {}).get(lang, [])[:n]
                expected = made.encode_queries(texts, calibrate=False).sum(axis=0) if texts else np.zeros(32)
                np.testing.assert_allclose(sums[lang][0][row], expected, atol=1e-5)
                assert sums[lang][1][row] == len(texts)


def test_nothing_is_computed_twice(data):
    made = encoder()
    first = run(suite(data), data, made=made)
    seen = made.texts_seen
    cells = {path: path.stat().st_mtime_ns for path in (data / "out" / "cells").iterdir()}
    second = run(suite(data), data, made=made)
    assert made.texts_seen == seen
    assert cells == {path: path.stat().st_mtime_ns for path in (data / "out" / "cells").iterdir()}
    assert [r.headline for r in first.results] == [r.headline for r in second.results]
    queries = data / "queries.jsonl"
    queries.write_text(queries.read_text().replace("haword", "w1"))  # other queries: other cells, same passages
    third = run(suite(data), data, made=made)
    assert value(third, "plain") == value(first, "plain")
    new = {path for path in (data / "out" / "cells").iterdir()} - set(cells)
    assert len([path for path in new if path.name.endswith(".json.gz")]) == len(suite(data).systems) - 2


class _Stop(Exception):
    pass


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40), stop=st.integers(0, 5))
def test_encode_cached_go_on_where_they_stopped(tmp_path_factory, texts, stop):
    from unittest.mock import patch

    folder, made = tmp_path_factory.mktemp("kept"), encoder()
    left = [stop]

    encode = made.encode_queries

    def failing(part, calibrate):
        if left[0] == 0:
            raise _Stop
        left[0] -= 1
        return encode(part, calibrate=calibrate)

    with patch("xqg_vdb.index.build.WINDOW", 7):
        options = {"encoder": made, "kind": "queries", "folder": folder}
        made.encode_queries = failing
        try:
            rows = encode_cached(texts, **options)
        except _Stop:
            made.encode_queries = encode
            seen = made.texts_seen
            assert seen % 7 == 0
            rows = encode_cached(texts, **options)
            assert made.texts_seen == len(texts), "what was committed is not encoded again"
    np.testing.assert_array_equal(rows, encoder().encode_queries(texts, calibrate=False))


def test_digests_tell_lists_apart():
    assert len({digest_of(texts) for texts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], [], ["", "abc"])}) == 6


def test_sweeps_pass_through_the_cells(data):
    """At the system's own setting a curve has the cell's value; `without` and `n` against cells of such systems."""
    base = System("calibrated + xQG", queries="queries")
    more = (
        base,
        replace(base, name="n1", n=1),
        replace(base, name="no ha", recipe=Recipe(query_langs=("zu",))),
        replace(base, name="plain questions", calibration=0.0),
        replace(base, name="alpha .6", recipe=Recipe(alpha=0.6)),
        replace(base, name="mean", recipe=Recipe(pool="mean", alpha=0.4)),
    )
    plans = tuple(SweepPlan(base.name, what) for what in ("n", "without"))
    plans += (SweepPlan(base.name, "alpha", (0.3, 0.6)), SweepPlan(base.name, "lambda", (0.0, 0.7)))
    plans += (SweepPlan("mean", "alpha", (0.4,), "MRR@10"),)
    report = run(suite(data, systems=more, comparisons=(), sweeps=plans), data)
    n, without, alpha, strength, mean = report.sweeps
    own = value(report, base.name, "R@1")
    assert {p.x: p.value for p in n.points} == pytest.approx(
        {1: value(report, "n1", "R@1"), 2: n.points[1].value, 3: own}
    )
    assert {p.x: p.value for p in without.points}["without ha"] == pytest.approx(value(report, "no ha", "R@1"))
    assert [p.value for p in alpha.points] == pytest.approx([own, value(report, "alpha .6", "R@1")])
    assert [p.value for p in strength.points] == pytest.approx([value(report, "plain questions", "R@1"), own])
    assert mean.points[0].value == pytest.approx(value(report, "mean", "MRR@10"))


def test_the_report_round_trips_and_compares(data):
    report = run(suite(data), data)
    again = Report.from_json(json.loads(json.dumps(report.to_json())))
    assert again == report
    found = next(c for c in report.comparisons if (c.baseline, c.system, c.metric) == ("plain", "calibrated", "R@10"))
    assert found.macro.difference == pytest.approx(value(report, "calibrated") - value(report, "plain"))
    assert set(found.groups) == {"ha", "zu"}
    assert report.query_files["afriqa: queries"]["languages"] == {"ha": 72, "zu": 72}
    assert report.environment["tokenizer"] == ""


@pytest.mark.parametrize("average", ["queries", "groups"])
def test_a_row_shows_one_mean_and_small_groups_are_marked(tmp_path, monkeypatch, average):
    """A value minus its baseline's value is the difference beside it, in the record and in every report."""
    from xqg_vdb.evaluate import workbench
    from xqg_vdb.evaluate.report import render_markdown
    from xqg_vdb.evaluate.report.tables import group_table, headline_table

    write_afriqa(tmp_path, per_lang=40, langs=("hau",))
    write_afriqa(tmp_path, per_lang=31, langs=("ibo",), seed=1)
    write_afriqa(tmp_path, per_lang=2, langs=("zul",), seed=2)
    monkeypatch.setattr(workbench, "load_task", lambda *given: replace(load_task(*given), average=average))
    report = run(replace(preset("afriqa"), search="memory", metrics=("MRR@10",)), tmp_path)
    before, after = (
        next(r for r in report.results if r.system == system).headline for system in ("plain", "calibrated")
    )
    (found,) = report.comparisons
    assert before.n == found.macro.n == (73 if average == "queries" else 71)
    assert (found.macro.baseline, found.macro.system) == pytest.approx((before.value, after.value))
    groups = next(r for r in report.results if r.system == "plain").groups
    sizes = {"ha": 40, "ig": 31} | ({"zu": 2} if average == "queries" else {})
    weights = {lang: n / 73 if average == "queries" else 1 / 2 for lang, n in sizes.items()}
    assert before.value == pytest.approx(sum(weight * groups[lang].value for lang, weight in weights.items()))
    assert ["Zulu (zu)", "2†"] in [row[:2] for row in group_table(report, "afriqa", "MRR@10").rows]
    assert average.replace("queries", "questions") in headline_table(report, "afriqa", "MRR@10").note.split("†")[0]
    assert "2†" in render_markdown(report)


def test_answer_metrics_name_their_tokenizer(data):
    report = run(suite(data, metrics=("R@2kt",), sweeps=()), data)
    assert report.environment["tokenizer"].startswith("nltk")


GOOD = """
name = "s"
datasets = ["afriqa"]
[queries]
mine = "queries.jsonl"
[[systems]]
name = "plain"
calibration = 0
[[systems]]
name = "xqg"
queries = "mine"
recipe = { alpha = 0.2, query_langs = ["ha"] }
[[comparisons]]
baseline = "plain"
systems = ["xqg"]
"""


def test_a_suite_file(data):
    path = data / "suite.toml"
    path.write_text(GOOD)
    read = read_suite(path)
    assert read.systems[1].recipe == Recipe(alpha=0.2, query_langs=("ha",))
    assert read.systems[0].calibration == 0.0
    assert read.query_file(read.systems[1], "afriqa") == data / "queries.jsonl"
    assert value(run(read, data), "xqg", "R@10") > 0.5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('name = "s"', 'nam = "s"'), "'nam' is no key"),
        (('name = "s"', ""), "suite.toml: name must be given"),
        (('["afriqa"]', '["afrika"]'), "'afrika' is no dataset; expected afriqa"),
        (('["afriqa"]', '"afriqa"'), "datasets cannot be 'afriqa'"),
        (("calibration = 0", 'calibration = "0"'), "system 'plain': calibration cannot be '0'"),
        (("alpha = 0.2", "alpha = 2"), "alpha must be a number between 0 and 1"),
        (("alpha = 0.2", "alfa = 0.2"), "'alfa' is no key"),
        (('systems = ["xqg"]', 'systems = ["xqq"]'), "'xqq' is no system; expected xqg"),
        (('queries = "mine"', 'queries = "yours"'), "'yours' is no query set; expected mine"),
        (('name = "xqg"', 'name = "plain"'), "a name of its own"),
        (("[queries]", "[queries"), "cannot be read as a suite"),
        (
            ("calibration = 0", 'content = "shufled"'),
            "'shufled'; it is one of own, direction, shuffled",
        ),
        (('name = "plain"', 'name = "plain"\nlanguages = "detected"\nn = true'), "n cannot be True"),
    ],
)
def test_suite_files_are_checked_before_anything_runs(data, change, says):
    path = data / "suite.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(DataError, match=r"suite\.toml") as error:
        read_suite(path)
    assert says in str(error.value)


def test_what_is_wrong_is_told_before_encoding(data):
    made = encoder()
    wrong = [
        suite(data, metrics=("R@10", "R@1oo")),
        suite(data, queries={"queries": {"*": data / "absent.jsonl"}}),
        suite(data, queries={"queries": {"xquad": data / "queries.jsonl"}}),
    ]
    for one in wrong:
        with pytest.raises(DataError):
            run(one, data, made=made)
    assert made.texts_seen == 0


def test_queries_of_another_corpus_are_refused(data):
    (data / "queries.jsonl").write_text('{"id": "x", "generated_queries": {"ha": ["q"]}}')
    with pytest.raises(DataError, match="ids"):
        run(suite(data), data)


def test_language_means_of_another_datasets_questions(data):
    """`means = DATASET`: the questions' own mean, so that centring with λ = 1 leaves them a mean of zero."""
    task, made = load_task("afriqa", data), encoder()
    systems = (System("train", calibration=1.0, means="afriqa"), System("detected", languages="detected"))
    report = run(suite(data, systems=systems, comparisons=(), sweeps=()), data, made=made)
    assert {r.system for r in report.results} == {"train", "detected"}
    from xqg_vdb.evaluate.systems import means_of_questions

    rows = made.encode_queries([q.text for q in task.queries], calibrate=False)
    table = means_of_questions(rows, [q.lang for q in task.queries])
    own = [i for i, q in enumerate(task.queries) if q.lang == "ha"]
    np.testing.assert_allclose(table.means["ha"], rows[own].mean(axis=0), atol=1e-6)


def test_two_sided_calibration_takes_each_languages_mean_away(data):
    from xqg_vdb.calibration import PRIOR
    from xqg_vdb.evaluate.systems import Material
    from xqg_vdb.types import Passage

    rng, made = np.random.default_rng(0), encoder()
    made.facts = replace(made.facts, dim=4, normalize=False)
    rows = rng.standard_normal((600, 4)).astype(np.float32)
    passages = tuple(Passage(str(i), "t", lang="ab"[i % 2]) for i in range(600))
    material = Material(load_task("afriqa", data), passages, rows, rows[:24])
    plain, half, whole = (
        place(System("s", calibration=0.0, passage_calibration=strength), material, encoder=made, queries=None).passages
        for strength in (0.0, 0.5, 1.0)
    )
    np.testing.assert_array_equal(plain, rows)
    for i in range(2):
        left = PRIOR / (300 + PRIOR) * (rows[i::2].mean(axis=0) - rows.mean(axis=0))
        np.testing.assert_allclose(whole[i::2].mean(axis=0), left, atol=1e-4)
    np.testing.assert_allclose(half, (rows + whole) / 2, atol=1e-4)


def test_comparisons_need_known_systems():
    with pytest.raises(DataError, match="no system"):
        Suite("s", ("afriqa",), (System("a"),), comparisons=(Comparison("a", ("b",)),))


def test_hybrid_is_what_load_and_retriever_do(data):
    """The twin once more, with the words of the passages; and nothing of it in memory."""
    task, made = load_task("afriqa", data), encoder()
    corpus = data / "corpus.jsonl"
    records = [{"id": p.id, "title": p.title, "text": p.text, "lang": p.lang} for p in task.passages]
    corpus.write_text("\n".join(map(json.dumps, records)))
    with open_store(data / "store") as store:
        options = {"encoder": made, "queries": data / "queries.jsonl", "store": store}
        collection = load(corpus, "c", **options, options=LoadOptions(hybrid=Hybrid())).collection
        answers = Retriever(made, collection, hybrid=True).run(task.queries, Search(10, exact=True))
    systems = (System("words", queries="queries", hybrid=True),)
    report = run(suite(data, systems=systems, comparisons=(), sweeps=(), search="exact"), data, made=made)
    ours = read_run(_run(data, "words"))
    same_runs({q: found[:10] for q, found in ours.items()}, {a.question.id: scored(a.hits) for a in answers})
    assert report.systems["words"]["hybrid"] == "words of passages"
    with pytest.raises(DataError, match="hybrid needs search"):
        run(suite(data, systems=systems, comparisons=(), sweeps=(), search="memory"), data, made=made)


@pytest.mark.parametrize(("given", "told"), [
    ("xqg-vdb bench x --data-dir /home/me/data --out ~/runs/one", "xqg-vdb bench x --data-dir data --out one"),
    ("bench x --encoder=/srv/models/e5 --url http://host:6333/a/b", "bench x --encoder=e5 --url http://host:6333/a/b"),
    ("org/model against ../near/by and /tmp", "org/model against ../near/by and /tmp"),
    (8, 8),
])  # fmt: skip
def test_a_report_names_no_folders_of_the_machine(given, told):
    from xqg_vdb.evaluate.run import _without_folders

    assert _without_folders(given) == told
