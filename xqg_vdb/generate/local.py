"""Decoder-only generators: every passage is read once, for all languages and all samples.

The prompt has three parts (see `prompts`): a fixed prefix, whose keys and values are computed once for the whole run;
the passage, once per passage; and a short ending that names the language, one per language. Samples branch from the
endings. Long passages are cut by tokens in the middle part, so the instruction always survives.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from xqg_vdb.errors import ModelError
from xqg_vdb.generate.prompts import (
    SEQ2SEQ_TEMPLATE,
    CausalPrompt,
    chat,
    few_shot,
    finetuned,
    passage_tokens,
    query_of,
    seq2seq_tokens,
    translation,
)
from xqg_vdb.generate.run import BatchGenerator
from xqg_vdb.models.decoder import CausalModel, Decoding, Stems, decode, describe_folder, stop_tokens
from xqg_vdb.models.engine import open_session, ort_value
from xqg_vdb.models.folder import GRAPH, TOKENIZER, ModelFolder, generator_folder, open_model_folder
from xqg_vdb.models.forest import Bools, Clock, Forest, Ints, Stepper
from xqg_vdb.texts.corpus import as_passage, read_corpus
from xqg_vdb.texts.languages import english_name, normalize, question_bank
from xqg_vdb.texts.records import expect
from xqg_vdb.texts.tables import Records, plain_records
from xqg_vdb.types import GeneratedQueries, Passage


class _LocalGenerator(BatchGenerator):
    """What both architectures have in common."""

    def __init__(self, decoding: Decoding, clock: Clock, settings: dict[str, Any]) -> None:
        self.decoding, self.seed, self.greedy = decoding, decoding.seed, decoding.mode == "greedy"
        self.settings = {**settings, "decoding": decoding.to_json()}
        self.clock, self.truncated = clock, 0

    def counters(self) -> dict[str, float]:
        """Passages cut so far, and seconds per phase."""
        return {"passages_cut": self.truncated, **self.clock.seconds}


class CausalGenerator(_LocalGenerator):
    """A generator that asks for a question in every language straight from the passage."""

    def __init__(self, model: CausalModel, *, prompt: CausalPrompt, decoding: Decoding) -> None:
        super().__init__(decoding, model.clock, {**model.describe(), "prompt": prompt.to_json()})
        self.model, self.prompt, self.examples = model, prompt, prompt.examples
        self._prefix = model.read(prompt.prefix)

    def _texts(self, batch: Sequence[Passage], langs: Sequence[str], keys: Sequence[int], count: int) -> list[str]:
        endings = [self.model.ids(self.prompt.ending(lang)) for lang in langs]
        longest = max(map(len, endings))
        trees = [
            self.model.branch(self._prefix, self._body(passage, longest), endings, settings=self.decoding)
            for passage in batch
        ]
        texts = self.model.write(trees, keys, samples=count, settings=self.decoding)
        # a chat model may talk; what a base model continues with is cut only
        return list(map(query_of if self.prompt.name == "chat" else self.prompt.cut, texts))

    def _body(self, passage: Passage, ending: int) -> list[int]:
        """Tokens of the passage, cut to what the model and the prompt leave room for, and of what follows it."""
        tail = len(self.model.ids(self.prompt.passage_parts(passage)[1]))
        room = self.model.max_length - self._prefix.slots - ending - tail - self.decoding.max_tokens
        room = min(self.prompt.max_passage_tokens, room)
        if room < 8:
            raise ModelError(
                f"The prompt and {self.decoding.max_tokens} new tokens leave no room for a passage in the model's "
                f"{self.model.max_length} tokens; shorten the prompt or lower max_tokens."
            )
        ids, cut = passage_tokens(self.model.ids, self.prompt, passage, room=room)
        self.truncated += cut
        return ids


# The generator for small base models: questions in English first, each then translated into every language.

PIVOT = "en"
PAIRS = 16  # example translations in the prompt
LONGEST_QUESTION = 64  # tokens of an English question that are translated


class _PivotGenerator(CausalGenerator):
    """A generator for `query_langs`, in two steps. Chance is in the first step only: translations are greedy."""

    def __init__(self, model: CausalModel, *, query_langs: Sequence[str], decoding: Decoding) -> None:
        super().__init__(model, prompt=few_shot(pivot=True), decoding=decoding)
        prompts = {lang: translation(lang, pairs=PAIRS) for lang in query_langs if lang != PIVOT}
        self._translations = {lang: (prompt, model.read(prompt.prefix)) for lang, prompt in prompts.items()}
        self.settings["translation"] = {"prompt": "question bank", "pairs": PAIRS, "mode": "greedy"}
        self.examples += tuple(text for prompt in prompts.values() for text in prompt.examples)

    def batch_size(self, query_langs: Sequence[str], n: int) -> int:
        """Passages that are taken together: so many that each language has enough questions to translate at once."""
        return super().batch_size([PIVOT], n)

    def generate_batch(
        self, batch: Sequence[Passage], *, query_langs: Sequence[str], n: int, attempt: int = 0
    ) -> list[GeneratedQueries]:
        """The records of a few passages; attempt: 1 for other English questions."""
        asked = super().generate_batch(batch, query_langs=[PIVOT], n=n, attempt=attempt)
        questions = [record.queries[PIVOT] for record in asked]
        by_lang = {lang: questions if lang == PIVOT else self._translated(questions, lang) for lang in query_langs}
        return [
            GeneratedQueries(passage.id, {lang: by_lang[lang][i] for lang in query_langs})
            for i, passage in enumerate(batch)
        ]

    def _translated(self, questions: Sequence[tuple[str, ...]], lang: str) -> list[tuple[str, ...]]:
        prompt, prefix = self._translations[lang]
        before, after = prompt.passage.replace("{title}", "").split("{text}")
        flat = [question for several in questions for question in several]
        endings = [
            self.model.ids(before + question)[:LONGEST_QUESTION] + self.model.ids(after + prompt.ending(lang))
            for question in flat
        ]
        settings = replace(self.decoding, mode="greedy")
        tree = self.model.branch(prefix, [], endings, settings=settings)
        texts = self.model.write([tree], [0] * len(flat), samples=1, settings=settings)
        rest = iter(prompt.cut(text) if question else "" for text, question in zip(texts, flat, strict=True))
        return [tuple(next(rest) for _ in several) for several in questions]


# Encoder-decoder generators (mT5 docTquery and its like); the encoder runs once per (passage, language).

ENCODER_GRAPH = "encoder.onnx"


class Seq2SeqGenerator(_LocalGenerator):
    """A generator on a folder of kind `seq2seq-generator`. max_passage_tokens: the paper's is 256."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        decoding: Decoding,
        template: str = SEQ2SEQ_TEMPLATE,
        max_input: int = 256,
        threads: int = 0,
    ) -> None:
        if folder.kind != "seq2seq-generator":
            raise ModelError(f"{folder.path} holds a {folder.kind}, where a seq2seq-generator is needed.")
        record = folder.manifest.get("generator") or {}
        prompt = {"template": template, "max_input": max_input}
        super().__init__(decoding, Clock(), {**describe_folder(folder), "prompt": prompt})
        self.template, self.max_input = template, max_input
        self.tokenizer = Tokenizer.from_file(str(folder.path / TOKENIZER))
        self.eos = [int(token) for token in record["eos"]]
        self.start = int(record["start"])
        self.stops = stop_tokens(self.tokenizer, self.eos, ())
        self._encoder = open_session(Path(folder.path) / ENCODER_GRAPH, threads=threads)
        self.stepper = Stepper(open_session(Path(folder.path) / GRAPH, threads=threads))

    def _texts(self, batch: Sequence[Passage], langs: Sequence[str], keys: Sequence[int], count: int) -> list[str]:
        forest = self.read([self.input_ids(passage, lang) for passage in batch for lang in langs])
        stems = self.begin(forest)
        tokens = decode(forest, stems, keys, self.decoding, samples=count, stops=self.stops, clock=self.clock)
        return [" ".join(text.split()) for text in self.tokenizer.decode_batch(tokens, skip_special_tokens=True)]

    def input_ids(self, passage: Passage, lang: str) -> list[int]:
        """Token ids of the prompt, at most `max_input` with the end token; what is cut is the passage's end."""

        def encode(text: str) -> list[int]:
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

        ids, cut = seq2seq_tokens(encode, self.template, passage, lang=lang, max_input=self.max_input, eos=self.eos[0])
        self.truncated += cut
        return ids

    def read(self, inputs: Sequence[Sequence[int]]) -> Forest:
        """A forest with one tree per input (token ids that end with `eos`), its context padded to the longest."""
        now = time.perf_counter()
        outputs = [self._encode(ids) for ids in inputs]
        names = [node.name for node in self._encoder.get_outputs()]
        longest = max(map(len, inputs))
        context = {}
        for i, name in enumerate(names):
            parts = [np.pad(of[i], ((0, 0), (0, 0), (0, longest - of[i].shape[2]), (0, 0))) for of in outputs]
            context[name] = ort_value(np.concatenate(parts))
        seen: Bools = np.arange(longest)[None, :] < np.array([len(ids) for ids in inputs])[:, None]
        forest = self.stepper.empty(len(inputs), {**context, "cross_mask": ort_value(seen)})
        self.clock.add("prefill", now)
        return forest

    def _encode(self, ids: Sequence[int]) -> list[np.ndarray]:
        # one at a time: batches of unequal lengths would only add padding to a pass that keeps all cores busy anyway
        feeds = {"tokens": np.array([ids], np.int64), "cross_mask": np.ones((1, len(ids)), np.bool_)}
        return list(self._encoder.run(None, feeds))

    def begin(self, forest: Forest) -> Stems:
        """The stem of every tree: its start token, read."""
        trees = len(forest.positions)
        first: Ints = np.zeros((trees, 1), np.int64)
        mask = np.ones((trees, 1, 1), np.bool_)
        now = time.perf_counter()
        best = forest.step(first + self.start, first, mask, np.arange(trees), k=self.decoding.width)
        self.clock.add("decode", now)
        return Stems(best, np.arange(trees), mask[:, 0], np.ones(trees, np.int64))


