"""Query expansion: prompts, cleaning, combination, cache, fallbacks; local models and a real endpoint on loopback."""

import json
from dataclasses import replace

import pytest
from generation_cases import tiny_checkpoint
from test_generation_endpoint import CANARY, Server

from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.expansion import Expander, ExpansionCache, Plan, open_expander
from xqg_vdb.expansion.cleaning import clean, is_meta
from xqg_vdb.expansion.prompts import expansion_prompt, translation_prompt
from xqg_vdb.generation.completion import open_writer
from xqg_vdb.types import Query

STRATEGIES = ["zero-shot", "few-shot", "chain-of-thought", "rephrase-and-respond"]
NILE = Query("n", "Wie lang ist der Nil?", "de")
TEA = Query("t", "Where does tea come from?", "en")


class ScriptedWriter:
    """Answers by what the prompt ends with; a real `Writer` without a model."""

    base = True

    def __init__(self, *, passage="The Nile is 6,650 km long.", translation="How long is the Nile?", name="scripted"):
        self.passage, self.translation, self.name, self.prompts = passage, translation, name, []

    def describe(self):
        return {"fingerprint": self.name}

    def write(self, prompts, *, max_tokens, stop=()):
        self.prompts += prompts
        return [self.translation if prompt.startswith("Translate") else self.passage for prompt in prompts]


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


def answer(text):
    return (200, {}, json.dumps({"choices": [{"message": {"content": text}}]}).encode())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["pseudo-document", "keywords"])
def test_every_prompt_holds_the_question_once_and_ends_in_a_label(strategy, kind):
    prompt = expansion_prompt(Plan(strategy, kind), "Wie\nlang ist \t der Nil?", lang="sw")
    assert prompt.count("Question: Wie lang ist der Nil?\n") == 1 and "in Swahili" in prompt
    assert prompt.endswith(":") and prompt.count("Question: ") == (4 if strategy == "few-shot" else 1)
    assert "in " + "und" not in expansion_prompt(Plan(strategy, kind), "x", lang="und")


def test_translation_shows_pairs_of_both_languages_where_the_bank_has_them():
    shown = translation_prompt("Wie lang?", source="de", target="sw")
    assert shown.count("German: ") == 9 and shown.endswith("German: Wie lang?\nSwahili:")
    assert translation_prompt("Wie lang?", source="de", target="sw", pairs=0).count("German: ") == 1
    assert "Text: x\nEnglish:" in translation_prompt("x", source="und", target="en")


