"""Query expansion: prompts, cleaning, fallbacks; local models and a real endpoint on loopback."""

import json
from dataclasses import replace

import pytest
from test_generation_endpoint import CANARY, Server

from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.search import expand as expander
from xqg_vdb.search.expand import Expander, clean, expansion_spec, open_writer, translation_prompt
from xqg_vdb.types import Question

NILE = Question("n", "Wie lang ist der Nil?", "de")
TEA = Question("t", "Where does tea come from?", "en")


class ScriptedWriter:
    """Answers by what the prompt ends with; a real `Writer` without a model."""

    failure = ""

    def __init__(self, *, passage="The Nile is 6,650 km long.", translation="How long is the Nile?", name="scripted"):
        self.passage, self.translation, self.name, self.prompts = passage, translation, name, []

    def describe(self):
        return {"fingerprint": self.name}

    def write(self, prompts):
        self.prompts += prompts
        return [self.translation if prompt.startswith("Translate") else self.passage for prompt in prompts]


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


def answer(text):
    return (200, {}, json.dumps({"choices": [{"message": {"content": text}}]}).encode())


@pytest.mark.parametrize("method", ["translation", "pseudo-document"])
def test_every_prompt_holds_the_question_in_one_line_and_ends_in_a_label(method):
    asked = Question("q", "Wie\nlang ist \t der Nil?", "de")
    Expander(writer := ScriptedWriter(), method=method, lang="swa").expand([asked])
    (prompt,) = writer.prompts
    assert prompt.count(": Wie lang ist der Nil?\n") == 1 and "Swahili" in prompt
    assert prompt.endswith("Swahili:" if method == "translation" else "\nPassage:")


def test_a_passage_is_in_the_language_of_the_question_unless_told_otherwise():
    Expander(writer := ScriptedWriter()).expand([NILE, replace(NILE, text="1234", lang="und")])
    assert writer.prompts[0].startswith("Write a short passage in German that")
    assert writer.prompts[1].startswith("Write a short passage that")


def test_translation_shows_pairs_of_both_languages_where_the_bank_has_them():
    shown = translation_prompt("Wie lang?", source="de", target="sw")
    assert shown.count("German: ") == 9 and shown.endswith("German: Wie lang?\nSwahili:")
    assert "Text: x\nEnglish:" in translation_prompt("x", source="und", target="en")


META = [
    "To answer this question, I will write a passage about rivers.",
    "In order to answer the query, we need facts.",
    "Sure!",
    "Certainly, here is a passage that answers the question:",
    "I'll translate the question.",
    "First, I will identify the subject.",
    "Let's think step by step.",
    "The question is asking for a length.",
    "As an AI language model, I know little.",
    "I'm sorry, but that is private.",
]
SUBSTANCE = [
    "The Nile flows north into the Mediterranean Sea.",
    "Here the river turns west.",
    "Let's Dance is an album by David Bowie.",
    "To the north lies Egypt.",
    "Sure Start was a programme in the United Kingdom.",
    "The question of Macedonia's name was settled in 2018.",
    "I Will Always Love You was written by Dolly Parton.",
    "النيل أطول أنهار أفريقيا.",
]


@pytest.mark.parametrize("sentence", META)
def test_meta_text_goes(sentence):
    assert clean(f"{sentence} The Nile is long.") == "The Nile is long."
    assert clean(sentence) == ""


@pytest.mark.parametrize("sentence", SUBSTANCE)
def test_text_about_the_subject_stays(sentence):
    assert clean(sentence) == sentence


def test_cleaning_of_labels_loops_lists_and_next_items():
    assert clean("**Passage:** The *Nile* is long.\n\nQuestion: Who?\nPassage: x") == "The Nile is long."
    assert clean('Sure! Here is the translation: "How long?"') == "How long?"
    assert clean("It is long. It is long. It is long.") == "It is long."
    assert clean("the the the " * 20) == "" and clean("") == "" and clean("Question: again?") == ""
    assert clean("1. Nile\n2. river") == "Nile river"


