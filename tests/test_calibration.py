import numpy as np
import pytest
from rankings import assert_best

from xqg_vdb.calibration import (
    LanguageMeans,
    calibrate,
    language_means,
    load_means,
    mrr_curve,
    pack_means,
    recommended_strength,
    save_means,
    unpack_means,
)
from xqg_vdb.errors import ModelError
from xqg_vdb.texts.corpus import read_questions, sample_corpus
from xqg_vdb.texts.languages import question_bank

RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def fresh_numbers(monkeypatch):
    """Every test draws the same numbers, whichever ran before it."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(7))


def table(**rows):
    return language_means({lang: np.array(r, np.float32) for lang, r in rows.items()}, source="test")


def test_the_mean_is_subtracted_per_row():
    means = table(sw=[[1, 0], [0, 1]], ar=[[2, 2]])
    queries = np.array([[1, 1], [1, 1]], np.float32)
    moved = calibrate(queries, langs=["sw", "ar"], table=means, strength=0.5, normalize=False)
    # sw: (1,1) - 0.5·(0.5,0.5); ar: (1,1) - 0.5·(2,2)
    np.testing.assert_allclose(moved, [[0.75, 0.75], [0, 0]], atol=1e-7)


def test_unknown_languages_take_the_mean_over_languages():
    means = table(sw=[[1, 0]], ar=[[0, 1]])
    moved = calibrate(
        np.ones((3, 2), np.float32), langs=["und", None, "xx"], table=means, strength=1.0, normalize=False
    )
    np.testing.assert_allclose(moved, np.full((3, 2), 0.5), atol=1e-7)


def test_strength_zero_and_an_empty_table_change_nothing():
    queries = RNG.standard_normal((4, 3)).astype(np.float32)
    for means, strength in ((table(sw=[[1, 0, 0]]), 0.0), (LanguageMeans(), 0.8)):
        assert calibrate(queries, langs=["sw"] * 4, table=means, strength=strength, normalize=True) is queries


def test_normalising_changes_no_ranking():
    means = table(sw=RNG.standard_normal((5, 16)))
    queries = RNG.standard_normal((6, 16)).astype(np.float32)
    passages = RNG.standard_normal((40, 16)).astype(np.float32)
    plain, normalised = (
        calibrate(queries, langs=["sw"] * 6, table=means, strength=0.8, normalize=n) @ passages.T for n in (False, True)
    )
    for scores, others in zip(plain, normalised, strict=True):
        assert_best(np.argsort(-others).tolist(), dict(enumerate(scores)), k=40)


def test_refining_is_the_mean_over_all_questions():
    first, second = RNG.standard_normal((30, 4)), RNG.standard_normal((70, 4))
    both = table(sw=first).refined(table(sw=second, yo=second))
    np.testing.assert_allclose(both.means["sw"], np.concatenate([first, second]).mean(axis=0), atol=1e-6)
    assert both.counts == {"sw": 100, "yo": 70}


def test_generated_queries_never_outweigh_what_is_there():
    bank, many = RNG.standard_normal((30, 4)), RNG.standard_normal((700, 4))
    found = table(sw=bank, ar=bank).refined(table(sw=many, ar=many[:10], yo=many), capped=True)
    np.testing.assert_allclose(found.means["sw"], (bank.mean(axis=0) + many.mean(axis=0)) / 2, atol=1e-6)
    np.testing.assert_allclose(found.means["ar"], np.concatenate([bank, many[:10]]).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.means["yo"], many.mean(axis=0), atol=1e-6)
    assert found.counts == {"sw": 60, "ar": 40, "yo": 700}


def test_means_survive_the_file_and_the_card(tmp_path):
    means = table(sw=RNG.standard_normal((3, 8)), ar=RNG.standard_normal((2, 8)))
    (tmp_path / "calibration.npz").write_bytes(save_means(means))
    again = load_means(tmp_path / "calibration.npz", dim=8)
    assert again.counts == means.counts and again.source == "test"
    packed = unpack_means(pack_means(means), dim=8)
    for lang, mean in means.means.items():
        np.testing.assert_array_equal(again.means[lang], mean)
        np.testing.assert_allclose(packed.means[lang], mean, rtol=1e-3, atol=1e-3)  # float16


def test_damaged_calibration_is_refused(tmp_path):
    path = tmp_path / "calibration.npz"
    good = save_means(table(sw=[[1.0, 2.0]]))
    for bad in (b"", good[:40], b"PK" + good[2:50], np.array([{"a": 1}], dtype=object).dumps()):
        path.write_bytes(bad)
        with pytest.raises(ModelError, match=r"holds no calibration .*; export the model again"):
            load_means(path, dim=2)
    path.write_bytes(good)
    with pytest.raises(ModelError, match=r"shape \(1, 2\), expected \(1, 3\)"):
        load_means(path, dim=3)
    with pytest.raises(ModelError, match="do not have 3 dimensions"):
        unpack_means(pack_means(table(sw=[[1.0, 2.0]])), dim=3)


def test_hub_correction_finds_what_a_hub_hid():
    """A passage near the language's common direction answers everything, until that direction is subtracted."""
    common = np.zeros(16, np.float32)
    common[0] = 3.0
    contents = np.eye(16, dtype=np.float32)[1:9]
    queries = contents + common
    passages = np.concatenate([contents + 0.1 * common, common[None] * 1.5])
    means = language_means({"sw": queries}, source="test")
    options = {"langs": ["sw"] * 8, "answers": np.arange(8), "table": means, "normalize": False}
    curve = mrr_curve(queries, passages, **options)
    assert curve[0.0] == pytest.approx(0.5) and curve[1.0] == 1.0
    assert recommended_strength(curve) > 0


