"""Tests and intervals against scipy, against enumeration, and against arithmetic."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xqg_vdb.errors import MismatchError
from xqg_vdb.evaluate.metrics import FEW, counted, headline, macro_mean, mean
from xqg_vdb.evaluate.significance import compare, compare_groups, holm, mean_interval

stats = pytest.importorskip("scipy.stats", reason="needs the extra bench")


def named(values) -> dict[str, float]:
    return {f"q{i:03}": float(value) for i, value in enumerate(values)}


def zeros(n: int) -> dict[str, float]:
    return named([0.0] * n)


DIFFERENCES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.25, 1.0]), min_size=2, max_size=9)


@settings(max_examples=60, deadline=None)
@given(DIFFERENCES)
def test_sign_flips_equal_enumeration_and_scipy(differences):
    n = len(differences)
    observed = abs(sum(differences) / n)
    flipped = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)) / n)
        for signs in itertools.product((1, -1), repeat=n)
    ]
    expected = sum(value >= observed - 1e-12 for value in flipped) / 2**n
    result = compare(zeros(n), named(differences), resamples=200)
    assert result.p_permutation == pytest.approx(expected, abs=1e-9)
    theirs = stats.permutation_test(
        (np.array(differences),),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
    )
    assert result.p_permutation == pytest.approx(theirs.pvalue, abs=1e-9)


def test_many_differences_are_sampled_and_close_to_scipy():
    rng = np.random.default_rng(5)
    differences = rng.standard_normal(80) + 0.2
    result = compare(zeros(80), named(differences))
    theirs = stats.permutation_test(
        (differences,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", vectorized=True, rng=rng
    )
    assert result.p_permutation == pytest.approx(theirs.pvalue, abs=0.03)
    assert result.p_permutation == compare(zeros(80), named(differences)).p_permutation  # seeded
    assert result.p_permutation != compare(zeros(80), named(differences), seed=1).p_permutation


def test_t_test_and_effect_size():
    before, after = [0.1, 0.4, 0.3, 0.8, 0.0], [0.2, 0.4, 0.7, 0.9, 0.3]
    result = compare(named(before), named(after))
    theirs = stats.ttest_rel(after, before)
    assert result.p_t == pytest.approx(theirs.pvalue, abs=1e-9)
    # differences .1 0 .4 .1 .3: mean .18, squared deviations .0064 + .0324 + .0484 + .0064 + .0144 over 4
    assert result.difference == pytest.approx(0.9 / 5)
    assert result.d_z == pytest.approx(0.18 / math.sqrt(0.108 / 4))
    assert theirs.statistic == pytest.approx(result.d_z * math.sqrt(5))
    assert (result.n, result.baseline, result.system) == (5, pytest.approx(1.6 / 5), pytest.approx(2.5 / 5))


def test_intervals_are_scipys_percentiles_and_seeded():
    values = np.random.default_rng(2).random(40)
    ours = mean_interval(named(values), seed=7, resamples=2000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(8))
    assert ours == pytest.approx(theirs.confidence_interval, abs=0.01)
    assert ours == mean_interval(named(values), seed=7, resamples=2000)
    assert ours[0] < values.mean() < ours[1]


@pytest.mark.parametrize("distinct", [2, 11, 400])
def test_both_ways_to_resample_have_scipys_spread(distinct):
    """Few values are drawn by their multinomial counts, many one by one: the same standard error and interval."""
    rng = np.random.default_rng(distinct)
    values = rng.integers(0, distinct, size=400) / (distinct - 1)
    ours = mean_interval(named(values), seed=1, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=rng).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=3.5e-3)
    assert ours[1] - ours[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.03)


def test_macro_resamples_within_languages():
    # Arabic never varies, Swahili's single question cannot be resampled: only Bengali moves, by a third
    values = named([1.0, 1.0, 0.0, 0.0, 1.0, 0.5])
    groups = dict(zip(values, ["ar", "ar", "bn", "bn", "bn", "sw"], strict=True))
    interval = mean_interval(values, groups=groups, resamples=3000)
    assert interval == pytest.approx(((1 + 0 + 0.5) / 3, (1 + 1 + 0.5) / 3))


def test_no_difference_and_too_few_questions():
    same = compare(named([0.3, 0.7]), named([0.3, 0.7]))
    assert (same.d_z, same.p_t, same.p_permutation, same.difference, same.interval) == (0.0, 1.0, 1.0, 0.0, (0.0, 0.0))
    one = compare({"q": 0.0}, {"q": 1.0})
    assert (one.n, one.difference, one.p_t, one.p_permutation) == (1, 1.0, 1.0, 1.0)
    assert one.d_z is None and one.interval is None
    none = compare({}, {})
    assert none.n == 0 and math.isnan(none.difference) and none.p_t == none.p_permutation == 1.0
    constant = compare(named([0.1, 0.2, 0.3]), named([0.6, 0.7, 0.8]))
    assert (constant.d_z, constant.p_t) == (None, 0.0)
    assert constant.p_permutation == 2 / 2**3  # all plus or all minus


def test_holm_by_hand_and_in_order():
    # sorted .01 .02 .03 .5: .01·4, .02·3, max(.06, .03·2), .5·1
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_equals_its_definition(p_values):
    """Reject while p_(i) ≤ level / (m - i + 1); the corrected p is the smallest level at which its test is rejected."""
    m, corrected = len(p_values), holm(p_values)
    for index, p in enumerate(p_values):
        ahead = [q for q in sorted(p_values) if q <= p]
        needed = max((q * (m - place) for place, q in enumerate(ahead)), default=0.0)
        # equal p-values share the first one's factor
        assert corrected[index] == pytest.approx(min(1.0, needed), abs=1e-9)


def test_groups_are_compared_apart_and_together():
    rng = np.random.default_rng(11)
    sizes = {"ar": 24, "bn": 26, "sw": 20}
    groups = {f"{lang}{i}": lang for lang, n in sizes.items() for i in range(n)}
    baseline = {qid: float(rng.integers(0, 2)) for qid in groups}
    system = {qid: min(1.0, value + float(rng.integers(0, 2)) * 0.5) for qid, value in baseline.items()}
    result = compare_groups(baseline, system, groups=groups, resamples=2000)
    assert list(result.groups) == ["ar", "bn", "sw"]
    assert {lang: c.n for lang, c in result.groups.items()} == sizes
    for lang, own in result.groups.items():
        alone = compare(
            {q: v for q, v in baseline.items() if groups[q] == lang},
            {q: v for q, v in system.items() if groups[q] == lang},
            resamples=2000,
        )
        assert replace(own, holm_t=None, holm_permutation=None) == alone
    gains = [c.difference for c in result.groups.values()]
    assert result.macro.difference == pytest.approx(sum(gains) / 3)
    assert result.macro.n == 70
    assert result.macro.p_t == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)
    assert [c.holm_t for c in result.groups.values()] == holm([c.p_t for c in result.groups.values()])
    tests = [c.p_permutation for c in result.groups.values()]
    assert [c.holm_permutation for c in result.groups.values()] == holm(tests)
    assert result.macro.interval[0] <= result.macro.difference <= result.macro.interval[1]


def test_macro_permutation_is_exact_for_few_questions():
    baseline = named([0.0] * 5)
    system = named([1.0, 0.5, 1.0, -0.5, 1.0])
    groups = dict(zip(baseline, ["a", "a", "b", "b", "b"], strict=True))
    weights = [0.25, 0.25, 1 / 6, 1 / 6, 1 / 6]
    weighted = [w * d for w, d in zip(weights, system.values(), strict=True)]
    sums = [
        abs(sum(s * w for s, w in zip(signs, weighted, strict=True))) for signs in itertools.product((1, -1), repeat=5)
    ]
    expected = sum(value >= abs(sum(weighted)) - 1e-12 for value in sums) / 32
    assert compare_groups(baseline, system, groups=groups).macro.p_permutation == pytest.approx(expected)


def test_different_questions_are_refused():
    with pytest.raises(MismatchError) as error:
        compare({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 0.0})
    assert str(error.value) == (
        "the two systems were measured on different questions (2 are in one only, such as 'b'); score unanswered "
        "questions 0 instead of leaving them out."
    )
    with pytest.raises(MismatchError, match="1 questions have no group, such as 'b'"):
        compare_groups({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, groups={"a": "ar"})


# One mean a row, and questions that belong together.

SIZES = {"ha": 40, "ig": 31, "ki": 3, "zu": 1}


def uneven(seed=3):
    """Values of two systems in groups of these sizes, the small ones far from the others."""
    rng = np.random.default_rng(seed)
    groups = {f"{lang}{i}": lang for lang, n in SIZES.items() for i in range(n)}
    before = {qid: float(rng.integers(0, 2)) for qid in groups}
    after = {
        qid: 1.0 if lang in ("ki", "zu") else max(before[qid], float(rng.random() < 0.2))
        for qid, lang in groups.items()
    }
    return groups, before, after


@pytest.mark.parametrize("average", ["queries", "groups"])
def test_values_differences_and_tests_are_of_one_mean(average):
    """The slow twin: the mean spelt out, its enumeration by draws, and the headline of each system."""
    groups, before, after = uneven()
    macro = compare_groups(before, after, groups=groups, average=average).macro
    weights = dict.fromkeys(groups, 1 / len(groups))
    if average == "groups":
        weights = {qid: 1 / (2 * SIZES[lang]) for qid, lang in groups.items() if SIZES[lang] >= FEW}
    assert macro.baseline == pytest.approx(sum(w * before[qid] for qid, w in weights.items()))
    assert macro.system == pytest.approx(sum(w * after[qid] for qid, w in weights.items()))
    assert macro.difference == pytest.approx(macro.system - macro.baseline)
    assert (macro.baseline, macro.system) == pytest.approx(
        (headline(before, groups=groups, average=average), headline(after, groups=groups, average=average))
    )
    assert macro.n == len(weights)
    shares = np.array([w * (after[qid] - before[qid]) for qid, w in weights.items()])
    signs = np.random.default_rng(1).choice([-1.0, 1.0], size=(20_000, len(shares)))
    assert macro.p_permutation == pytest.approx((abs(signs @ shares) >= abs(shares.sum()) - 1e-12).mean(), abs=0.01)
    parts = counted(before, groups=groups, average=average)
    interval = mean_interval({q: after[q] - before[q] for q in parts}, groups=parts)
    assert macro.interval == interval and interval[0] < macro.difference < interval[1]


def test_small_groups_count_where_no_group_is_large():
    values = {"a": 1.0, "b": 0.0, "c": 0.0}
    groups = {"a": "ha", "b": "zu", "c": "zu"}
    assert counted(values, groups=groups, average="groups") == groups
    assert headline(values, groups=groups, average="groups") == macro_mean(values, groups=groups) == 0.5
    assert headline(values, groups=groups, average="queries") == mean(values) == pytest.approx(1 / 3)


def clustered(*, paragraphs, langs, each, seed=2, spread=0.3):
    """Differences that are alike within a paragraph: id -> value, language and paragraph."""
    rng = np.random.default_rng(seed)
    values, groups, clusters = {}, {}, {}
    for paragraph in range(paragraphs):
        middle = rng.standard_normal()
        for lang in langs:
            for number in range(each):
                qid = f"{paragraph}-{number}-{lang}"
                values[qid] = middle + spread * rng.standard_normal()
                groups[qid], clusters[qid] = lang, f"p{paragraph}"
    return values, groups, clusters


@pytest.mark.parametrize("average", ["queries", "groups"])
def test_intervals_and_flips_take_clusters_as_wholes(average):
    """The slow twin draws paragraphs in a loop, with everything that belongs to them."""
    values, groups, clusters = clustered(paragraphs=40, langs=["ar", "de", "zh"], each=2)
    zero = dict.fromkeys(values, 0.0)
    found = compare_groups(zero, values, groups=groups, clusters=clusters, average=average, resamples=4000).macro
    members = {}
    for qid, name in clusters.items():
        members.setdefault(name, []).append(values[qid])
    means = np.array([np.mean(own) for own in members.values()])  # every paragraph has as many of each language
    rng = np.random.default_rng(9)
    drawn = [means[rng.integers(0, len(means), len(means))].mean() for _ in range(4000)]
    assert found.interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    signs = rng.choice([-1.0, 1.0], size=(4000, len(means)))
    assert found.p_permutation == pytest.approx((abs(signs @ means) >= abs(means.sum())).mean(), abs=0.03)
    apart = compare_groups(zero, values, groups=groups, average=average, resamples=4000).macro
    assert found.difference == apart.difference
    assert np.ptp(found.interval) > 1.8 * np.ptp(apart.interval)
    alone = compare(zero, values, clusters=clusters)
    assert alone.p_t == pytest.approx(stats.ttest_1samp(means, 0).pvalue)


def test_clusters_of_unequal_size_against_a_loop():
    """Some questions have translations, some have none: every draw is the mean of what was drawn."""
    values, groups, clusters = clustered(paragraphs=30, langs=["ar", "de"], each=1)
    more, others, own = clustered(paragraphs=20, langs=["ar"], each=3, seed=5)
    values |= {f"x{qid}": value for qid, value in more.items()}
    groups |= {f"x{qid}": lang for qid, lang in others.items()}
    clusters |= {f"x{qid}": f"x{name}" for qid, name in own.items()}
    ours = mean_interval(values, groups=groups, clusters=clusters, resamples=4000)
    rng, names = np.random.default_rng(4), sorted(set(clusters.values()))
    members = {name: [qid for qid in values if clusters[qid] == name] for name in names}
    kinds = [[n for n in names if n.startswith("x")], [n for n in names if not n.startswith("x")]]
    means = []
    for _ in range(4000):
        drawn = [qid for kind in kinds for name in rng.choice(kind, len(kind)) for qid in members[name]]
        means.append(np.mean([np.mean([values[q] for q in drawn if groups[q] == lang]) for lang in ("ar", "de")]))
    assert ours == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)


def test_one_cluster_has_no_interval():
    values = named([0.0, 1.0, 1.0])
    assert mean_interval(values, clusters=dict.fromkeys(values, "p")) is None
    alone = compare(zeros(3), values, clusters=dict.fromkeys(values, "p"))
    assert alone.p_t == alone.p_permutation == 1.0