def test_a_passage_is_joined_and_a_translation_is_another_wording():
    def expanded(method, query=NILE):
        return Expander(ScriptedWriter(), method=method, lang="en").expand([query])[0]

    passage = "The Nile is 6,650 km long."
    assert expanded("pseudo-document") == (replace(NILE, text=f"{NILE.text} {passage}"),)
    assert expanded("translation") == (NILE, Question("n", "How long is the Nile?", "en"))
    assert (
        expanded("pseudo-document", replace(NILE, lang=None))[0].lang == "de"
    )  # of the question, not of both together


def test_what_is_in_the_language_already_is_not_translated():
    alone = Expander(writer := ScriptedWriter(), method="translation", lang="en")
    assert alone.expansions([NILE, TEA, NILE]) == ["How long is the Nile?", "", "How long is the Nile?"]
    assert alone.expand([TEA]) == [(TEA,)]
    assert len(writer.prompts) == 1 and alone.counters()["fallbacks"] == 0


@pytest.mark.parametrize("passage", ["", "Sure! Wie lang ist der Nil?", "I'm sorry, but I cannot."])
def test_what_fails_leaves_the_plain_question_and_is_counted(passage):
    failing = Expander(ScriptedWriter(passage=passage))
    assert failing.expand([NILE, NILE]) == [(NILE,), (NILE,)]
    assert failing.counters() | {"seconds": 0} == {"questions": 2, "fallbacks": 2, "seconds": 0}


def test_an_endpoint_is_asked_once_per_question_and_its_talk_is_stripped(server):
    text = "Sure! Here is a passage that answers the question:\n\nPassage: The Nile is long."
    server.script = [answer(text), answer(text)]
    asking = Expander(server.url, endpoint_model="m")
    assert {q[0].text for q in asking.expand([NILE, TEA, NILE])} == {f"{q.text} The Nile is long." for q in (NILE, TEA)}
    assert len(server.requests) == 2
    path, _, body = server.requests[0]
    assert path == "/v1/chat/completions" and (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 48)
    assert body["messages"][0]["content"].startswith("Write a short passage in ")
    asking.close()


