"""Generative query expansion: a model translates a question, or writes a passage that might answer it.

The search is then for question and expansion together (Macmillan-Scott, Goworek and Özyiğit 2025, arXiv 2511.19325,
compare ways to do so for cross-lingual retrieval). A search never fails for its expansion: where the model wrote
nothing of use, or is away, the plain question is searched and counted under `fallbacks`. Decoding is greedy.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from xqg_vdb.calibration import resolve_languages
from xqg_vdb.errors import DataError, ModelError, ServerError, one_line
from xqg_vdb.generate.endpoint import EndpointGenerator
from xqg_vdb.generate.prompts import LABEL, CausalPrompt, bare, query_of, refuses, said, without_talk
from xqg_vdb.models.decoder import CausalModel, Decoding
from xqg_vdb.models.folder import ModelFolder, generator_folder, open_model_folder
from xqg_vdb.models.forest import common_length
from xqg_vdb.progress import windows
from xqg_vdb.texts.languages import english_name, normalize, question_bank
from xqg_vdb.types import UNKNOWN_LANGUAGE, Question

_Method = Literal["translation", "pseudo-document"]

PROMPTS = 1  # version of the wordings below; what was written by another one is not used again
MAX_TOKENS = 48  # of an answer; what docs/query-time.md measures
BATCH = 8  # prompts that are answered together
PAIRS = 8  # translated questions that lead a translation on
LONGEST_QUESTION = 2000  # characters
PATIENCE = 10.0  # seconds that a question waits for an endpoint that is away, before it is searched as it is
FAILED_BATCHES = 2  # on end, after which the other questions are searched as they are, too


class Writer:
    """Something that answers prompts. failure: why the last prompt has no answer of use, empty when all have one."""

    failure = ""

    def describe(self) -> dict[str, Any]:
        """Which model answers, and all settings on which its answers depend."""
        raise NotImplementedError

    def write(self, prompts: Sequence[str]) -> list[str]:
        """One text per prompt; empty when there is none. Never raises for a prompt."""
        raise NotImplementedError

    def close(self) -> None:
        """Release connections."""


class Expander:
    """Expands questions with one model; `Retriever(..., expander=Expander("http://host/v1", lang="en"))` uses it.

    model: a decoder-only generator's folder or name, an endpoint's URL (up to and with `/v1`), or a ready `Writer`.
    method: `translation` searches for the mean of the question's vector and its translation's, each calibrated for its
        own language; `pseudo-document` for question and written passage as one text.
    lang: language of the expansion, as a rule that of the passages; None, for a pseudo-document, the question's own.
    endpoint_model: the model's name at an endpoint. threads: CPU threads of a local model, 0 for all cores.
    Raises ModelError for what is no such generator, DataError for a bad URL or language.
    """

    def __init__(
        self, model: str | Path | Writer, *, method: _Method = "pseudo-document", lang: str | None = None,
        endpoint_model: str = "default", threads: int = 0,
    ) -> None:  # fmt: skip
        self.method, self.lang = method, target_language(method, lang)
        if isinstance(model, str | Path):
            model = open_writer(model, endpoint_model=endpoint_model, threads=threads)
        self.writer: Writer = model
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0

    def expand(self, questions: Sequence[Question]) -> list[tuple[Question, ...]]:
        """Per question what to search for instead: one text, or two whose vectors are averaged."""
        asked = _with_languages(questions)  # detected from question and expansion together it might be another one
        return [self._combined(*pair) for pair in zip(asked, self.expansions(asked), strict=True)]

    def expansions(self, questions: Sequence[Question]) -> list[str]:
        """The expansion of each question, in order; empty where there is none. Equal questions are asked once."""
        start = time.perf_counter()
        # line breaks in a question could pass for parts of the prompt
        asked = [
            (" ".join(question.text.split())[:LONGEST_QUESTION], str(question.lang))
            for question in _with_languages(questions)
        ]
        needed = [pair for pair in dict.fromkeys(asked) if self.method != "translation" or pair[1] != self.lang]
        answers = self.writer.write([self._prompt(*pair) for pair in needed])
        texts = {pair: self._useful(answer, pair[0]) for pair, answer in zip(needed, answers, strict=True)}
        self._counts.update(questions=len(asked), fallbacks=sum(texts.get(pair) == "" for pair in asked))
        self._seconds += time.perf_counter() - start
        return [texts.get(pair, "") for pair in asked]

    def counters(self) -> dict[str, float]:
        """Questions, how many had to be searched plainly, and seconds so far."""
        return {"questions": 0, "fallbacks": 0, **self._counts, "seconds": round(self._seconds, 3)}

    def close(self) -> None:
        """Close the connections of an endpoint."""
        self.writer.close()

    def _prompt(self, question: str, lang: str) -> str:
        if self.method == "translation":
            return translation_prompt(question, source=lang, target=str(self.lang))
        target = self.lang or lang
        language = "" if target == UNKNOWN_LANGUAGE else f" in {english_name(target)}"
        return f"Write a short passage{language} that answers the question.\nQuestion: {question}\nPassage:"

    def _useful(self, answer: str, question: str) -> str:
        text = clean(query_of(answer) if self.method == "translation" else answer)
        if text.casefold().strip(" .?!") == question.casefold().strip(" .?!"):
            text = ""  # an echo says nothing
        if answer and not text:
            self.writer.failure = f"The model wrote {one_line(answer)!r}."
        return text

    def _combined(self, question: Question, text: str) -> tuple[Question, ...]:
        if not text:
            return (question,)
        if self.method == "translation":
            return (question, Question(question.id, text, self.lang))
        return (replace(question, text=f"{question.text} {text}"),)


def expansion_spec(spec: str) -> tuple[_Method, str]:
    """The method and the model of `METHOD:MODEL`. Raises DataError for another method."""
    name, colon, model = spec.partition(":")
    methods: dict[str, _Method] = {"translation": "translation", "pseudo-document": "pseudo-document"}
    if name not in methods or not colon or not model:
        raise DataError(
            "An expansion is given as translation:MODEL or pseudo-document:MODEL, such as "
            f"translation:http://localhost:8000/v1 or pseudo-document:models/gemma-4b, not {spec[:80]!r}."
        )
    return methods[name], model


def target_language(method: _Method, lang: str | None) -> str | None:
    """The checked language of an expansion. Raises DataError when it is unknown, or a translation has none."""
    if lang is None and method == "translation":
        raise DataError("A translation needs a language to translate into: give --expand-lang (or expand_lang, lang).")
    return lang and normalize(lang)


def translation_prompt(question: str, *, source: str, target: str) -> str:
    """The prompt that asks for a translation, led on by translated pairs where the question bank has both languages."""
    bank, name = question_bank(), english_name(target)
    other = "Text" if source == UNKNOWN_LANGUAGE else english_name(source)
    known = list(zip(bank.get(source, ()), bank.get(target, ()), strict=False))[:PAIRS]
    shown = "".join(f"{other}: {a}\n{name}: {b}\n" for a, b in known)
    return f"Translate into {name}. Answer with the translation only.\n{shown}{other}: {question}\n{name}:"


def _with_languages(questions: Sequence[Question]) -> list[Question]:
    known = [None if question.lang is None else normalize(question.lang) for question in questions]
    langs = resolve_languages([question.text for question in questions], known)
    return [replace(question, lang=lang) for question, lang in zip(questions, langs, strict=True)]


_SENTENCE = re.compile(r"(?<=[.!?。！？؟।])\s+|(?<=:)\s*\n+|\n+|(?<=[。！？])")
_ITEM = re.compile(r"(?:^|\b)Question\s*:")
_ECHO = re.compile(r"\A\s*Question\s*:[^\n]*\n+(?=\s*Passage\s*:)")


def clean(text: str) -> str:
    """The useful part of an answer on one line, without talk about the task, labels and loops; may be empty."""
    text = _ITEM.split(_ECHO.sub("", said(text)))[0]  # of the prompt said again, and without what else was written
    lines = [line for raw in LABEL.sub("\n", text).splitlines() if (line := bare(raw))]
    introduced = "\n".join(line for line in lines if not line.endswith((":", "：")))
    sentences = (without_talk(sentence) for sentence in _SENTENCE.split(introduced) if sentence)
    return bare(" ".join(_without_repeats(sentence for sentence in sentences if not refuses(sentence))))


def _without_repeats(sentences: Iterable[str]) -> list[str]:
    # each sentence once, and none whose words repeat each other more than they say anything
    kept: dict[str, str] = {}
    for sentence in sentences:
        words = sentence.casefold().split()
        if words and not (len(words) > 12 and len(set(words)) < len(words) / 3):
            kept.setdefault(" ".join(words), " ".join(sentence.split()))
    return list(kept.values())


class _LocalWriter(Writer):
    """A decoder-only folder; a prompt too long for the model gives an empty text."""

    def __init__(self, folder: ModelFolder, *, threads: int) -> None:
        chat: Sequence[str] = (folder.manifest.get("generator") or {}).get("chat") or ()
        self.base = not chat  # a base model, which ends an answer by a line break
        self.before, self.after = chat or ("", "")
        self.model = CausalModel(folder, stop=("\n",) if self.base else (), threads=threads)

    def describe(self) -> dict[str, Any]:
        return {**self.model.describe(), "chat": not self.base}

    def write(self, prompts: Sequence[str]) -> list[str]:
        texts = [text for batch in windows(prompts, BATCH) for text in self._batch(batch)]
        # a base model may begin with the line break that ends an answer: then it is led on from the next line
        silent = [i for i, text in enumerate(texts) if self.base and not text and not prompts[i].endswith("\n")]
        again = self.write([prompts[i] + "\n" for i in silent]) if silent else []
        for i, text in zip(silent, again, strict=True):
            texts[i] = text
        return texts

    def _batch(self, prompts: Sequence[str]) -> list[str]:
        model, settings = self.model, Decoding(mode="greedy", max_tokens=MAX_TOKENS)
        bos = [] if model.bos is None else [int(model.bos)]
        inputs = [bos + model.ids(self.before + prompt + self.after) for prompt in prompts]
        fitting = [i for i, ids in enumerate(inputs) if len(ids) + MAX_TOKENS <= model.max_length]
        texts = [""] * len(prompts)
        if not fitting:
            return texts
        # what all begin with is read once; every prompt keeps a token of its own
        same = min(common_length([inputs[i] for i in fitting]), min(len(inputs[i]) for i in fitting) - 1)
        prefix = model.read_ids(inputs[fitting[0]][:same])
        trees = [model.branch(prefix, inputs[i][same:-1], [inputs[i][-1:]], settings=settings) for i in fitting]
        written = model.write(trees, [0] * len(fitting), samples=1, settings=settings)
        for i, text in zip(fitting, written, strict=True):
            texts[i] = text.lstrip().split("\n")[0].strip() if self.base else text.strip()
        return texts


class _EndpointWriter(Writer):
    """A chat model behind an OpenAI-compatible endpoint, at temperature 0; one that is away gives empty texts."""

    def __init__(self, url: str, *, model: str) -> None:
        self.generator = EndpointGenerator(
            url, model, prompt=CausalPrompt("free", "", "", "{text}", stop=()), concurrency=BATCH, temperature=0.0,
            max_tokens=MAX_TOKENS, timeout=60.0, patience=PATIENCE,
        )  # fmt: skip
        self.generator.cure = "switch its reasoning off"

    def describe(self) -> dict[str, Any]:
        return self.generator.settings

    def write(self, prompts: Sequence[str]) -> list[str]:
        texts: list[str] = []
        failed, self.failure, self.generator.failure = 0, "", ""
        for batch in windows(prompts, BATCH):
            try:
                texts += self.generator.complete(batch)
                failed, self.failure = 0, self.generator.failure
            except ServerError as error:
                failed, self.failure = failed + 1, str(error)
                texts += [""] * len(batch)
            if failed == FAILED_BATCHES:
                break
        return texts + [""] * (len(prompts) - len(texts))

    def close(self) -> None:
        self.generator.close()


def open_writer(model: str | Path, *, endpoint_model: str = "default", threads: int = 0) -> Writer:
    """The writer of a generator's folder or name, or of an endpoint's URL. Raises ModelError, DataError."""
    if str(model).startswith(("http://", "https://")):
        return _EndpointWriter(str(model), model=endpoint_model)
    folder = open_model_folder(generator_folder(model))
    if folder.kind != "causal-generator":
        needed = "expansion needs a decoder-only generator (`xqg-vdb export --generator`) or an endpoint's URL"
        raise ModelError(f"{folder.path} holds a model of the kind {folder.kind}; {needed}.")
    return _LocalWriter(folder, threads=threads)
