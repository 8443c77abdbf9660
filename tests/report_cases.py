"""Reports for tests: a realistic one, an empty one, and one whose every name is hostile."""

import random

from xqg_vdb.evaluate.records import Change, Compared, Difference, HeatMap, Point, Report, Result, Sweep, Value

SYSTEMS = {
    "plain": {"recipe": {"alpha": 0.0}, "lambda": 0.0, "search": "exact"},
    "calibrated (question bank)": {"recipe": {"alpha": 0.0}, "lambda": 0.75, "search": "exact"},
    "calibrated (generated queries)": {"recipe": {"alpha": 0.0}, "lambda": 0.75, "means": "generated"},
    "xQG": {"recipe": {"alpha": 0.35, "pool": "shrunk", "shrink": 2.0, "centred": True}, "lambda": 0.0},
    "calibrated + xQG": {"recipe": {"alpha": 0.35, "pool": "shrunk", "shrink": 2.0}, "lambda": 0.75},
    "direction only": {"recipe": {"alpha": 0.35, "pool": "shrunk"}, "control": "queries replaced by their mean"},
    "shuffled queries": {"recipe": {"alpha": 0.35}, "control": "queries of other passages", "seed": 7},
}
AFRIQA = ["bem", "ha", "ig", "rw", "tw", "zu"]
XQUAD = ["ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh"]
ODD = ["العربية الفصحى", "עברית", "北京官话", "Norwegian Bokmål as it is written in Western municipalities", "sw"]
GAINS = {
    "plain": 0.0, "calibrated (question bank)": 0.055, "calibrated (generated queries)": 0.05, "xQG": 0.03,
    "calibrated + xQG": 0.075, "direction only": 0.02, "shuffled queries": -0.012,
}  # fmt: skip


def realistic() -> Report:
    """Three datasets, seven systems, two metrics, sweeps of every kind, two heat maps and all verdicts."""
    dice = random.Random(20)
    sets = {"afriqa": AFRIQA, "xquad-paragraphs": XQUAD, "Field notes (ملاحظات ميدانية)": ODD}
    results, comparisons = [], []
    for dataset, groups in sets.items():
        for metric in ("R@10", "MRR@10") if dataset == "afriqa" else ("R@10",):
            table = {system: result(dataset, system, metric, groups, dice) for system in SYSTEMS}
            results += table.values()
            pairs = [("plain", system) for system in list(SYSTEMS)[1:]]
            pairs.append(("calibrated (question bank)", "calibrated + xQG"))
            comparisons += [compared(table[a], table[b], dice) for a, b in pairs]
    return Report(
        suite="xQG with its controls",
        description="Questions in other languages over English passages. Plain search, calibration, generated"
        " queries, both, and the controls that tell content from direction.\n\nEach system searches a collection.",
        command="xqg-vdb bench benchmarks/suites/controls.toml --data-dir ../shared/data --out reports/controls",
        created="2026-11-23T06:30:00Z",
        environment={
            "xqg-vdb": "0.1.0", "commit": "dc6d12a4f1b2c3d4e5f60718293a4b5c6d7e8f90", "python": "3.11.2",
            "machine": {"cpu": "AMD EPYC 7B13", "cores": 2, "memory_gib": 7.8, "gpu": None}, "threads": 1,
            "versions": {"numpy": "2.3.1", "onnxruntime": "1.23.0", "qdrant-edge-py": "0.9.0"},
            "tokenizer": "nltk punkt 2.2.1, english",
        },
        datasets={name: {"questions": 1579, "passages": 13014, "sha256": "ab12" * 16} for name in sets},
        encoders={"starter-int8": {"fingerprint": "1f2e3d4c5b6a7988", "source": "starter:encoder", "dim": 384}},
        query_files={"afriqa-gemma": {"queries": 56160, "languages": AFRIQA, "sha256": "cd34" * 16}},
        systems=SYSTEMS,
        results=results,
        comparisons=comparisons,
        sweeps=sweeps(dice),
        heatmaps=heatmaps(dice),
        notes=["The generated queries were written by a 270M model; three languages are hardly known to it."],
    )  # fmt: skip


