"""A suite: which systems on which datasets, what is compared and swept; read from a TOML file or made for one dataset.

Everything is checked when the file is read, so that a misspelt key costs no hour of encoding. Paths in a suite file are
relative to it. `docs/benchmarks.md` explains every key with examples.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets import DATASETS, is_dataset
from xqg_vdb.files import disk_errors
from xqg_vdb.search import Methods
from xqg_vdb.search.expand import Method, expansion_spec, target_language
from xqg_vdb.search.rerank import WEIGHT, reranker_spec
from xqg_vdb.types import Pool, Recipe

# One system of a suite: how a collection is filled and asked; what its generators are, checked before anything runs.

Content = Literal["own", "direction", "shuffled"]
Languages = Literal["given", "detected", "unknown"]


@dataclass(frozen=True, slots=True)
class Expansion:
    """What a generator adds to each question, see `search.expand.Expander`; served: the model's name at an endpoint."""

    method: Method
    model: str
    lang: str | None = None
    served: str = "default"


@dataclass(frozen=True, slots=True)
class Reranking:
    """UPR by a generator of the first `depth` passages, see `search.rerank.Reranker`; the others keep their order."""

    model: str
    depth: int = 100
    weight: float = WEIGHT


def read_methods(given: Methods) -> tuple[Expansion | None, Reranking | None]:
    """What a suite file or the command line says of generators. DataError for what cannot be meant."""
    for method, example in (("rerank", "upr:starter:generator"), ("expand", "pseudo-document:starter:generator")):
        changed = [
            name for name, usual in vars(Methods()).items()
            if name.startswith(f"{method}_") and getattr(given, name) != usual
        ]  # fmt: skip
        if changed and getattr(given, method) is None:
            raise DataError(f"{changed[0]} says nothing without {method}; add {method} = {example!r}")
    if given.rerank_depth < 1:
        raise DataError(f"rerank_depth must be at least 1, got {given.rerank_depth}")
    if not 0.0 <= given.rerank_weight <= 1.0:
        raise DataError(f"rerank_weight must lie between 0 and 1, got {given.rerank_weight}")
    expansion = reranking = None
    if given.expand is not None:
        name, model = expansion_spec(given.expand)
        expansion = Expansion(name, model, target_language(name, given.expand_lang), given.expand_model)
    if given.rerank is not None:
        reranking = Reranking(reranker_spec(given.rerank), given.rerank_depth, given.rerank_weight)
    return expansion, reranking


@dataclass(frozen=True, slots=True)
class System:
    """One way to fill a collection and to ask it.

    queries: name of a query set, None for passages as they are. n: queries a language at most (the first n).
    content: `own`; `direction` (every passage gets its languages' mean instead, no content) and `shuffled` (every
        passage gets another's queries) are the controls that xQG must beat.
    calibration: λ, None for what the encoder's folder recommends. means: where μ comes from: `refined` (bank and
        generated queries, what `load` does), `bank`, `generated`, or a dataset whose questions give it.
    languages: the question's language is `given` by the benchmark, `detected`, or `unknown` (one mean for all).
    passage_calibration: λ of the passages' side: their own language's mean passage vector, for corpora of several.
    hybrid: search the words as well and fuse the rankings.
    expand, rerank: what generators do; a suite file says `expand`, `expand_lang`, `rerank` … (see `read_methods`).
    """

    name: str
    encoder: str = "starter"
    queries: str | None = None
    content: Content = "own"
    recipe: Recipe = field(default_factory=Recipe)
    n: int | None = None
    calibration: float | None = None
    means: str = "refined"
    languages: Languages = "given"
    passage_calibration: float = 0.0
    hybrid: bool = False
    expand: Expansion | None = None
    rerank: Reranking | None = None


SearchMode = Literal["exact", "graph", "memory"]
Parameter = Literal["alpha", "lambda", "n", "without"]

ANY_DATASET = "*"

