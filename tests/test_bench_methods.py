"""UPR and query expansion as systems of a benchmark: what `Retriever` does; computed once, whatever stops it."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from bench_cases import encoder, run, value, write_afriqa, write_queries
from cli_cases import run_cli, write_starter
from rankings import assert_same

from xqg_vdb import Retriever, load
from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.evaluate import methods
from xqg_vdb.evaluate.datasets import load_task
from xqg_vdb.evaluate.datasets.task import sampled_questions
from xqg_vdb.evaluate.methods import timed_rows
from xqg_vdb.evaluate.metrics import read_run
from xqg_vdb.evaluate.suite import System, preset, read_suite, with_methods
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.journal import Memo, rows, scan
from xqg_vdb.search import Methods
from xqg_vdb.search.expand import Expander
from xqg_vdb.search.rerank import WEIGHT, Reranker
from xqg_vdb.store import open_store
from xqg_vdb.types import Hybrid, Question, Search

DEPTH = 5


def upr(model, depth=100, weight=WEIGHT):
    return Methods(rerank=f"upr:{model}", rerank_depth=depth, rerank_weight=weight)


@pytest.fixture(scope="module")
def generator(tiny_generator):
    return tiny_generator("llama")[1]


@pytest.fixture
def data(tmp_path):
    """A folder with the miniature data (4 questions in each of two languages) and a query file for it."""
    write_afriqa(tmp_path, per_lang=4)
    write_queries(tmp_path / "queries.jsonl", load_task("afriqa", tmp_path))
    return tmp_path


def suite(data, *systems, **more):
    made = preset("afriqa", queries=data / "queries.jsonl")
    options = {
        "search": "memory",
        "depth": DEPTH,
        "systems": systems,
        "comparisons": (),
        "sweeps": (),
        "metrics": ("R@1", "MRR@5"),
    } | more
    return replace(made, **options)


def found(data, system):
    name = "".join(char if char.isalnum() or char in "+-_." else "-" for char in system)
    return read_run(data / "out" / "runs" / f"afriqa.{name}.trec.gz")


def retrieved(data, made, **options):
    """What the product itself finds, from files to hits."""
    task, corpus = load_task("afriqa", data), data / "corpus.jsonl"
    records = [{"id": p.id, "title": p.title, "text": p.text, "lang": p.lang} for p in task.passages]
    corpus.write_text("\n".join(map(json.dumps, records)))
    loading = options.pop("loading", {})
    with open_store(data / "store") as store:
        collection = load(corpus, "c", encoder=made, queries=data / "queries.jsonl", store=store, **loading).collection
        answers = Retriever(made, collection, **options).run(task.queries, Search(DEPTH, exact=True))
    return {answer.question.id: [(hit.id, hit.score) for hit in answer.hits] for answer in answers}


def same_runs(ours, theirs, *, tolerance=1e-4):
    assert ours.keys() == theirs.keys()
    for qid, hits in theirs.items():
        assert_same(ours[qid], hits, atol=tolerance)


def kept_notes(report):
    return [note for note in report.notes if "were kept from before" in note]


def counted(monkeypatch, stop_after=None):
    """Counts pairs that scorers are asked for, and fails once `stop_after` passages were read."""
    calls, pairs = [], []
    original = methods.Scorer

    def opened(model, *, threads):
        scorer = original(model, threads=threads)
        score = scorer.score

        def counting(passage, asked):
            if stop_after is not None and len(calls) >= stop_after:
                raise KeyboardInterrupt
            calls.append(passage)
            pairs.extend((passage, one) for one in asked)
            return score(passage, asked)

        monkeypatch.setattr(scorer, "score", counting)
        return scorer

    monkeypatch.setattr(methods, "Scorer", opened)
    return pairs


@pytest.mark.parametrize("search", ["memory", "exact"])
def test_upr_is_what_retriever_does(data, generator, search):
    made = encoder()
    systems = [
        System("upr", queries="queries", methods=upr(generator, DEPTH, 1.0)),
        System("mixed", queries="queries", methods=upr(generator, DEPTH, 0.4)),
    ]
    report = run(suite(data, *systems, search=search), data, made=made)
    same_runs(found(data, "upr"), retrieved(data, made, reranker=Reranker(generator, depth=DEPTH, weight=1.0)))
    mixed = Reranker(generator, depth=DEPTH, weight=0.4)
    same_runs(found(data, "mixed"), retrieved(data, made, reranker=mixed), tolerance=1e-3)
    facts = report.systems["mixed"]
    assert facts["reranking"]["weight"] == 0.4 and "passage" in facts["reranking"]["instruction"]
    for one in report.results:
        assert 0 <= one.cost["rerank p50 ms"] <= one.cost["rerank p95 ms"]
        assert one.seconds["rerank"] >= 0
    assert [note.split(":")[1] for note in kept_notes(report)] == [" mixed"]


def test_what_stands_behind_the_reranked_passages_keeps_its_order(data, generator):
    base = System("base", queries="queries")
    again = replace(base, name="again", methods=upr(generator, 2, 1.0))
    run(suite(data, base, again), data)
    plain = found(data, "base")
    changed = 0
    for qid, hits in found(data, "again").items():
        ids = [docid for docid, _ in hits]
        assert set(ids[:2]) == {docid for docid, _ in plain[qid][:2]}
        assert ids[2:] == [docid for docid, _ in plain[qid][2:]]
        assert [s for _, s in hits] == sorted((s for _, s in hits), reverse=True)
        changed += ids[:2] != [docid for docid, _ in plain[qid][:2]]
    assert changed > 0


def test_likelihoods_survive_a_stop_and_serve_every_weight(data, generator, monkeypatch):
    system = System("upr", queries="queries", methods=upr(generator, DEPTH))
    first = counted(monkeypatch, stop_after=7)
    with pytest.raises(KeyboardInterrupt):
        run(suite(data, system), data)
    assert len(first) >= 7
    monkeypatch.undo()
    rest = counted(monkeypatch)
    report = run(suite(data, system), data)
    assert len(first) + len(rest) == len(set(first) | set(rest)) == 8 * DEPTH, "each pair once"
    assert f"{len(first)} of {8 * DEPTH} likelihoods were kept from before" in kept_notes(report)[0]
    stopped = found(data, "upr")
    monkeypatch.setattr(methods, "Scorer", lambda *_, **__: pytest.fail("nothing is left to compute"))
    others = [replace(system, name=f"w{w}", methods=upr(generator, DEPTH, w)) for w in (0.0, 0.5)]
    others.append(replace(system, name="shallow", methods=upr(generator, 3)))
    report = run(suite(data, system, *others), data)
    assert [note.split(":")[1] for note in kept_notes(report)] == [" upr", " w0.0", " w0.5", " shallow"]
    assert all("rerank p50 ms" in one.cost for one in report.results)
    base = replace(system, name="base", methods=Methods())
    run(suite(data, base), data)
    assert {q: [i for i, _ in f] for q, f in found(data, "w0.0").items()} == {
        q: [i for i, _ in f] for q, f in found(data, "base").items()
    }
    unbroken = data / "unbroken"
    unbroken.mkdir()
    monkeypatch.undo()
    write_afriqa(unbroken, per_lang=4)
    write_queries(unbroken / "queries.jsonl", load_task("afriqa", unbroken))
    run(suite(unbroken, system), unbroken)
    same_runs(stopped, found(unbroken, "upr"))


def test_passages_are_read_once_for_questions_that_share_them(data, generator, monkeypatch):
    """Beyond those that are timed alone; these have no time of their own, and no cell claims one for them."""
    monkeypatch.setattr("xqg_vdb.evaluate.methods.TIMED", 1)
    calls = []
    original = methods.MemoScorer._compute
    monkeypatch.setattr(
        methods.MemoScorer, "_compute",
        lambda self, passage, new: (calls.append((passage, len(new))), original(self, passage, new))[1],
    )  # fmt: skip
    system = System("upr", methods=upr(generator, DEPTH))
    run(suite(data, system), data)
    assert sum(n for _, n in calls) == 8 * DEPTH
    assert len(calls) == DEPTH + len({passage for passage, _ in calls[DEPTH:]}), "one question alone, then by passage"
    assert len(calls) < 8 * DEPTH


@pytest.mark.parametrize("method", ["translation", "pseudo-document"])
def test_expansion_is_what_retriever_does(data, generator, method):
    made = encoder()
    system = System("expanded", queries="queries", methods=Methods(expand=f"{method}:{generator}", expand_lang="en"))
    report = run(suite(data, system), data, made=made)
    theirs = retrieved(data, made, expander=Expander(generator, method=method, lang="en"))
    same_runs(found(data, "expanded"), theirs)
    facts = report.systems["expanded"]["expansion"]
    assert (facts["method"], facts["lang"]) == (method, "en")
    (cost,) = {tuple(one.cost.items()) for one in report.results}
    assert 0 <= dict(cost)["expand p50 ms"] <= dict(cost)["expand p95 ms"]


def test_expansion_with_words(data, generator):
    made = encoder()
    translated = Methods(expand=f"translation:{generator}", expand_lang="en")
    system = System("expanded", queries="queries", methods=translated, hybrid=True)
    run(suite(data, system, search="exact", depth=20), data, made=made)
    expander = Expander(generator, method="translation", lang="en")
    theirs = retrieved(data, made, expander=expander, loading={"options": LoadOptions(hybrid=Hybrid())}, hybrid=True)
    ours = {qid: hits[:DEPTH] for qid, hits in found(data, "expanded").items()}
    assert {q: [i for i, _ in f] for q, f in ours.items()} == {q: [i for i, _ in f] for q, f in theirs.items()}


def test_expansions_are_written_once(data, generator, monkeypatch):
    """A stopped run goes on; another first stage writes nothing, and times are those of before."""
    monkeypatch.setattr("xqg_vdb.evaluate.methods.TIMED", 2)
    written, original = [], methods.open_writer

    def opened(model, **options):
        writer = original(model, **options)
        write = writer.write

        def counting(prompts):
            if len(written) == 2:  # those that are timed alone
                raise KeyboardInterrupt
            texts = write(prompts)
            written.extend(prompts)
            return [text or "nothing" for text in texts]  # so that all are kept

        monkeypatch.setattr(writer, "write", counting)
        return writer

    monkeypatch.setattr(methods, "open_writer", opened)
    system = System("joined", queries="queries", methods=Methods(expand=f"pseudo-document:{generator}"))
    with pytest.raises(KeyboardInterrupt):
        run(suite(data, system), data)
    assert len(written) == 2
    written.append("")
    report = run(suite(data, system), data)
    assert len(written) == 9
    assert "2 of 8 expansions were kept from before" in kept_notes(report)[0]
    written[:] = [""] * 2
    report = run(suite(data, system, replace(system, name="plain", queries=None)), data)
    assert len(written) == 2
    assert [note.split(":")[1] for note in kept_notes(report)][-1] == " plain"
    assert all("expand p50 ms" in one.cost for one in report.results)


def test_an_answer_that_failed_is_not_kept(tmp_path):
    class Away:
        failure = "away"

        def describe(self):
            return {}

        def close(self):
            pass

        def write(self, prompts):
            return ["" if prompt == "b" else prompt.upper() for prompt in prompts]

    memo = Memo(tmp_path / "rows.log", header={"expansions of": "x"}, field="text")
    writer = methods.MemoWriter(Away(), memo=memo)
    for reused in (0, 1):
        assert writer.write(["a", "b"]) == ["A", ""]
        assert memo.reused == reused and writer.failure == "away"
    memo.close()


def test_finished_cells_open_no_model_and_another_model_makes_another_cell(data, generator, monkeypatch, tmp_path):
    import shutil

    from xqg_vdb.models.folder import open_model_folder, write_manifest

    systems = [
        System("upr", methods=upr(generator, 2)),
        System("both", methods=replace(upr(generator, 2), expand=f"pseudo-document:{generator}")),
    ]
    first = run(suite(data, *systems), data)
    cells = set((data / "out" / "cells").iterdir())
    moved = shutil.copytree(generator, tmp_path / "moved")
    systems = [
        replace(systems[0], methods=upr(moved, 2)),
        replace(systems[1], methods=replace(upr(moved, 2), expand=f"pseudo-document:{moved}")),
    ]
    for name in ("Scorer", "open_writer"):
        monkeypatch.setattr(methods, name, lambda *_, **__: pytest.fail("finished cells need no model"))
    second = run(suite(data, *systems), data)
    assert [one.headline for one in first.results] == [one.headline for one in second.results]
    assert set((data / "out" / "cells").iterdir()) == cells
    monkeypatch.undo()
    tokenizer = json.loads((moved / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:3]
    (moved / "tokenizer.json").write_text(json.dumps(tokenizer))
    manifest = open_model_folder(generator).manifest
    write_manifest(moved, {key: value for key, value in manifest.items() if key not in ("files", "schema")})
    run(suite(data, *systems), data)
    assert len(set((data / "out" / "cells").iterdir())) == 2 * len(cells)


def test_some_questions_of_each_language(data):
    made, plain = encoder(), System("plain", calibration=0.0)
    whole = run(suite(data, plain), data, made=made)
    seen, task = made.texts_seen, load_task("afriqa", data)
    few = run(suite(data, plain, questions=2), data, made=made)
    assert made.texts_seen == seen + 4, "the questions of the sample alone"
    assert set(found(data, "plain")) == {query.id for query in sampled_questions(task, 2).queries}
    assert few.datasets["afriqa"]["questions"] == 4 and few.datasets["afriqa"]["passages"] == 8
    assert few.datasets["afriqa"]["limit"] == "a sample of 2 questions of each group, spread over passages"
    assert few.description.endswith("Only a sample of 2 questions of each group, spread over passages.")
    assert all(group.n == 2 for one in few.results for group in one.groups.values())
    assert {one.headline.n for one in whole.results} == {8} and "limit" not in whole.datasets["afriqa"]
    again = run(suite(data, plain, questions=100), data, made=made)
    assert value(again, "plain", "MRR@5") == value(whole, "plain", "MRR@5")
    assert len(list((data / "out" / "cells").iterdir())) == 4, "a limit that leaves nothing out is no other cell"


def test_a_narrowed_task_has_nothing_of_other_questions(data):
    task = load_task("afriqa", data)
    task = replace(task, queries=(*task.queries, Question("x", "no language")), groups={**task.groups, "x": "und"})
    few = sampled_questions(task, 1)
    assert [query.lang for query in few.queries] == ["ha", "zu", None]
    ids = {query.id for query in few.queries}
    assert set(few.qrels) == set(few.answers) == ids - {"x"} and set(few.groups) == ids
    assert list(few.passages) == list(task.passages)


SUITE = """
name = "s"
datasets = ["afriqa"]
questions = 3
[[systems]]
name = "both"
rerank = "upr:MODEL"
rerank_depth = 10
rerank_weight = 0.25
expand = "translation:MODEL"
expand_lang = "en"
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("questions = 3", "questions = 0"), "questions must be at least 1, got 0"),
        (('"upr:MODEL"', '"bm25:MODEL"'), "given as upr:MODEL"),
        (('"upr:MODEL"', '"upr:"'), "given as upr:MODEL"),
        (('rerank = "upr:MODEL"', ""), "rerank_depth says nothing without rerank"),
        (("rerank_depth = 10", "rerank_depth = 0"), "rerank_depth must be at least 1, got 0"),
        (("rerank_weight = 0.25", "rerank_weight = 1.5"), "rerank_weight must lie between 0 and 1, got 1.5"),
        (("rerank_weight = 0.25", "rerank_weight = nan"), "rerank_weight cannot be nan"),
        (("translation:MODEL", "guess:MODEL"), "given as translation:MODEL or pseudo-document:MODEL"),
        (('expand_lang = "en"', ""), "A translation needs a language"),
        (('expand_lang = "en"', 'expand_lang = "xxx"'), "'xxx' is not a language code"),
        (('expand = "translation:MODEL"', ""), "expand_lang says nothing without expand"),
    ],
)
def test_methods_are_checked_when_the_suite_is_read(tmp_path, change, says):
    path = tmp_path / "suite.toml"
    path.write_text(SUITE)
    assert read_suite(path).systems[0].methods == replace(
        upr("MODEL", 10, 0.25), expand="translation:MODEL", expand_lang="en"
    )
    path.write_text(SUITE.replace(*change))
    with pytest.raises(DataError, match=r"suite\.toml") as error:
        read_suite(path)
    assert says in str(error.value)


