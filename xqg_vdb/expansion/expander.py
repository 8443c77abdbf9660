"""Questions in, what to search for out; the model is asked at most once for a question, in batches.

A search never fails for its expansion: where the model wrote nothing of use, or is away, the plain question is searched
and counted under `fallbacks`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xqg_vdb.calibration import resolve_languages
from xqg_vdb.errors import DataError
from xqg_vdb.expansion.cache import ExpansionCache, cache_key
from xqg_vdb.expansion.cleaning import clean
from xqg_vdb.expansion.prompts import Plan, Strategy, expansion_prompt, one_line, translation_prompt
from xqg_vdb.generation.completion import Writer, open_writer
from xqg_vdb.languages import normalize
from xqg_vdb.types import Query


@dataclass(frozen=True, slots=True)
class Expansion:
    """The expansion of one question, empty when it stays as it is; `lang`: its language, None when that is unsure."""

    text: str
    lang: str | None


class Expander:
    """Expands questions with one model; `Retriever(..., expander=Expander("starter:generator"))` uses it.

    model: a generator's folder or name, an endpoint's URL (up to and with `/v1`), or a ready `Writer`.
    plan: strategy, kind of text, order, language and how the two are combined.
    cache: where expansions are kept; None keeps none. endpoint_model: the model's name at an endpoint.
    threads: CPU threads of a local model, 0 for all cores. One thread of the program at a time.
    Raises ModelError for what is no generator, DataError for a bad URL.
    """

    def __init__(
        self,
        model: str | Path | Writer,
        *,
        plan: Plan | None = None,
        cache: ExpansionCache | None = None,
        endpoint_model: str = "default",
        threads: int = 0,
    ) -> None:
        self.plan = plan or Plan()
        self.cache = cache
        self.writer: Writer = (
            open_writer(model, max_tokens=self.plan.max_tokens, endpoint_model=endpoint_model, threads=threads)
            if isinstance(model, str | Path)
            else model
        )
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0

    def expand(self, queries: Sequence[Query]) -> list[tuple[Query, ...]]:
        """Per question what to search for instead: one text, or two whose vectors are averaged (`mean`)."""
        # the language is settled here: detected from question and expansion together it might be another one
        asked = [replace(query, lang=lang) for query, lang in zip(queries, _languages(queries), strict=True)]
        pairs = zip(asked, self.expansions(asked), strict=True)
        return [_combined(query, expansion, self.plan) for query, expansion in pairs]

    def expansions(self, queries: Sequence[Query]) -> list[Expansion]:
        """The expansion of each question, in order; from the cache where it has one."""
        start = time.perf_counter()
        asked = [(one_line(query.text), lang) for query, lang in zip(queries, _languages(queries), strict=True)]
        needed = [one for one in dict.fromkeys(asked) if not self._is_there(one[1])]
        found = self._cached(needed)
        missing = [one for one in needed if one not in found]
        written = dict(zip(missing, self._write(missing), strict=True)) if missing else {}
        for (question, lang), text in written.items():
            if text and self.cache is not None:
                self.cache.put(self._key(question, lang), question=question, expansion=text)
        texts = {**found, **written}
        fallbacks = sum(one in texts and not texts[one] for one in asked)
        self._counts.update(questions=len(asked), cached=sum(one in found for one in asked), fallbacks=fallbacks)
        self._seconds += time.perf_counter() - start
        return [Expansion(texts.get(one, ""), self.plan.lang or one[1]) for one in asked]

    def counters(self) -> dict[str, float]:
        """Questions, how many came from the cache, how many had to be searched plainly, and seconds so far."""
        names = ("questions", "cached", "fallbacks")
        return {**{name: self._counts[name] for name in names}, "seconds": round(self._seconds, 3)}

    @property
    def failure(self) -> str:
        """Why the last request to an endpoint failed; empty when none did."""
        return str(getattr(self.writer, "failure", ""))

    def close(self) -> None:
        """Close the connections of an endpoint."""
        close = getattr(self.writer, "close", None)
        if close is not None:
            close()

    def _is_there(self, lang: str) -> bool:
        """A question that is to be translated only, into its own language."""
        return self.plan.kind == "translation" and lang == self.plan.lang

    def _key(self, question: str, lang: str) -> str:
        return cache_key(question, lang=lang, plan=self.plan.to_json(), writer=self.writer.describe())

    def _cached(self, asked: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        if self.cache is None:
            return {}
        kept = {one: self.cache.get(self._key(*one)) for one in asked}
        return {one: text for one, text in kept.items() if text is not None}

    def _write(self, asked: Sequence[tuple[str, str]]) -> list[str]:
        """The expansion of each (question, language), empty where any step of it failed."""
        questions, langs = [question for question, _ in asked], [lang for _, lang in asked]
        target = self.plan.lang
        if target is None or (self.plan.kind != "translation" and self.plan.order == "direct"):
            return self._ask(questions, [target or lang for lang in langs])
        if self.plan.kind == "translation":
            return self._translate(questions, langs)
        if self.plan.order == "translate-expand":
            translated = self._translate(questions, langs)
            return _joined(translated, self._ask(translated, [target] * len(langs)))
        return self._translate(_joined(questions, self._ask(questions, langs)), langs)

    def _ask(self, questions: Sequence[str], langs: Sequence[str]) -> list[str]:
        plan = self.plan
        prompts = [expansion_prompt(plan, text, lang=lang) for text, lang in zip(questions, langs, strict=True)]
        answers = self._answers(prompts, questions, stop=plan.stops(base=self.writer.base))
        cleaned = [clean(answer, kind=plan.kind, strategy=plan.strategy) for answer in answers]
        return ["" if _same(new, old) else new for new, old in zip(cleaned, questions, strict=True)]

    def _translate(self, texts: Sequence[str], langs: Sequence[str]) -> list[str]:
        """Each text in the plan's language; what is in it already stays."""
        target = str(self.plan.lang)
        zero = self.plan.kind == "translation" and self.plan.strategy == "zero-shot"
        options = {"pairs": 0} if zero else {}
        away = [i for i, lang in enumerate(langs) if lang != target]
        prompts = [translation_prompt(texts[i], source=langs[i], target=target, **options) for i in away]
        answers = self._answers(prompts, [texts[i] for i in away], stop=("\n",) if self.writer.base else ())
        translated = list(texts)
        for i, answer in zip(away, answers, strict=True):
            new = clean(answer, kind="translation", strategy="zero-shot")
            translated[i] = "" if _same(new, texts[i]) else new
        return translated

    def _answers(self, prompts: Sequence[str], about: Sequence[str], *, stop: Sequence[str]) -> list[str]:
        """The model's answers; nothing is asked about an empty text, which an earlier step left."""
        asked = [i for i, text in enumerate(about) if text]
        answers = self.writer.write([prompts[i] for i in asked], max_tokens=self.plan.max_tokens, stop=stop)
        found = dict(zip(asked, answers, strict=True))
        return [found.get(i, "") for i in range(len(prompts))]


