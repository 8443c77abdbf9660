"""One system of a suite: how a collection is filled and asked; what its generators are, checked before anything runs.

In: the keys of a `[[systems]]` table. Out: `System`, and what its two specs (`upr:MODEL`, `METHOD:MODEL`) say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from xqg_vdb.errors import DataError
from xqg_vdb.expansion.expander import Method, expansion_spec, target_language
from xqg_vdb.rerank import WEIGHT, reranker_spec
from xqg_vdb.types import Recipe

Content = Literal["own", "direction", "shuffled"]
Languages = Literal["given", "detected", "unknown"]

_EXAMPLES = {"rerank": "upr:starter:generator", "expand": "pseudo-document:starter:generator"}


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
    expand: `METHOD:MODEL` searches with what a generator adds to the question, in `expand_lang` (see
        `expansion.Expander`); expand_model: the model's name at an endpoint.
    rerank: `upr:MODEL` ranks the first `rerank_depth` passages again, what is behind them keeps its order;
        rerank_weight: `weight` of `rerank.Reranker`.
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
    expand: str | None = None
    expand_lang: str | None = None
    expand_model: str = "default"
    rerank: str | None = None
    rerank_depth: int = 100
    rerank_weight: float = WEIGHT


def check_system(system: System) -> None:
    """Raise DataError, naming the system, for specs and options of its generators that cannot be meant."""
    try:
        for method, example in _EXAMPLES.items():
            fields = System.__dataclass_fields__
            changed = [
                name for name, one in fields.items()
                if name.startswith(f"{method}_") and getattr(system, name) != one.default
            ]  # fmt: skip
            if changed and getattr(system, method) is None:
                raise DataError(f"{changed[0]} says nothing without {method}; add {method} = {example!r}")
        expansion_of(system)
        scorer_of(system)
        if system.rerank_depth < 1:
            raise DataError(f"rerank_depth must be at least 1, got {system.rerank_depth}")
        if not 0.0 <= system.rerank_weight <= 1.0:
            raise DataError(f"rerank_weight must lie between 0 and 1, got {system.rerank_weight}")
    except DataError as error:
        raise DataError(f"system {system.name!r}: {str(error).rstrip('.')}.") from error


def expansion_of(system: System) -> tuple[Method, str, str | None] | None:
    """Method, model and language of `expand`, None without; raises DataError for what cannot be meant."""
    if system.expand is None:
        return None
    method, model = expansion_spec(system.expand)
    return method, model, target_language(method, system.expand_lang)


def scorer_of(system: System) -> str | None:
    """The model of `rerank`, None without; raises DataError for another method than UPR."""
    return None if system.rerank is None else reranker_spec(system.rerank)