def test_what_does_not_go_together_is_told_before_encoding(data, tmp_path):
    from tiny_model import write_tiny_encoder

    made = encoder()
    no_generator = write_tiny_encoder(tmp_path / "e")
    for model in (no_generator, tmp_path / "absent"):
        with pytest.raises(ModelError):
            run(suite(data, System("s", methods=upr(model))), data, made=made)
    with pytest.raises(ModelError):
        run(suite(data, System("s", methods=Methods(expand=f"pseudo-document:{no_generator}"))), data, made=made)
    assert made.texts_seen == 0


def test_a_preset_gets_the_methods_on_top_of_its_best_system():
    asked = Methods(rerank="upr:m", rerank_depth=7, expand="pseudo-document:m", expand_lang="eng")
    made = with_methods(preset("afriqa"), asked)
    assert [system.name for system in made.systems[2:]] == [
        "calibrated + UPR", "calibrated + expansion", "calibrated + expansion + UPR",
    ]  # fmt: skip
    again, expansion, both = made.systems[2:]
    assert (again.methods.rerank, again.methods.expand, again.means) == ("upr:m", None, "bank")
    assert (expansion.methods.rerank, expansion.methods.expand) == (None, "pseudo-document:m")
    assert both.methods == asked
    assert made.comparisons[-1].baseline == "calibrated"
    assert with_methods(preset("afriqa"), Methods()) == preset("afriqa")
    folded = with_methods(preset("afriqa", queries="q.jsonl"), Methods(rerank="upr:m"))
    assert folded.systems[-1].name == "calibrated + xQG + UPR" and folded.systems[-1].queries == "queries"


