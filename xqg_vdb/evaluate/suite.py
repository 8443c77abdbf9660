"""A suite: which systems on which datasets, what is compared and swept; read from a TOML file or made for one dataset.

Everything is checked when the file is read, so that a misspelt key costs no hour of encoding. Paths in a suite file are
relative to it. `docs/suites.md` explains every key with examples.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets import DATASETS, is_dataset
from xqg_vdb.search import Methods
from xqg_vdb.search.expand import expansion_spec, target_language
from xqg_vdb.search.rerank import reranker_spec
from xqg_vdb.texts.records import read_whole
from xqg_vdb.types import Recipe, Search, checked

ANY_DATASET = "*"
Parameter = Literal["alpha", "lambda", "n", "without"]


@dataclass(frozen=True, slots=True)
class System:
    """One way to fill a collection and to ask it.

    queries: name of a query set, None for passages as they are. n: queries a language at most (the first n).
    content: `own`; `direction` (every passage gets its languages' mean instead, no content) and `shuffled` (every
        passage gets another's queries) are the controls that xQG must beat.
    calibration: λ, None for what the encoder's folder recommends. means: where μ comes from: `refined` (bank and
        generated queries, what `load` does), `bank`, `generated`, a dataset whose questions give it, or what
        passage_means takes from elsewhere.
    languages: the question's language is `given` by the benchmark, `detected`, or `unknown` (one mean for all).
    passage_calibration: λ of the passages' side, for corpora of several languages. passage_means: what is subtracted
        there: `own`, their language's mean passage vector; `own offsets`, that less English's; `offsets:DATASET`,
        SHIFT's vectors from parallel sentences; or a file of published ones (`systems.read_vectors`).
    lir: principal directions of its language that are taken out of every vector. csls: weight of a passage's nearness
        to the bank's questions of the asked language. See `systems`.
    hybrid: search the words as well and fuse the rankings.
    methods: what generators do; a suite file says `expand`, `expand_lang`, `rerank` … among the others.
    """

    name: str
    encoder: str = "starter"
    queries: str | None = None
    content: Literal["own", "direction", "shuffled"] = "own"
    recipe: Recipe = field(default_factory=Recipe)
    n: int | None = None
    calibration: float | None = None
    means: str = "refined"
    languages: Literal["given", "detected", "unknown"] = "given"
    passage_calibration: float = 0.0
    passage_means: str = "own"
    lir: int = 0
    csls: float = 0.0
    hybrid: bool = False
    methods: Methods = field(default_factory=Methods)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Systems that are tested against one baseline."""

    baseline: str
    systems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """One parameter of a system over several values, by one metric; `without` leaves out each language in turn."""

    system: str
    parameter: Parameter
    values: tuple[float, ...] = ()
    metric: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The best setting of a system by the metric, chosen on half of a dataset's questions; all else is of the others.

    grid: setting of the system -> values, of which every combination is tried.
    """

    name: str
    system: str
    grid: Mapping[str, tuple[float, ...]]
    metric: str = "R@10"

    def candidates(self, base: System) -> list[System]:
        """The system with each combination of the grid."""
        _refuse_unknown(self.grid, ["calibration", "passage_calibration", "lir", "csls"], "setting to choose")
        settings: list[dict[str, Any]] = [
            dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())
        ]
        return [replace(base, name=self.name, **setting) for setting in settings]


@dataclass(frozen=True, slots=True)
class Suite:
    """What to run. metrics: None for each dataset's own. depth: passages kept a question, at least what metrics need.

    queries: query set -> dataset (or `*`) -> file. search: `exact` and `graph` ask a real collection, `memory` ranks by
    matrix product (the same ranking as exact, without a store). ef: candidates that `graph` keeps. questions: a sample
    of so many of each group (usually a language), see `datasets.task.sampled_questions`; None for all.
    """

    name: str
    datasets: tuple[str, ...]
    systems: tuple[System, ...]
    description: str = ""
    queries: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    metrics: tuple[str, ...] | None = None
    questions: int | None = None
    depth: int = 100
    search: Literal["exact", "graph", "memory"] = "exact"
    ef: int | None = None
    comparisons: tuple[Comparison, ...] = ()
    sweeps: tuple[SweepPlan, ...] = ()
    choices: tuple[Choice, ...] = ()

    def __post_init__(self) -> None:
        bases = [system.name for system in self.systems]
        names = [*bases, *(choice.name for choice in self.choices)]
        if len(set(names)) < len(names) or not names:
            raise DataError(f"suite {self.name!r}: every system needs a name of its own; found {names}.")
        for choice in self.choices:
            _refuse_unknown([choice.system], bases, "system")
            choice.candidates(self.systems[bases.index(choice.system)])
        for comparison in self.comparisons:
            _refuse_unknown([comparison.baseline, *comparison.systems], names, "system")
        _refuse_unknown([sweep.system for sweep in self.sweeps], bases, "system")
        if self.ef is not None and (self.search != "graph" or self.ef < 1):
            raise DataError(f"ef must be 1 or more and is for graph search (--search graph), not {self.search}.")
        if self.questions is not None and self.questions < 1:
            raise DataError(f"questions must be at least 1, got {self.questions}; leave it out to ask all.")
        _refuse_unknown([system.queries for system in self.systems if system.queries], list(self.queries), "query set")

    @property
    def asked(self) -> Search:
        """How a collection is asked."""
        return Search(exact=self.search != "graph", ef=self.ef or Search().ef)

    def query_file(self, system: System, dataset: str) -> Path | None:
        """The generated queries that `system` folds in on `dataset`. DataError when the suite names none for it."""
        if system.queries is None:
            return None
        files = self.queries[system.queries]
        path = files.get(dataset) or files.get(ANY_DATASET)
        if path is None:
            raise DataError(f"suite {self.name!r}: query set {system.queries!r} has no file for {dataset}.")
        return Path(path)


def check_methods(methods: Methods) -> None:
    """DataError for what a suite file or the command line says of generators and cannot mean."""
    for method, example in (("rerank", "upr:starter:generator"), ("expand", "translation:http://localhost:8000/v1")):
        changed = [
            name for name, usual in vars(Methods()).items()
            if name.startswith(f"{method}_") and getattr(methods, name) != usual
        ]  # fmt: skip
        if changed and getattr(methods, method) is None:
            raise DataError(f"{changed[0]} says nothing without {method}; add {method} = {example!r}")
    if methods.rerank_depth < 1:
        raise DataError(f"rerank_depth must be at least 1, got {methods.rerank_depth}")
    if methods.rerank_weight is not None and not 0.0 <= methods.rerank_weight <= 1.0:
        raise DataError(f"rerank_weight must lie between 0 and 1, got {methods.rerank_weight}")
    if methods.expand is not None:
        target_language(expansion_spec(methods.expand)[0], methods.expand_lang)
    if methods.rerank is not None:
        reranker_spec(methods.rerank)


def read_suite(path: str | Path) -> Suite:
    """Read a suite file. DataError, naming key and file, for what is unknown, missing or of the wrong type."""
    path = Path(path)
    text = read_whole(path)
    try:
        table = tomllib.loads(text)
    except ValueError as error:
        raise DataError(f"{path} cannot be read as a suite: {error}; docs/suites.md shows one.") from error
    try:
        encoder = table.pop("encoder", "starter")
        table["systems"] = [_system({"encoder": encoder, **system}, path.parent) for system in table.get("systems", [])]
        table["queries"] = {name: _files(files, path.parent) for name, files in table.get("queries", {}).items()}
        suite: Suite = _record(Suite, {**table, **{
            name: [_record(kind, entry, name) for entry in table.get(name, [])]
            for name, kind in (("comparisons", Comparison), ("sweeps", SweepPlan), ("choices", Choice))
        }}, "a suite")  # fmt: skip
        _refuse_unknown(suite.datasets, [*DATASETS, *filter(is_dataset, suite.datasets)], "dataset")
    except (ValueError, TypeError, AttributeError, DataError) as error:
        raise DataError(f"{path}: {str(error).rstrip('.')}; docs/suites.md shows a suite.") from error
    return suite


def _system(table: dict[str, Any], folder: Path) -> System:
    what = f"system {table.get('name', '?')!r}"
    for key in ("means", "passage_means"):
        if str(table.get(key)).endswith((".npz", ".json")):
            table[key] = str(folder / table[key])
    methods = {name: table.pop(name) for name in Methods.__dataclass_fields__ if name in table}
    try:
        table["methods"] = _record(Methods, methods, what)
        table["recipe"] = _record(Recipe, table.get("recipe", {}), "a recipe")
        check_methods(table["methods"])
        system: System = _record(System, table, "a system")
    except (ValueError, TypeError, DataError) as error:
        raise DataError(f"{what}: {error}") from error
    return system


def _files(given: str | Mapping[str, str], folder: Path) -> dict[str, str]:
    named = {ANY_DATASET: given} if isinstance(given, str) else given
    return {dataset: str(folder / file) for dataset, file in named.items()}


def _record(kind: type, table: Mapping[str, Any], what: str) -> Any:
    """The record of a table. DataError for keys that it does not have or that it lacks, ValueError for bad values."""
    known: dict[str, Any] = kind.__dataclass_fields__  # type: ignore[attr-defined]  # every `kind` is a dataclass
    _refuse_unknown(table, list(known), f"key of {what}")
    needed = [f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in table]:
        raise DataError(f"{', '.join(missing)} must be given")
    return checked(kind, {known[name].metadata.get("json", name): value for name, value in table.items()}, what)


def _refuse_unknown(names: Iterable[str], known: Sequence[str], what: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3) or list(known)[:12]
            raise DataError(f"{name!r} is no {what}; expected {', '.join(near)}.")


# Suites made from a dataset's name: what `xqg-vdb bench DATASET` runs without a file.


def preset(
    dataset: str, *, encoder: str = "starter", queries: Path | None = None, several_languages: bool | None = None
) -> Suite:
    """Plain against calibrated; with generated queries also xQG, both together, and the controls that xQG must beat.

    several_languages: the passages are one pool of several languages, whose own side is calibrated, too; None for
    what is known of `dataset`.
    """
    if several_languages is None:
        several_languages = dataset.startswith("xquad-r") or dataset == "mlqa-r"
    systems = [System("plain", encoder, calibration=0.0), System("calibrated", encoder, means="bank")]
    comparisons = [Comparison("plain", ("calibrated",))]
    gain = "gains."
    if several_languages:
        systems.append(System("both sides calibrated", encoder, means="bank", passage_calibration=1.0))
        comparisons = [Comparison("plain", ("calibrated", "both sides calibrated"))]
    if queries is not None:
        systems += xqg_systems(encoder, "queries")
        comparisons = [
            Comparison("plain", ("calibrated", "xQG", "calibrated + xQG")),
            Comparison("calibrated", ("calibrated by its queries", "calibrated + xQG")),
            Comparison("calibrated + direction only", ("calibrated + xQG",)),
            Comparison("calibrated + shuffled queries", ("calibrated + xQG",)),
        ]
        gain = "and generated queries gain, beside the controls."
    return Suite(
        name=dataset,
        datasets=(dataset,),
        systems=tuple(systems),
        description=f"{dataset} with {encoder}: what calibration {gain}",
        queries={} if queries is None else {"queries": {ANY_DATASET: str(queries)}},
        comparisons=tuple(comparisons),
        sweeps=tuple(SweepPlan("calibrated + xQG", what) for what in get_args(Parameter) if queries is not None),
    )


def with_methods(suite: Suite, methods: Methods) -> Suite:
    """The preset with UPR and query expansion on top of its best system, and with both; as it is without either."""
    check_methods(methods)
    base = next((system for system in suite.systems if system.name == "calibrated + xQG"), suite.systems[1])
    added = []
    second = "UPR" if (methods.rerank or "").startswith("upr:") else "cross-encoder"
    if methods.rerank:
        added.append(replace(base, name=f"{base.name} + {second}", methods=replace(methods, expand=None)))
    if methods.expand:
        added.append(replace(base, name=f"{base.name} + expansion", methods=replace(methods, rerank=None)))
    if methods.rerank and methods.expand:
        added.append(replace(base, name=f"{base.name} + expansion + {second}", methods=methods))
    if not added:
        return suite
    compared = Comparison(base.name, tuple(system.name for system in added))
    return replace(suite, systems=(*suite.systems, *added), comparisons=(*suite.comparisons, compared))


def xqg_systems(encoder: str, queries: str) -> list[System]:
    """Name xQG alone (the paper's: questions as they are), with calibration, and the controls.

    Direction only is not centred: a centred recipe would leave nothing of a constant.
    """
    alone = System("xQG", encoder, queries, recipe=Recipe(alpha=0.5, pool="mean"), calibration=0.0)
    best = System("calibrated + xQG", encoder, queries)
    uncentred = Recipe(center=False)
    return [
        alone,
        replace(best, name="calibrated by its queries", recipe=Recipe(alpha=0.0), means="generated"),
        replace(alone, name="direction only", content="direction"),
        replace(alone, name="shuffled queries", content="shuffled"),
        best,
        replace(best, name="calibrated + direction only", content="direction", recipe=uncentred),
        replace(best, name="calibrated + shuffled queries", content="shuffled"),
    ]