# One door to all of them; languages that a tokenizer cannot write are refused here, before hours of run.

UNKNOWN_SHARE = 0.1  # of a language's tokens; one in ten unknown is no language any more


def open_generator(
    model: str | Path,
    *,
    query_langs: Sequence[str],
    prompt: str | None = None,
    decoding: Decoding | None = None,
    threads: int = 0,
) -> BatchGenerator:
    """A ready generator that can write `query_langs`: of a model folder, the name of an exported one, or `starter`.

    prompt: None takes what suits the model. threads: 0 takes all cores. Raises ModelError when there is no such model
    or it cannot write one of the languages, CorruptError for a damaged folder, DataError for an unknown language.
    """
    decoding = decoding or Decoding()
    folder = open_model_folder(generator_folder(model))
    if folder.kind == "encoder":
        raise ModelError(f"{folder.path} holds an encoder; `generate` needs a generator, such as starter:generator.")
    langs = [normalize(lang) for lang in query_langs]
    _check_writable(folder, langs)
    if folder.kind == "seq2seq-generator":
        if prompt is not None:
            raise ModelError(f"{folder.path} is an encoder-decoder, which has its own prompt: leave --prompt out.")
        return Seq2SeqGenerator(folder, decoding=decoding, threads=threads)
    text = _prompt(folder, prompt, langs)
    causal = CausalModel(folder, stop=text.stop, threads=threads)
    if text.name == "english":
        return _PivotGenerator(causal, query_langs=langs, decoding=decoding)
    return CausalGenerator(causal, prompt=text, decoding=decoding)