def test_kept_rows_go_on_and_tell_other_headers(tmp_path):
    from xqg_vdb.errors import LockedError, MismatchError

    path = tmp_path / "sub" / "rows.log"

    def opened(model):
        return closing(Memo(path, header={"model": model}, field="score"))

    with opened("a") as memo:
        assert not memo.has("x")
        assert memo.recall("xyx", lambda places: [float(place) for place in places]) == [2.0, 1.0, 2.0]
        assert (memo.fresh, memo.reused) == (2, 1)
        with pytest.raises(LockedError):
            opened("a")
    path.write_bytes(path.read_bytes() + b"half a li")
    with opened("a") as memo:
        assert memo.has("xy") and not memo.has("xz")
        with memo.timed() as took:
            assert memo.recall("xz", lambda places: [-5.0 for _ in places]) == [2.0, -5.0]
        assert took[0] is None and took[1] >= 0
    with opened("a") as memo:
        with memo.timed() as took:
            assert memo.recall("xyz", lambda places: 1 / 0) == [2.0, 1.0, -5.0]
        assert took[:2] == [None, None] and took[2] >= 0
    with pytest.raises(MismatchError):
        opened("b")


def test_kept_rows_are_counted_timed_and_never_empty(tmp_path, monkeypatch):
    path, clock = tmp_path / "a" / "b" / "rows.log", iter([0.0, 0.0, 10.0, 10.25, 20.0, 21.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock, 99.0))
    memo = Memo(path, header={}, field="text")
    assert memo.recall(["a", "b", "a", "c"], lambda places: ["" for _ in places]) == [""] * 4
    assert memo.recall([], lambda places: 1 / 0) == [] and not memo.has(["a"]) and scan(path).rows == 0
    assert (memo.fresh, memo.reused) == (3, 1)
    with memo.timed() as took:
        assert memo.recall(["a", "b"], lambda places: ["A", ""]) == ["A", ""]
        assert memo.recall(["a", "c", "d"], lambda places: [f"{place}" for place in places]) == ["A", "1", "2"]
    memo.recall(["e"], lambda places: ["E"])
    assert took == [0.25, 0.25, 0.25, 1.0, 1.0] and (memo.fresh, memo.reused) == (8, 2)
    memo.close()
    assert [commit["rows"] for commit in scan(path).commits] == [1, 3, 4]
    assert [row.keys() >= {"seconds"} for row in rows(path, scan(path))] == [True, True, True, False]
    with closing(Memo(path, header={}, field="text")) as again:
        assert (again.fresh, again.reused) == (0, 0)
        with pytest.raises(ValueError, match="shorter"):  # a generator that loses a text must not shift the others
            again.recall(["y", "z"], lambda places: ["Y"])
        assert again.recall(["f", "a"], lambda places: ["F"]) == ["F", "A"] and again.has(["a", "c", "d", "e", "f"])
    assert [commit["rows"] for commit in scan(path).commits] == [1, 3, 4, 5]