def result(dataset, system, metric, groups, dice) -> Result:
    values = {}
    for place, name in enumerate(groups):
        mean = min(0.99, max(0.02, 0.45 + 0.04 * place + GAINS[system] + dice.uniform(-0.015, 0.015)))
        n = 190 + 31 * place
        half = 1.96 * (mean * (1 - mean) / n) ** 0.5
        values[name] = Value(n, mean, None if n > 480 else (max(0.0, mean - half), min(1.0, mean + half)))
    mean = sum(one.value for one in values.values()) / len(values)
    total = sum(one.n for one in values.values())
    return Result(dataset, system, metric, Value(total, mean, (mean - 0.012, mean + 0.012)), values,
                  seconds={"encode": dice.uniform(1, 900), "load": 3.21, "search": dice.uniform(0.1, 2)})  # fmt: skip


def compared(baseline: Result, system: Result, dice) -> Compared:
    groups = {name: difference(baseline.groups[name], system.groups[name], dice) for name in system.groups}
    return Compared(system.dataset, system.metric, baseline.system, system.system,
                    difference(baseline.headline, system.headline, dice, holm=False), groups)  # fmt: skip


def difference(baseline: Value, system: Value, dice, *, holm=True) -> Difference:
    gain = system.value - baseline.value
    p = max(0.0, min(1.0, 10 ** (-60 * abs(gain)) * dice.uniform(0.5, 2)))
    corrected = min(1.0, p * 6) if holm else None
    return Difference(system.n, baseline.value, system.value, gain, (gain - 0.02, gain + 0.02), gain * 4, p, p,
                      corrected, corrected)  # fmt: skip


def sweeps(dice) -> list[Sweep]:
    found = []
    for parameter, xs, peak in [
        ("alpha", [i / 20 for i in range(21)], 0.35),
        ("lambda", [i / 8 for i in range(11)], 0.8),
    ]:
        points = []
        for x in xs:
            value = 0.66 - 0.35 * (x - peak) ** 2
            points.append(
                Point(
                    x, value, {g: value + 0.03 * i - 0.08 + dice.uniform(-0.004, 0.004) for i, g in enumerate(AFRIQA)}
                )
            )
        found.append(Sweep("afriqa", "R@10", "calibrated + xQG", parameter, points))
    for system in ("xQG", "calibrated + xQG", "shuffled queries"):
        points = [Point(n, 0.58 + GAINS[system] * (1 - 0.6**n)) for n in (0, 1, 2, 3, 5, 10)]
        found.append(Sweep("afriqa", "R@10", system, "n", points))
    left_out = [
        Point(f"without {g}", 0.63 - 0.004 * i + dice.uniform(-0.01, 0.02), {g: 0.5}) for i, g in enumerate(AFRIQA)
    ]
    found.append(Sweep("afriqa", "R@10", "calibrated + xQG", "without", left_out))
    return found


def heatmaps(dice) -> list[HeatMap]:
    values = [[0.62 if i == j else dice.uniform(0, 0.3) for j in range(len(XQUAD))] for i in range(len(XQUAD))]
    odd = [[dice.uniform(0, 0.9) for _ in ODD] for _ in AFRIQA]
    return [
        HeatMap("xquad-paragraphs", "plain", "share of the top 20", XQUAD, XQUAD, values),
        HeatMap("Field notes (ملاحظات ميدانية)", "xQG", "recall@10", AFRIQA, ODD, odd),
    ]


def empty() -> Report:
    """A report of a suite that found nothing."""
    return Report("nothing", "", "", "", {}, {}, {}, {}, {})


def named(name: str) -> Report:
    """A small report with everything in it, in which every name and word is `name`."""
    value = Value(3, 0.5, (0.25, 0.75))
    change = Difference(3, 0.25, 0.5, 0.25, (0.0, 0.5), None, 0.04, 0.03, 0.2, 0.009)
    other = name + "2"
    changed = Change(name, name, name, name, 0.0, 1.0, name, other)
    entry = {name: {name: name}}
    return Report(
        suite=name, description=name, command=name, created=name, environment=entry, datasets=entry, encoders=entry,
        query_files=entry, systems=entry,
        results=[Result(name, system, name, value, {name: value}, {name: 1.0}) for system in (name, other)],
        comparisons=[
            Compared(name, name, name, other, change, {name: change}, (changed,), (changed,), (2, 1)),
            Compared(name, name, other, name, change, {name: change}, (changed,), (), (1, 0)),
        ],
        sweeps=[
            Sweep(name, name, name, name, [Point(0.5, 0.25, {name: 0.25}), Point(1, 0.5, {name: 0.5})]),
            Sweep(name, name, name, "without", [Point(name, 0.25, {name: 0.25})]),
        ],
        heatmaps=[HeatMap(name, name, name, [name, other], [name], [[0.0], [1.0]])],
        notes=[name],
    )  # fmt: skip