META = [
    "To answer this question, I will write a passage about rivers.",
    "In order to answer the query, we need facts.",
    "Sure!",
    "Certainly, here is a passage that answers the question:",
    "Here's the rephrased question:",
    "I'll rephrase and expand the question.",
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
    assert is_meta(sentence)
    for strategy in STRATEGIES:
        text = clean(f"{sentence} The Nile is long.", kind="pseudo-document", strategy=strategy)
        assert text == "The Nile is long."


@pytest.mark.parametrize("sentence", SUBSTANCE)
def test_text_about_the_subject_stays(sentence):
    assert not is_meta(sentence)
    assert clean(sentence, kind="pseudo-document", strategy="zero-shot") == sentence


def test_cleaning_of_labels_loops_lists_and_next_items():
    def cleaned(text, kind="pseudo-document", strategy="zero-shot"):
        return clean(text, kind=kind, strategy=strategy)

    assert cleaned("**Passage:** The *Nile* is long.\n\nQuestion: Who?\nPassage: x") == "The Nile is long."
    assert cleaned("It is long. It is long. It is long.") == "It is long."
    assert cleaned("the the the " * 20) == "" and cleaned("") == "" and cleaned("Question: again?") == ""
    thought = "Step 1: rivers. It may be the Nile.\nPassage in English: The Nile is long."
    assert cleaned(thought, strategy="chain-of-thought") == "The Nile is long."
    both = "How many kilometres is the Nile?\nPassage: 6,650 km."
    assert cleaned(both, strategy="rephrase-and-respond") == "How many kilometres is the Nile? 6,650 km."
    assert cleaned("Keywords: Nile, river; Nile\n- Egypt", kind="keywords") == "Nile, river, Egypt"
    assert cleaned("1. Nile\n2. river", kind="keywords") == "Nile, river"
    assert len(cleaned("a b c. " + " ".join(map(str, range(500)))).split()) == 160


def test_three_ways_to_combine():
    def expanded(combine, query=NILE):
        return Expander(ScriptedWriter(), plan=Plan(combine=combine, lang="en")).expand([query])[0]

    passage = "The Nile is 6,650 km long."
    assert expanded("concat") == (replace(NILE, text=f"{NILE.text} {passage}"),)
    assert expanded("mean") == (NILE, Query("n", passage, "en"))
    assert expanded("only") == (Query("n", passage, "en"),)
    assert expanded("concat", replace(NILE, lang=None))[0].lang == "de"  # of the question, not of both together


def test_both_orders_and_translation_alone():
    writer = ScriptedWriter()
    text = Expander(writer, plan=Plan(order="translate-expand", lang="en")).expansions([NILE])[0].text
    assert text == "How long is the Nile? The Nile is 6,650 km long."
    assert writer.prompts[0].endswith("German: Wie lang ist der Nil?\nEnglish:")
    assert "Question: How long is the Nile?\n" in writer.prompts[1] and "in English" in writer.prompts[1]
    writer = ScriptedWriter()
    text = Expander(writer, plan=Plan(order="expand-translate", lang="en")).expansions([NILE])[0].text
    assert text == "How long is the Nile?" and "in German" in writer.prompts[0]
    assert writer.prompts[1].endswith("German: Wie lang ist der Nil? The Nile is 6,650 km long.\nEnglish:")
    alone = Expander(writer := ScriptedWriter(), plan=Plan(kind="translation", lang="en"))
    assert [e.text for e in alone.expansions([NILE, TEA])] == ["How long is the Nile?", ""]
    assert len(writer.prompts) == 1 and alone.counters()["fallbacks"] == 0  # English needs no translation
    shown = Expander(writer := ScriptedWriter(), plan=Plan(order="translate-expand", lang="en"))
    assert shown.expansions([TEA])[0].text == f"{TEA.text} The Nile is 6,650 km long." and len(writer.prompts) == 1


@pytest.mark.parametrize("broken", [{"passage": ""}, {"translation": ""}, {"passage": "Sure! Wie lang ist der Nil?"}])
@pytest.mark.parametrize("order", ["translate-expand", "expand-translate"])
def test_what_fails_in_any_step_leaves_the_plain_question_and_is_counted(broken, order):
    expander = Expander(ScriptedWriter(**broken), plan=Plan(order=order, lang="en"))
    if broken.get("passage", "x").startswith("Sure") and order == "translate-expand":
        return  # there the echo is of another wording
    assert expander.expand([NILE, NILE]) == [(NILE,), (NILE,)]
    assert expander.counters() | {"seconds": 0} == {"questions": 2, "cached": 0, "fallbacks": 2, "seconds": 0}


def test_the_cache_asks_once_and_tells_everything_apart(tmp_path):
    cache = ExpansionCache(tmp_path / "kept")
    writer = ScriptedWriter()
    first = Expander(writer, cache=cache).expand([NILE, TEA, NILE])
    assert len(writer.prompts) == 2 and first[0] == first[2]
    again = Expander(quiet := ScriptedWriter(passage="other"), cache=cache)
    assert again.expand([NILE, TEA, NILE]) == first and not quiet.prompts and again.counters()["cached"] == 3
    for other in (
        Expander(w1 := ScriptedWriter(name="another"), cache=cache),
        Expander(w2 := ScriptedWriter(), plan=Plan("few-shot"), cache=cache),
        Expander(w3 := ScriptedWriter(), plan=Plan(max_tokens=7), cache=cache),
        Expander(w4 := ScriptedWriter(), plan=Plan(lang="sw"), cache=cache),
    ):
        other.expand([NILE])
    assert all(len(w.prompts) == 1 for w in (w1, w2, w3, w4))
    Expander(w5 := ScriptedWriter(), plan=Plan(combine="mean"), cache=cache).expand([NILE])
    assert not w5.prompts  # how it is combined does not change what is written
    Expander(w6 := ScriptedWriter(), cache=cache).expand([replace(NILE, lang="nl")])
    assert len(w6.prompts) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": "x", "expansion": "y"}', b'{"expansion": 5}', b"\xff"])
def test_a_damaged_cache_file_counts_as_missing(tmp_path, damage):
    cache = ExpansionCache(tmp_path)
    Expander(ScriptedWriter(), cache=cache).expand([NILE])
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(damage)
    writer = ScriptedWriter()
    assert Expander(writer, cache=cache).expand([NILE])[0][0].text.endswith("6,650 km long.") and writer.prompts


def test_failures_are_not_kept_and_an_unwritable_cache_stops_nothing(tmp_path):
    Expander(ScriptedWriter(passage=""), cache=ExpansionCache(tmp_path / "a")).expand([NILE])
    assert not list(tmp_path.rglob("*.json"))
    (tmp_path / "file").write_text("not a folder")
    expander = Expander(ScriptedWriter(), cache=ExpansionCache(tmp_path / "file"))
    assert expander.expand([NILE])[0][0].text.endswith("6,650 km long.")


def test_an_endpoint_is_asked_once_per_question_and_its_talk_is_stripped(server, tmp_path):
    text = "Sure! Here is a passage that answers the question:\n\nPassage: The Nile is long."
    server.script = [answer(text), answer(text)]
    expander = open_expander(f"zero-shot:{server.url}", plan=Plan(), cache=ExpansionCache(tmp_path), endpoint_model="m")
    assert {q[0].text for q in expander.expand([NILE, TEA])} == {f"{q.text} The Nile is long." for q in (NILE, TEA)}
    expander.expand([NILE, TEA])
    assert len(server.requests) == 2 and expander.counters()["cached"] == 2
    path, _, body = server.requests[0]
    assert path == "/v1/chat/completions" and (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 96)
    assert body["messages"][0]["content"].startswith("Write a short passage in ")
    expander.close()


@pytest.mark.parametrize("script", [(401, {}, b"no"), (400, {}, b""), (200, {}, b"garbage"), (200, {}, b"")])
def test_an_endpoint_that_refuses_leaves_plain_questions(server, script, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    server.script = [script] * 20
    expander = Expander(server.url, cache=ExpansionCache(tmp_path))
    assert expander.expand([NILE, TEA]) == [(NILE,), (TEA,)]
    assert expander.counters()["fallbacks"] == 2 and not list(tmp_path.rglob("*.json"))
    assert CANARY not in expander.failure
    assert bool(expander.failure) == (script[0] != 200)
    server.script = []
    assert expander.expand([NILE])[0][0].text != NILE.text  # the next question is asked again
    expander.close()


def test_an_endpoint_that_is_away_costs_its_patience_only(monkeypatch):
    from xqg_vdb.generation import completion

    monkeypatch.setattr(completion, "PATIENCE", 0.0)
    expander = Expander("http://127.0.0.1:9/v1")
    assert expander.expand([NILE]) == [(NILE,)] and "did not answer" in expander.failure
    expander.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from xqg_vdb.generation.export import export_generator

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("writers")
    return {
        kind: export_generator(
            str(tiny_checkpoint(kind, root / kind)), root / f"{kind}-fp32", precision="fp32", report=lambda _: None
        ).path
        for kind in ("mt5", "llama")
    }


@pytest.mark.parametrize("kind", ["mt5", "llama"])
def test_local_writers_equal_greedy_transformers_and_do_not_depend_on_the_batch(folders, kind):
    import torch
    import transformers

    writer = open_writer(folders[kind], max_tokens=8, threads=1)
    assert writer.base == (kind == "llama")
    prompts = [f"Question number {i}" + " why" * i for i in range(11)]
    alone = [writer.write([prompt], max_tokens=8)[0] for prompt in prompts]
    assert writer.write(prompts, max_tokens=8) == alone
    loader = transformers.AutoModelForSeq2SeqLM if kind == "mt5" else transformers.AutoModelForCausalLM
    model = loader.from_pretrained(folders[kind].parent / kind, attn_implementation="eager")
    tokenizer = writer.model.tokenizer
    for prompt, text in list(zip(prompts, alone, strict=True))[:4]:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids + ([1] if kind == "mt5" else [])
        row = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()
        row = row if kind == "mt5" else row[len(ids) :]
        assert text == tokenizer.decode(row).strip()
    assert writer.write([], max_tokens=8) == []
    if kind == "llama":
        assert writer.write(["x" * 100_000, prompts[0]], max_tokens=8) == ["", alone[0]]
        end = alone[1][2]
        assert writer.write([prompts[1]], max_tokens=8, stop=(end,)) == [alone[1].split(end)[0].strip()]
        first = alone[1][0]  # an answer that begins with its own end is asked for again, from the next line
        led_on = writer.write([prompts[1] + "\n"], max_tokens=8, stop=(first,))
        assert writer.write([prompts[1]], max_tokens=8, stop=(first,)) == led_on


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_on_a_local_model(folders, strategy):
    for plan in (Plan(strategy, max_tokens=8), Plan(strategy, order="translate-expand", lang="en", max_tokens=8)):
        expander = Expander(folders["llama"], plan=plan, threads=1)
        (wording,) = expander.expand([NILE])[0]
        assert wording.text.startswith(NILE.text)


def test_wrong_plans_and_specs_are_refused(tmp_path):
    for options, message in (
        ({"strategy": "best"}, "strategy must be one of zero-shot"),
        ({"combine": "sum"}, "combine must be one of concat"),
        ({"kind": "translation"}, "needs a language to translate into"),
        ({"order": "expand-translate"}, "needs a language to translate into"),
        ({"kind": "translation", "order": "expand-translate", "lang": "en"}, "has nothing to expand"),
        ({"max_tokens": 0}, "max_tokens must lie between"),
    ):
        with pytest.raises(ValueError, match=message):
            Plan(**options)
    with pytest.raises(DataError, match="is not a language code"):
        Plan(lang="klingonish")
    for spec in ("zero-shot", "zero-shot:", "best:starter:generator", ""):
        with pytest.raises(DataError, match="given as STRATEGY:MODEL"):
            open_expander(spec, plan=Plan(), cache=None)
    with pytest.raises(DataError, match="Put no key into the URL"):
        Expander(f"https://u:{CANARY}@host/v1")
    from tiny_model import write_tiny_encoder

    with pytest.raises(ModelError, match="holds an encoder; expansion needs a generator"):
        Expander(write_tiny_encoder(tmp_path / "e"))


def test_search_expands_through_an_endpoint_and_says_so(server, tmp_path):
    from cli_cases import run_cli, write_inputs, write_starter

    write_starter(tmp_path / "cache")
    write_inputs(tmp_path, 12)
    assert run_cli(tmp_path, "load", "corpus.jsonl", "wiki").returncode == 0
    ask = ["search", "wiki", "w1 w2", "--query-lang", "sw", "--json", "--expand-combine", "only", "--expand-lang", "en"]
    server.script = [answer("w7 w8 w9")]
    done = run_cli(tmp_path, *ask, "--expand", f"zero-shot:{server.url}")
    assert done.returncode == 0, done.stderr
    same = run_cli(tmp_path, "search", "wiki", "w7 w8 w9", "--query-lang", "en", "--json")
    (record,), (plain,) = json.loads(done.stdout), json.loads(same.stdout)
    assert record["hits"] == plain["hits"] and record["text"] == "w1 w2" and record["seconds"]["expand"] > 0
    assert "Expanded 1 questions" in done.stderr and "0 searched as they are" in done.stderr
    again = run_cli(tmp_path, *ask, "--expand", f"zero-shot:{server.url}")
    assert "(1 from the cache" in again.stderr and len(server.requests) == 1
    server.script = [(401, {}, b"no")] * 9
    refused = run_cli(tmp_path, *ask, "--no-expand-cache", "--expand", f"zero-shot:{server.url}")
    assert refused.returncode == 0 and "1 searched as they are" in refused.stderr
    assert "set XQG_VDB_GENERATOR_KEY to a valid key" in refused.stderr
    wrong = run_cli(tmp_path, *ask[:-2], "--expand-kind", "translation", "--expand", f"few-shot:{server.url}")
    assert wrong.returncode == 2 and "(--expand-lang)" in wrong.stderr


def test_the_mean_of_two_wordings_is_searched(tmp_path):
    import numpy as np
    from cli_cases import write_inputs, write_starter

    from xqg_vdb import Encoder, Retriever, load
    from xqg_vdb.collection import open_store

    write_inputs(tmp_path, 12)
    encoder = Encoder(write_starter(tmp_path / "cache"))
    collection = load(tmp_path / "corpus.jsonl", "wiki", encoder=encoder, store=open_store(tmp_path / "store"))
    query = Query("q", "w1 w2", "sw")

    def rows(combine):
        expander = Expander(ScriptedWriter(passage="w7 w8"), plan=Plan(combine=combine, lang="ar"))
        return Retriever(encoder, collection, expander=expander).encode([query, query]).vectors

    plain = Retriever(encoder, collection)
    first, second = plain.encode([query, Query("q", "w7 w8", "ar")]).vectors
    mean = (first + second) / 2
    assert rows("mean") == pytest.approx(np.stack([mean / np.linalg.norm(mean)] * 2), abs=1e-6)
    assert rows("only") == pytest.approx(np.stack([second] * 2), abs=1e-6)
    both = plain.encode([Query("q", "w1 w2 w7 w8", "sw")]).vectors
    assert rows("concat")[:1] == pytest.approx(both, abs=1e-6)