def test_on_the_command_line(data, generator):
    write_starter(data / "cache")
    (data / "suite.toml").write_text(SUITE)
    arguments = ["bench", "afriqa", "--data-dir", ".", "--search", "memory", "--out"]
    spec = ["--rerank", f"upr:{generator}", "--rerank-depth", 3, "--questions", 2]
    spec += ["--expand", f"pseudo-document:{generator}"]
    done = run_cli(data, *arguments, "reports", *spec, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {one["system"] for one in report["results"]} == {
        "plain", "calibrated", "calibrated + UPR", "calibrated + expansion", "calibrated + expansion + UPR",
    }  # fmt: skip
    assert {one["headline"]["n"] for one in report["results"]} == {4}
    page = (data / "reports" / "report.md").read_text()
    assert "rerank p50 ms" in page and "a sample of 2 questions of each group" in page
    for wrong, code, says in (
        (["suite.toml", "--rerank", "upr:m"], 2, "a suite names its own systems"),
        (["suite.toml", "--expand-lang", "en"], 2, "a suite names its own systems"),
        (["afriqa", "--rerank", "bm25:m"], 3, "given as upr:MODEL"),
        (["afriqa", "--rerank-depth", 5], 3, "rerank_depth says nothing without rerank"),
        (["afriqa", "--data-dir", ".", "--rerank", "upr:absent"], 3, "no model 'absent'"),
    ):
        done = run_cli(data, "bench", *wrong, "--out", "reports")
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "benchmarks" / "suites").glob("*.toml")), ids=str)
def test_the_shipped_suites_can_be_read_and_have_their_query_files(path):
    read = read_suite(path)
    for system in read.systems:
        for dataset in read.datasets:
            file = read.query_file(system, dataset)
            assert file is None or file.is_file()


def test_timed_questions_are_spread_over_the_list():
    assert timed_rows(0) == [] and timed_rows(3) == [0, 1, 2]
    assert timed_rows(21) == list(range(20)) and timed_rows(400) == list(range(0, 400, 20))
    assert max(timed_rows(33)) == 31