@pytest.mark.parametrize(
    ("curve", "strength"),
    [
        ({0.0: 0.5, 0.4: 0.505, 0.8: 0.507}, 0.0),  # not worth it
        ({0.0: 0.5, 0.4: 0.55, 0.8: 0.60}, 0.8),
        ({0.0: 0.5, 0.4: 0.60, 0.6: 0.601, 0.8: 0.605}, 0.6),  # flat: the middle
        ({0.0: 0.5, 0.8: 0.60, 1.0: 0.605}, 0.8),  # of two, the lower
        ({0.0: 0.7, 0.4: 0.6, 0.8: 0.5}, 0.0),  # it hurts
    ],
)
def test_recommendation(curve, strength):
    assert recommended_strength(curve) == strength


def test_the_question_bank_covers_what_it_promises():
    bank = question_bank()
    xtreme = (
        "af ar bg bn de el en es et eu fa fi fr he hi hu id it ja jv "
        "ka kk ko ml mr ms my nl pt ru sw ta te th tl tr ur vi yo zh"
    )
    afriqa = "bem ha ig rw tw yo zu"
    assert set(xtreme.split()) | set(afriqa.split()) <= set(bank) and len(bank) >= 60
    for lang, questions in bank.items():
        assert len(questions) >= 30 and len(set(questions)) == len(questions), lang


def test_the_sample_corpus_is_consistent():
    import orjson

    sample = sample_corpus()
    passages = {r["id"]: r for r in map(orjson.loads, sample.corpus.read_bytes().splitlines())}
    queries = {r["id"]: r["generated_queries"] for r in map(orjson.loads, sample.queries.read_bytes().splitlines())}
    assert len(passages) == 60 and set(queries) == set(passages)
    assert len({p["lang"] for p in passages.values()}) >= 5
    langs = {lang for own in queries.values() for lang in own}
    assert len(langs) == 10 and all(len(own[lang]) == 2 for own in queries.values() for lang in langs)
    known = {text for own in queries.values() for texts in own.values() for text in texts}
    questions = read_questions(sample.questions)
    assert len(questions) == 600 and not {q.text for q in questions} & known