def open_expander(
    spec: str, *, plan: Plan, cache: ExpansionCache | None, endpoint_model: str = "default", threads: int = 0
) -> Expander:
    """The expander of `STRATEGY:MODEL`, such as `zero-shot:starter:generator` or `few-shot:http://localhost:8000/v1`.

    The strategy takes the place of the plan's. Raises DataError for an unknown one.
    """
    strategy, model = expansion_spec(spec)
    chosen = replace(plan, strategy=strategy)
    return Expander(model, plan=chosen, cache=cache, endpoint_model=endpoint_model, threads=threads)


def expansion_spec(spec: str) -> tuple[Strategy, str]:
    """The strategy and the model of `STRATEGY:MODEL`. Raises DataError for an unknown strategy."""
    strategy, colon, model = spec.partition(":")
    names: dict[str, Strategy] = {
        "zero-shot": "zero-shot", "few-shot": "few-shot", "chain-of-thought": "chain-of-thought",
        "rephrase-and-respond": "rephrase-and-respond",
    }  # fmt: skip
    if strategy not in names or not colon or not model:
        raise DataError(
            f"An expansion is given as STRATEGY:MODEL, such as zero-shot:starter:generator, with one of the strategies "
            f"{', '.join(names)}; not {spec[:80]!r}."
        )
    return names[strategy], model


def _languages(queries: Sequence[Query]) -> list[str]:
    known = [None if query.lang is None else normalize(query.lang) for query in queries]
    return resolve_languages([query.text for query in queries], known)


def _combined(query: Query, expansion: Expansion, plan: Plan) -> tuple[Query, ...]:
    if not expansion.text:
        return (query,)
    if plan.combine == "concat":
        return (replace(query, text=f"{query.text} {expansion.text}"),)
    other = Query(query.id, expansion.text, expansion.lang)
    return (other,) if plan.combine == "only" else (query, other)


def _joined(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """`first second` per pair, empty where either is."""
    return [f"{a} {b}" if a and b else "" for a, b in zip(first, second, strict=True)]


def _same(new: str, old: str) -> bool:
    return new.casefold().strip(" .?!") == old.casefold().strip(" .?!")
