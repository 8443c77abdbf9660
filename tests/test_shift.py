"""SHIFT, LIR and CSLS as systems of the benchmark, each against a slow twin; settings chosen on half of questions."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from bench_cases import run, sentence

from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets import load_task
from xqg_vdb.evaluate.matrix import per_query
from xqg_vdb.evaluate.metrics import macro_mean, parse_metrics, read_run
from xqg_vdb.evaluate.suite import Choice, Comparison, Suite, System, read_suite
from xqg_vdb.evaluate.systems import offsets, read_vectors, with_hub_columns, without_directions
from xqg_vdb.testing import HashEncoder
from xqg_vdb.texts.languages import question_bank

POOL = "xquad-pool:de-en-sw"
LANGS = POOL.partition(":")[2].split("-")
DIM = 32


def encoder():
    rng = np.random.default_rng(3)
    means = {lang: rng.standard_normal(DIM).astype(np.float32) * 0.2 for lang in LANGS}
    return HashEncoder(dim=DIM, calibration=0.5, language_means=LanguageMeans(means, dict.fromkeys(LANGS, 30), "bank"))


@pytest.fixture
def data(tmp_path):
    """Twelve paragraphs in three languages, two questions of each, and parallel sentences; languages have own words."""
    import random

    rng = random.Random(4)
    texts = [(sentence(rng, 8), [sentence(rng, 2), sentence(rng, 2)]) for _ in range(12)]
    (tmp_path / "xquad-r").mkdir()
    (tmp_path / "tatoeba").mkdir()
    for lang in LANGS:
        mark = f"{lang}a {lang}b {lang}c"
        paragraphs = [
            {
                "context": f"{text} {mark}",
                "qas": [
                    {"id": f"q{i}-{j}", "question": f"{asked} {text.split()[j]} {mark}?", "answers": [
                        {"text": text.split()[0], "answer_start": 0}
                    ]}
                    for j, asked in enumerate(several)
                ],
            }
            for i, (text, several) in enumerate(texts)
        ]  # fmt: skip
        record = {"data": [{"title": "T", "paragraphs": paragraphs}]}
        (tmp_path / "xquad-r" / f"{lang}.json").write_text(json.dumps(record))
    for lang, code in (("de", "deu"), ("sw", "swh")):
        pairs = [sentence(rng, 4) for _ in range(20)]
        (tmp_path / "tatoeba" / f"tatoeba.{code}-eng.{code}").write_text(
            "".join(f"{pair} {lang}a {lang}b\n" for pair in pairs)
        )
        (tmp_path / "tatoeba" / f"tatoeba.{code}-eng.eng").write_text("".join(f"{pair} ena enb\n" for pair in pairs))
    return tmp_path


def suite(*systems, **more):
    return Suite("s", (POOL,), systems, metrics=("R@10", "R@3"), search="memory", **more)


def found(data, system):
    (path,) = (data / "out" / "runs").glob(f"*.{system}.trec.gz")
    return read_run(path)


def test_the_pool_has_every_copy(data):
    task = load_task(POOL, data)
    assert [len(list(task.passages)), len(task.queries)] == [36, 72]
    assert task.qrels["q3-1_sw"] == {"de-4": 1, "en-4": 1, "sw-4": 1}
    assert task.clusters()["q3-1_sw"] == task.clusters()["q3-0_en"] == "paragraph 4"


def test_shift_against_a_slow_twin(data):
    """E(p) - λ·v_l, v_l the mean of E(sentence) - E(its translation into the pivot); questions likewise, if told."""
    made, task, source = encoder(), load_task(POOL, data), "offsets:tatoeba-all"
    one = System("shift", calibration=0.0, passage_calibration=0.8, passage_means=source)
    run(suite(one, replace(one, name="both", calibration=0.5, means=source)), data, made=made)

    def vectors(encode):
        table = {"en": [0.0] * DIM}
        for lang, code in (("de", "deu"), ("sw", "swh")):
            sides = [(data / "tatoeba" / f"tatoeba.{code}-eng.{s}").read_text().splitlines() for s in (code, "eng")]
            total = [0.0] * DIM
            for ours, pivot in zip(*sides, strict=True):
                pair = [encode([text])[0] for text in (ours, pivot)]
                total = [t + float(a) - float(b) for t, a, b in zip(total, *pair, strict=True)]
            table[lang] = [t / len(sides[0]) for t in total]
        return table

    def moved(row, vector, strength):
        row = [float(x) - strength * v for x, v in zip(row, vector, strict=True)]
        return [x / math.sqrt(sum(y * y for y in row)) for x in row]

    def ask(texts):
        return made.encode_queries(texts, calibrate=False)

    tables = vectors(made.encode_passages), vectors(ask)
    passages = {p.id: moved(made.encode_passages([p.title_and_text])[0], tables[0][p.lang], 0.8) for p in task.passages}
    for name, strength in (("shift", 0.0), ("both", 0.5)):
        ours = found(data, name)
        for query in task.queries:
            asked = moved(ask([query.text])[0], tables[1][query.lang], strength)
            theirs = {docid: sum(a * b for a, b in zip(asked, row, strict=True)) for docid, row in passages.items()}
            for docid, score in ours[query.id]:
                assert score == pytest.approx(theirs[docid], abs=2e-3)  # a card keeps means in 16 bits


def test_shift_closes_a_gap_that_is_an_offset(data):
    plain = System("plain", calibration=0.0)
    shift = replace(plain, name="shift", passage_calibration=1.0, passage_means="offsets:tatoeba-all")
    both = replace(shift, name="both", calibration=1.0, means="offsets:tatoeba-all")
    report = run(suite(plain, shift, both), data, made=encoder())
    cross = {r.system: r.headline.value for r in report.results if r.metric == "R@3 cross"}
    assert cross["plain"] < cross["shift"] and cross["plain"] < cross["both"]
    assert report.systems["shift"]["passage means"] == "offsets:tatoeba-all"


def test_own_offsets_keep_what_all_languages_share(data):
    """For parallel passages they are SHIFT's vectors of these passages; English stays where it is."""
    made, task = encoder(), load_task(POOL, data)
    run(suite(System("own", calibration=0.0, passage_calibration=1.0, passage_means="own offsets")), data, made=made)
    rows = {lang: [p for p in task.passages if p.lang == lang] for lang in LANGS}
    means = {
        lang: np.mean([made.encode_passages([p.title_and_text])[0] for p in several], axis=0)
        for lang, several in rows.items()
    }
    everywhere = np.mean(list(means.values()), axis=0)
    prior = {lang: (12 * mean + 5 * everywhere) / 17 for lang, mean in means.items()}
    asked, ours = task.queries[0], dict(found(data, "own")[task.queries[0].id])
    question = made.encode_queries([asked.text], calibrate=False)[0]
    for passage in task.passages:
        moved = made.encode_passages([passage.title_and_text])[0] - prior[passage.lang] + prior["en"]
        if passage.id in ours:
            assert ours[passage.id] == pytest.approx(float(question @ moved / np.linalg.norm(moved)), abs=2e-3)