@pytest.mark.parametrize("script", [(401, {}, b"no"), (400, {}, b""), (200, {}, b"garbage"), (200, {}, b"")])
def test_an_endpoint_that_refuses_leaves_plain_questions(server, script, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    server.script = [script] * 20
    asking = Expander(server.url)
    assert asking.expand([NILE, TEA]) == [(NILE,), (TEA,)]
    assert asking.counters()["fallbacks"] == 2 and CANARY not in asking.writer.failure
    assert asking.writer.failure
    server.script = []
    assert asking.expand([NILE])[0][0].text != NILE.text  # the next question is asked again
    asking.close()


def test_an_endpoint_that_is_away_costs_its_patience_only(monkeypatch):
    monkeypatch.setattr(expander, "PATIENCE", 0.0)
    asking = Expander("http://127.0.0.1:9/v1")
    assert asking.expand([NILE]) == [(NILE,)] and "is not there" in asking.writer.failure
    asking.close()


@pytest.fixture(scope="module")
def llama(tiny_generator):
    return tiny_generator("llama")[1]


def test_local_writers_equal_greedy_transformers_and_do_not_depend_on_the_batch(llama, monkeypatch):
    import torch
    import transformers

    monkeypatch.setattr(expander, "MAX_TOKENS", 8)
    writer = open_writer(llama, threads=1)
    prompts = [f"Question number {i}" + " why" * i for i in range(11)]
    alone = [writer.write([prompt])[0] for prompt in prompts]
    assert writer.write(prompts) == alone and any(alone)
    checkpoint = llama.with_name("tiny-llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager")
    tokenizer = writer.model.tokenizer
    for prompt, text in list(zip(prompts, alone, strict=True))[:4]:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        row = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()
        assert text == tokenizer.decode(row[len(ids) :]).strip().split("\n")[0].strip()
    assert writer.write([]) == []
    assert writer.write(["x" * 100_000, prompts[0]]) == ["", alone[0]]


def test_wrong_methods_languages_and_models_are_refused(tmp_path):
    with pytest.raises(DataError, match="needs a language to translate into"):
        Expander(ScriptedWriter(), method="translation")
    with pytest.raises(DataError, match="is not a language code"):
        Expander(ScriptedWriter(), lang="klingonish")
    for spec in ("translation", "translation:", "few-shot:starter:generator", ""):
        with pytest.raises(DataError, match="given as translation:MODEL or pseudo-document:MODEL"):
            expansion_spec(spec)
    with pytest.raises(DataError, match="Put no key into the URL"):
        Expander(f"https://u:{CANARY}@host/v1")
    from tiny_model import write_tiny_encoder

    with pytest.raises(ModelError, match="kind encoder; expansion needs a decoder-only generator"):
        Expander(write_tiny_encoder(tmp_path / "e"))


def test_search_expands_through_an_endpoint_and_says_so(server, tmp_path):
    from cli_cases import run_cli, write_inputs, write_starter

    write_starter(tmp_path / "cache")
    write_inputs(tmp_path, 12)
    assert run_cli(tmp_path, "load", "corpus.jsonl", "wiki").returncode == 0
    ask = ["search", "wiki", "w1 w2", "--question-lang", "sw", "--json", "--expand", f"pseudo-document:{server.url}"]
    server.script = [answer("w7 w8 w9")]
    done = run_cli(tmp_path, *ask, "--expand-model", "m")
    assert done.returncode == 0, done.stderr
    same = run_cli(tmp_path, "search", "wiki", "w1 w2 w7 w8 w9", "--question-lang", "sw", "--json")
    (record,), (plain,) = json.loads(done.stdout), json.loads(same.stdout)
    assert record["hits"] == plain["hits"] and record["text"] == "w1 w2" and record["seconds"]["expand"] >= 0
    assert "Expanded 1 questions" in done.stderr and "0 searched as they are" in done.stderr
    assert server.requests[0][2]["model"] == "m"
    server.script = [(401, {}, b"no")] * 9
    refused = run_cli(tmp_path, *ask)
    assert refused.returncode == 0 and "1 searched as they are" in refused.stderr
    assert "set XQG_VDB_GENERATOR_KEY to a valid key" in refused.stderr
    wrong = run_cli(tmp_path, *ask[:-1], f"translation:{server.url}")
    assert wrong.returncode == 3 and "give --expand-lang" in wrong.stderr and not wrong.stdout


def test_the_mean_of_two_wordings_is_searched(tmp_path):
    import numpy as np
    from cli_cases import write_inputs, write_starter

    from xqg_vdb import Encoder, Retriever, load
    from xqg_vdb.store import open_store

    write_inputs(tmp_path, 12)
    encoder = Encoder(write_starter(tmp_path / "cache"))
    collection = load(
        tmp_path / "corpus.jsonl", "wiki", encoder=encoder, store=open_store(tmp_path / "store")
    ).collection
    query = Question("q", "w1 w2", "sw")

    def rows(method):
        both = Expander(ScriptedWriter(passage="w7 w8", translation="w7 w8"), method=method, lang="ar")
        return Retriever(encoder, collection, expander=both).encode([query, query])[0]

    plain = Retriever(encoder, collection)
    first, second = plain.encode([query, Question("q", "w7 w8", "ar")])[0]
    mean = (first + second) / 2
    assert rows("translation") == pytest.approx(np.stack([mean / np.linalg.norm(mean)] * 2), abs=1e-6)
    both = plain.encode([Question("q", "w1 w2 w7 w8", "sw")])[0]
    assert rows("pseudo-document")[:1] == pytest.approx(both, abs=1e-6)