def _prompt(folder: ModelFolder, name: str | None, langs: Sequence[str]) -> CausalPrompt:
    record = folder.manifest.get("generator") or {}
    suited = "pivot" if set(langs) <= question_bank().keys() else "few-shot"
    name = name or next((kind for kind in ("finetuned", "chat") if record.get(kind)), suited)
    if name == "chat":
        if not record.get("chat"):
            raise ModelError(f"{folder.path} has no chat template: it is a base model, use --prompt pivot or few-shot.")
        before, after = record["chat"]
        return chat(str(before), str(after))
    if name == "finetuned":
        trained = record.get("finetuned")
        return finetuned(max_passage_tokens=int(trained["max_passage_tokens"])) if trained else finetuned()
    if name not in ("pivot", "few-shot"):
        raise ModelError(f"There is no prompt {name!r}; there are chat, pivot, few-shot and finetuned.")
    return few_shot(pivot=name == "pivot")


def _check_writable(folder: ModelFolder, query_langs: Sequence[str]) -> None:
    """Raise ModelError that names every language whose script the tokenizer does not know."""
    tokenizer = Tokenizer.from_file(str(folder.path / TOKENIZER))
    unknown = next((i for t in ("<unk>", "[UNK]", "<|unk|>") if (i := tokenizer.token_to_id(t)) is not None), None)
    lacking = []
    for lang in query_langs:
        texts = question_bank().get(lang, ())
        ids = [i for text in texts for i in tokenizer.encode(text, add_special_tokens=False).ids]
        if unknown is not None and ids.count(unknown) > UNKNOWN_SHARE * len(ids):
            lacking.append(f"{english_name(lang)} ({lang})")
    if lacking:
        raise ModelError(
            f"The tokenizer of {folder.path} does not know the script of {', '.join(lacking)}: leave them out, or take "
            "another model."
        )


# `xqg_vdb.generate`: queries for passages in memory or in a file, without a log; `run.generate_file` has one.


def generate(
    corpus: str | PathLike[str] | Records,
    *,
    query_langs: Sequence[str],
    n: int = 5,
    generator: str | Path = "starter:generator",
    decoding: Decoding | None = None,
    threads: int = 0,
) -> Iterator[GeneratedQueries]:
    """One record per passage, in the corpus's order, with `n` queries in each language; `write_records` keeps them.

    corpus: a file or folder as `load` takes it, or passages, dicts with `id` and `text`, or a data frame.
    generator: a model folder, or the name of one exported before. Raises ModelError, DataError.
    """
    expect("generator", generator, (str, PathLike), "a model folder, or the name of one exported before")
    expect("n", n, int, "a whole number")
    expect("query_langs", query_langs, (list, tuple, set), "a list, such as ['de', 'sw']")
    ready = open_generator(generator, query_langs=query_langs, decoding=decoding, threads=threads)
    if isinstance(corpus, str | PathLike):
        passages = read_corpus(Path(corpus), detect=False)
    else:
        passages = map(as_passage, plain_records(corpus))
    return ready.generate(passages, query_langs=query_langs, n=n)