def test_languages_without_pairs_are_not_moved():
    table = offsets({"de": (np.eye(3, dtype=np.float32), np.zeros((3, 3), np.float32))}, dim=3)
    np.testing.assert_allclose(table.means["de"], [1 / 3] * 3, atol=1e-6)
    assert not table.means["en"].any() and not table.means["und"].any()


@pytest.mark.parametrize("kind", ["npz", "json"])
def test_published_vectors_are_the_same_system(data, kind):
    """What another package wrote by its own codes of languages gives what the sentences give."""
    made = encoder()
    pairs = {}
    for lang, code in (("de", "deu"), ("sw", "swh")):
        sides = [(data / "tatoeba" / f"tatoeba.{code}-eng.{s}").read_text().splitlines() for s in (code, "eng")]
        pairs[lang] = tuple(made.encode_passages(side) for side in sides)
    means = offsets(pairs, dim=DIM).means
    named = {"deu_Latn": means["de"], "Swahili": means["sw"], "eng": means["en"]}
    path = data / f"v.{kind}"
    if kind == "npz":
        np.savez(path, **named)
    else:
        path.write_text(json.dumps({name: row.tolist() for name, row in named.items()}))
    (data / "suite.toml").write_text(f"""
        name = "s"
        datasets = ["{POOL}"]
        metrics = ["R@10"]
        search = "memory"
        [[systems]]
        name = "sentences"
        calibration = 0
        passage_calibration = 1
        passage_means = "offsets:tatoeba-all"
        [[systems]]
        name = "published"
        calibration = 0
        passage_calibration = 1
        passage_means = "v.{kind}"
    """)
    run(read_suite(data / "suite.toml"), data, made=made)
    ours, theirs = (found(data, name) for name in ("sentences", "published"))
    assert all(dict(ours[q]) == pytest.approx(dict(theirs[q]), abs=1e-5) for q in theirs)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("v.json", '{"de": [1, 2]}', "'de' with shape (2,) is no language with one vector of 3 finite numbers"),
        ("v.json", '{"klingonisch": [1, 2, 3]}', "'klingonisch'"),
        ("v.json", '{"de": [1, 2, "x"]}', "holds no vectors"),
        ("v.json", "[1]", "holds no vectors"),
        ("v.npz", "PK", "give an .npz or a .json"),
    ],
)
def test_files_that_hold_no_vectors_are_told(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        read_vectors(tmp_path / name, dim=3)
    assert says in str(error.value) and name in str(error.value)
    with pytest.raises(DataError, match="absent"):
        read_vectors(tmp_path / "absent.json", dim=3)


def test_lir_against_power_iteration():
    """The first direction of rows is what repeated multiplication by their Gram matrix tends to."""
    rng = np.random.default_rng(5)
    examples = {lang: rng.standard_normal((40, 5)).astype(np.float32) + 1 for lang in ("a", "b")}
    rows, langs = rng.standard_normal((6, 5)).astype(np.float32), ["a", "b", "c", "a", "b", "c"]
    ours = without_directions(rows, langs, examples, rank=1, normalize=False)
    for row, lang, moved in zip(rows, langs, ours, strict=True):
        expected = row
        if lang in examples:
            axis = np.ones(5)
            for _ in range(500):
                axis = examples[lang].T @ (examples[lang] @ axis)
                axis /= np.linalg.norm(axis)
            expected = row - (row @ axis) * axis
        np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_csls_against_a_loop():
    rng = np.random.default_rng(6)
    passages, questions = (rng.standard_normal((n, 4)).astype(np.float32) for n in (7, 5))
    bank, langs = {lang: rng.standard_normal((25, 4)).astype(np.float32) for lang in "ab"}, ["a", "b", "a", "c", "b"]
    wide, asked = with_hub_columns(passages, questions, langs, bank, 0.5)
    for q, lang in enumerate(langs):
        for p, passage in enumerate(passages):
            near = sorted((float(passage @ row) for row in bank.get(lang, [])), reverse=True)[:10]
            expected = float(questions[q] @ passage) - 0.5 * (sum(near) / len(near) if near else 0.0)
            assert float(asked[q] @ wide[p]) == pytest.approx(expected, abs=1e-5)


def test_lir_and_csls_are_systems_that_a_collection_cannot_all_hold(data):
    made, bank = encoder(), {lang: question_bank()[lang] for lang in ("de", "en", "sw")}
    run(suite(System("csls", calibration=0.0, csls=0.5)), data, made=made)
    task, best = load_task(POOL, data), found(data, "csls")
    passages = {p.id: made.encode_passages([p.title_and_text])[0] for p in task.passages}
    rows = {lang: made.encode_queries(list(texts), calibrate=False) for lang, texts in bank.items()}
    for query in task.queries[::9]:
        asked = made.encode_queries([query.text], calibrate=False)[0]
        for docid, score in best[query.id]:
            near = np.sort(rows[query.lang] @ passages[docid])[-10:].mean()
            assert score == pytest.approx(float(asked @ passages[docid] - 0.5 * near), abs=1e-4)
    with pytest.raises(DataError, match="csls is no dot product"):
        run(replace(suite(System("c", csls=0.5)), search="exact"), data, made=made)


def test_settings_are_chosen_on_half_and_reported_on_the_other(data):
    pytest.importorskip("scipy")  # the report's significance
    made, task = encoder(), load_task(POOL, data)
    base = System("both", passage_calibration=1.0)
    choice = Choice("chosen", "both", {"calibration": (0.0, 0.5), "passage_calibration": (0.0, 1.0)}, "R@3")
    report = run(suite(base, choices=(choice,), comparisons=(Comparison("both", ("chosen",)),)), data, made=made)
    kept = _held_out(data)
    (metric,) = parse_metrics(["R@3"])
    tried = {}
    for candidate in choice.candidates(base):
        run(suite(replace(candidate, name="one")), data, made=made)
        tried[candidate] = per_query(found(data, "one"), task.qrels, metrics=[metric])[metric]
    clusters = task.clusters()
    held = {r.metric: r.headline for r in report.results if r.system == "chosen"}["R@3"]
    assert len(kept) == held.n and 0 < held.n < 72 and held.n % 6 == 0, "all six of a paragraph are on one side"
    assert {clusters[q] for q in kept}.isdisjoint(clusters[q] for q in clusters if q not in kept)
    means = {
        candidate: macro_mean({q: v for q, v in values.items() if q not in kept}, groups=task.groups)
        for candidate, values in tried.items()
    }
    best = max(means, key=lambda candidate: means[candidate])
    expected = macro_mean({q: tried[best][q] for q in kept}, groups=task.groups)
    assert held.value == pytest.approx(expected)
    assert any(f"calibration {best.calibration:g}" in note for note in report.notes if "chosen of 4" in note)
    assert "Half of the questions" in report.description
    with pytest.raises(DataError, match="no setting to choose"):
        suite(base, choices=(replace(choice, grid={"n": (1.0,)}),))
    with pytest.raises(DataError, match="chosen is chosen by MRR@5"):
        run(suite(base, choices=(replace(choice, metric="MRR@5"),)), data, made=made)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"passage_means": "offsets:tatoba"}, "there is no dataset 'tatoba'"),
        ({"passage_means": "tatoeba-all"}, "passage_means is one of own, own offsets, offsets:DATASET"),
        ({"passage_means": "absent.npz"}, "absent.npz"),
        ({"means": "own"}, "there is no dataset 'own'"),
    ],
)
def test_sources_that_are_none_are_told_before_encoding(data, change, says):
    made = encoder()
    with pytest.raises(DataError) as error:
        run(suite(replace(System("s", passage_calibration=1.0), **change)), data, made=made)
    assert says in str(error.value) and made.texts_seen == 0


def test_sentences_without_the_languages_of_the_pool_are_told(data):
    source = "offsets:tatoeba-all"
    for path in (data / "tatoeba").iterdir():
        path.rename(path.with_name(path.name.replace("deu", "fra").replace("swh", "fin")))
    with pytest.raises(DataError, match="tatoeba-all has no sentences with English translations in languages of"):
        run(suite(System("s", passage_calibration=1.0, passage_means=source)), data, made=encoder())


def _held_out(data):
    import csv

    with (data / "out" / "questions.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {row["question"] for row in rows if row.get("both | R@3")}
