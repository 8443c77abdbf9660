"""One door to all generators: a model folder, the name of an exported one, `starter`, or an endpoint's URL.

Languages that a tokenizer cannot write are refused here, before hours of run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from xqg_vdb.errors import ModelError
from xqg_vdb.generate.local import CausalGenerator, PivotGenerator, Seq2SeqGenerator
from xqg_vdb.generate.prompts import CausalPrompt, PromptName, chat, few_shot, finetuned
from xqg_vdb.generate.run import BatchGenerator
from xqg_vdb.models.decode import Decoding
from xqg_vdb.models.decoder import CausalModel
from xqg_vdb.models.folder import (
    TOKENIZER,
    ModelFolder,
    generator_folder,
    open_model_folder,
)
from xqg_vdb.texts.languages import english_name, normalize
from xqg_vdb.texts.questions import question_bank

UNKNOWN_SHARE = 0.1  # of a language's tokens; one in ten unknown is no language any more


@dataclass(frozen=True, slots=True)
class Options:
    """How to run a generator. prompt: None takes what suits the model. threads: 0 takes all cores."""

    prompt: PromptName | None = None
    decoding: Decoding = field(default_factory=Decoding)
    threads: int = 0


def open_generator(model: str | Path, *, query_langs: Sequence[str], options: Options | None = None) -> BatchGenerator:
    """A ready generator that can write `query_langs`.

    Raises ModelError when there is no such model or it cannot write one of the languages, CorruptError for a damaged
    folder, DataError for an unknown language.
    """
    options = options or Options()
    folder = open_model_folder(generator_folder(model))
    if folder.kind == "encoder":
        raise ModelError(f"{folder.path} holds an encoder; `generate` needs a generator, such as starter:generator.")
    codes = [normalize(lang) for lang in query_langs]
    check_writable(Tokenizer.from_file(str(folder.path / TOKENIZER)), codes, str(folder.path))
    if folder.kind == "seq2seq-generator":
        if options.prompt is not None:
            raise ModelError(f"{folder.path} is an encoder-decoder, which has its own prompt: leave --prompt out.")
        return Seq2SeqGenerator(folder, decoding=options.decoding, threads=options.threads)
    return _causal(folder, codes, options)


def _causal(folder: ModelFolder, query_langs: Sequence[str], options: Options) -> BatchGenerator:
    name = options.prompt or _suited(folder, query_langs)
    prompt = _prompt(folder, name)
    model = CausalModel(folder, stop=prompt.stop, threads=options.threads)
    if name == "pivot":
        return PivotGenerator(model, query_langs=query_langs, decoding=options.decoding)
    return CausalGenerator(model, prompt=prompt, decoding=options.decoding)


def _suited(folder: ModelFolder, query_langs: Sequence[str]) -> PromptName:
    record = folder.manifest.get("generator") or {}
    if record.get("finetuned"):
        return "finetuned"
    return "chat" if record.get("chat") else "pivot" if _bank_has(query_langs) else "few-shot"


def _prompt(folder: ModelFolder, name: PromptName) -> CausalPrompt:
    record = folder.manifest.get("generator") or {}
    if name == "chat":
        if not record.get("chat"):
            raise ModelError(f"{folder.path} has no chat template: it is a base model, use --prompt pivot or few-shot.")
        before, after = record["chat"]
        return chat(str(before), str(after))
    if name == "finetuned":
        trained = record.get("finetuned")
        return finetuned(max_passage_tokens=int(trained["max_passage_tokens"])) if trained else finetuned()
    return few_shot()


def _bank_has(query_langs: Sequence[str]) -> bool:
    return set(query_langs) <= question_bank().keys()


def check_writable(tokenizer: Tokenizer, query_langs: Sequence[str], name: str) -> None:
    """Raise ModelError that names every language whose script the tokenizer does not know."""
    lacking = [lang for lang in query_langs if _unknown_share(tokenizer, question_bank().get(lang, ())) > UNKNOWN_SHARE]
    if lacking:
        names = ", ".join(f"{english_name(lang)} ({lang})" for lang in lacking)
        raise ModelError(
            f"The tokenizer of {name} does not know the script of {names}: leave them out, or take another model."
        )


def _unknown_share(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    unknown = next((i for t in ("<unk>", "[UNK]", "<|unk|>") if (i := tokenizer.token_to_id(t)) is not None), None)
    ids = [i for text in texts for i in tokenizer.encode(text, add_special_tokens=False).ids]
    return ids.count(unknown) / len(ids) if ids and unknown is not None else 0.0