_CHOICES: dict[str, Any] = {
    "Content": Content, "Languages": Languages, "SearchMode": SearchMode, "Parameter": Parameter, "Pool": Pool,
}  # fmt: skip
"""The annotations of a suite's fields that name the values they allow."""


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
class Suite:
    """What to run. metrics: None for each dataset's own. depth: passages kept a question, at least what metrics need.

    queries: query set -> dataset (or `*`) -> file. search: `exact` and `graph` ask a real collection, `memory` ranks by
    matrix product (the same ranking as exact, without a store). questions: a sample of so many of each group (usually
    a language), see `datasets.task.sampled_questions`; None for all.
    """

    name: str
    datasets: tuple[str, ...]
    systems: tuple[System, ...]
    description: str = ""
    queries: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    metrics: tuple[str, ...] | None = None
    questions: int | None = None
    depth: int = 100
    search: SearchMode = "exact"
    comparisons: tuple[Comparison, ...] = ()
    sweeps: tuple[SweepPlan, ...] = ()
    heatmaps: bool = False

    def __post_init__(self) -> None:
        names = [system.name for system in self.systems]
        if len(set(names)) < len(names) or not names:
            raise DataError(f"suite {self.name!r}: every system needs a name of its own; found {names}.")
        for comparison in self.comparisons:
            _known([comparison.baseline, *comparison.systems], names, "system")
        _known([sweep.system for sweep in self.sweeps], names, "system")
        if self.questions is not None and self.questions < 1:
            raise DataError(f"questions must be at least 1, got {self.questions}; leave it out to ask all.")
        _known([system.queries for system in self.systems if system.queries], list(self.queries), "query set")

    def query_file(self, system: System, dataset: str) -> Path | None:
        """The generated queries that `system` folds in on `dataset`. DataError when the suite names none for it."""
        if system.queries is None:
            return None
        files = self.queries[system.queries]
        path = files.get(dataset) or files.get(ANY_DATASET)
        if path is None:
            raise DataError(f"suite {self.name!r}: query set {system.queries!r} has no file for {dataset}.")
        return path


def read_suite(path: str | Path) -> Suite:
    """Read a suite file. DataError, naming key and file, for what is unknown, missing or of the wrong type."""
    path = Path(path)
    try:
        with disk_errors(path):
            table = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path} cannot be read as a suite: {error}; docs/benchmarks.md shows one.") from error
    where = str(path)
    sets = {name: _files(files, path.parent) for name, files in _table(table.pop("queries", {}), where).items()}
    encoder = table.pop("encoder", "starter")
    systems = [_system({"encoder": encoder, **_table(one, where)}, where) for one in table.pop("systems", [])]
    lists: dict[str, Any] = {
        name: tuple(_record(kind, one, f"{where}, {name}") for one in table.pop(name, []))
        for name, kind in (("comparisons", Comparison), ("sweeps", SweepPlan))
    }
    rest = _record(_Head, table, where)
    try:
        _known(rest.datasets, [*DATASETS, *filter(is_dataset, rest.datasets)], "dataset")
        return Suite(systems=tuple(systems), queries=sets, **vars(rest), **lists)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


@dataclass(frozen=True)
class _Head:
    """The keys of a suite file that are no tables."""

    name: str
    datasets: tuple[str, ...]
    description: str = ""
    metrics: tuple[str, ...] | None = None
    questions: int | None = None
    depth: int = 100
    search: SearchMode = "exact"
    heatmaps: bool = False


def _system(table: dict[str, Any], where: str) -> System:
    place = f"{where}, system {table.get('name', '?')!r}"
    flat = {name: table.pop(name) for name in Methods.__dataclass_fields__ if name in table}
    try:
        recipe = _record(Recipe, table.pop("recipe", {}), f"{place}, recipe")
    except ValueError as error:
        raise DataError(f"{place}: {error}.") from error
    methods = _record(Methods, flat, place)
    try:
        expand, rerank = read_methods(methods)
    except DataError as error:
        raise DataError(f"{place}: {str(error).rstrip('.')}.") from error
    system: System = _record(System, table, place)
    return replace(system, recipe=recipe, expand=expand, rerank=rerank)


def _files(given: object, folder: Path) -> dict[str, Path]:
    named = {ANY_DATASET: given} if isinstance(given, str) else _table(given, "queries")
    return {dataset: folder / str(file) for dataset, file in named.items()}


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a table, found {value!r}.")
    return dict(value)


def _record(kind: type, table: object, where: str) -> Any:
    """An instance of the dataclass `kind` from a table, its keys and the types of its values checked."""
    values = _table(table, where)
    known: dict[str, Any] = kind.__dataclass_fields__  # type: ignore[attr-defined]  # every `kind` is a dataclass
    _known(values, list(known), f"key of {where}")
    try:
        return kind(**{name: _typed(value, known[name].type, f"{where}: {name}") for name, value in values.items()})
    except TypeError:
        needed = [name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING]
        missing = ", ".join(name for name in needed if name not in values)
        raise DataError(f"{where}: {missing} must be given; docs/benchmarks.md shows a suite.") from None


def _typed(value: Any, annotation: str, where: str) -> Any:
    """`value` as the annotation wants it: lists become tuples, whole numbers floats; anything else must fit already."""
    if annotation in _CHOICES:
        _known([value], get_args(_CHOICES[annotation]), f"value of {where}")
        return value
    if annotation.startswith("tuple") and isinstance(value, list):
        wanted: Any = float if "float" in annotation else str
        return tuple(_typed(one, wanted.__name__, where) for one in value)
    wanted_types: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
    simple = wanted_types.get(annotation.removesuffix(" | None"), ())
    if not isinstance(value, simple) or (isinstance(value, bool) and bool not in simple):
        raise DataError(f"{where}: expected {annotation}, found {value!r}.")
    number: Any = value
    return float(number) if float in simple else value


def _known(names: Any, known: Sequence[str], what: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3) or list(known)[:12]
            raise DataError(f"{name!r} is no {what}; expected {', '.join(map(str, near))}.")


# Suites made from a dataset's name: what `xqg-vdb bench DATASET` runs without a file.

_PASSAGE_STRENGTH = 1.0


def preset(
    dataset: str,
    *,
    encoder: str = "starter",
    queries: Path | None = None,
    search: SearchMode = "exact",
    depth: int = 100,
    several_languages: bool | None = None,
) -> Suite:
    """Plain against calibrated; with generated queries also xQG, both together, and the controls that xQG must beat.

    several_languages: the passages are one pool of several languages, whose own side is calibrated, too; None for
    what is known of `dataset`.
    """
    if several_languages is None:
        several_languages = dataset.startswith("xquad-r") or dataset in ("mlqa-r", "mewsli-x")
    systems = [
        System("plain", encoder, calibration=0.0),
        System("calibrated", encoder, means="bank"),
    ]
    comparisons = [Comparison("plain", ("calibrated",))]
    sweeps: list[SweepPlan] = []
    if several_languages:
        systems.append(System("both sides calibrated", encoder, means="bank", passage_calibration=_PASSAGE_STRENGTH))
        comparisons = [Comparison("plain", ("calibrated", "both sides calibrated"))]
    if queries is not None:
        systems += xqg_systems(encoder, "queries")
        comparisons = [
            Comparison("plain", ("calibrated", "xQG", "calibrated + xQG")),
            Comparison("calibrated", ("calibrated by its queries", "calibrated + xQG")),
            Comparison("calibrated + direction only", ("calibrated + xQG",)),
            Comparison("calibrated + shuffled queries", ("calibrated + xQG",)),
        ]
        sweeps = [SweepPlan("calibrated + xQG", what) for what in ("alpha", "lambda", "n", "without")]
    return Suite(
        name=dataset,
        datasets=(dataset,),
        systems=tuple(systems),
        description=f"{dataset} with {encoder}: what calibration"
        + (" and generated queries gain, beside the controls." if queries else " gains."),
        queries={} if queries is None else {"queries": {ANY_DATASET: queries}},
        depth=depth,
        search=search,
        comparisons=tuple(comparisons),
        sweeps=tuple(sweeps),
    )


def with_methods(suite: Suite, expand: Expansion | None, rerank: Reranking | None) -> Suite:
    """The preset with UPR and query expansion on top of its best system, and with both; as it is without either."""
    names = [system.name for system in suite.systems]
    base = suite.systems[names.index("calibrated + xQG" if "calibrated + xQG" in names else "calibrated")]
    added: list[System] = []
    if rerank is not None:
        added.append(replace(base, name=f"{base.name} + UPR", rerank=rerank))
    if expand is not None:
        added.append(replace(base, name=f"{base.name} + expansion", expand=expand))
    if rerank is not None and expand is not None:
        added.append(replace(base, name=f"{base.name} + expansion + UPR", expand=expand, rerank=rerank))
    if not added:
        return suite
    compared = Comparison(base.name, tuple(system.name for system in added))
    return replace(suite, systems=(*suite.systems, *added), comparisons=(*suite.comparisons, compared))


def xqg_systems(encoder: str, queries: str) -> list[System]:
    """Name xQG alone (the paper's: questions as they are), with calibration, and the controls.

    Direction only is not centred: a centred recipe would leave nothing of a constant.
    """
    uncentred = Recipe(center=False)
    return [
        System("xQG", encoder, queries, recipe=Recipe(alpha=0.5, pool="mean"), calibration=0.0),
        System("calibrated by its queries", encoder, queries, recipe=Recipe(alpha=0.0), means="generated"),
        System("direction only", encoder, queries, "direction", recipe=Recipe(alpha=0.5, pool="mean"), calibration=0.0),
        System(
            "shuffled queries", encoder, queries, "shuffled", recipe=Recipe(alpha=0.5, pool="mean"), calibration=0.0
        ),
        System("calibrated + xQG", encoder, queries),
        System("calibrated + direction only", encoder, queries, "direction", recipe=uncentred),
        System("calibrated + shuffled queries", encoder, queries, "shuffled"),
    ]
