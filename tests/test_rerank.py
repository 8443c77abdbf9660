"""UPR against teacher forcing with transformers on small random models; its prompt, its cutting, its order."""

import random
from dataclasses import replace

import numpy as np
import pytest
from generation_cases import tiny_checkpoint

from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.generation import scoring
from xqg_vdb.generation.scoring import fitted_ids, open_scorer
from xqg_vdb.rerank import INSTRUCTION, Reranker, open_reranker, passage_text, standardised
from xqg_vdb.types import Hit, Query

QUESTION = Query("q", "How long is  the Nile?", "en")
HITS = [
    Hit(f"p{i}", 1.0 - i / 10, f"Passage {i} " + "xyzABC"[i % 6] * (5 + i * 7 % 31) + " on rivers", title=f"t{i}")
    for i in range(10)
]
LONG = Hit("long", 0.2, "a very long passage on rivers " * 400, title="Long")


class CountingScorer:
    """Scores by the number of letters that passage and question share; no model."""

    def __init__(self):
        self.truncated, self.seen = 0, []

    def score(self, passages, instruction, question):
        self.seen.append((list(passages), instruction, question))
        return np.array([-1.0 / (1 + len(set(passage) & set(question))) for passage in passages])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from xqg_vdb.generation.export import export_generator

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("scorers")
    made = {}
    for kind in ("mt5", "gemma", "llama"):
        checkpoint = tiny_checkpoint(kind, root / kind)
        folder = export_generator(str(checkpoint), root / f"{kind}-fp32", precision="fp32", report=lambda _: None)
        made[kind] = checkpoint, folder.path
    return made


def slow_score(kind, checkpoint, tokenizer, prompt, question):
    """One passage, one pass of the original model; the mean over the question's tokens."""
    import torch
    import transformers

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    with torch.no_grad():
        if kind == "mt5":
            model = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()
            target = [*ids(f"Question: {question}"), 1]
            logits = model(input_ids=torch.tensor([[*ids(prompt), 1]]), labels=torch.tensor([target])).logits[0]
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
            target, context = ids(f" {question}"), ids(f"{prompt}\nQuestion:")
            logits = model(input_ids=torch.tensor([context + target])).logits[0, len(context) - 1 : -1]
        table = torch.log_softmax(logits.double(), dim=-1)
    return float(table[range(len(target)), target].mean())


@pytest.mark.parametrize("kind", ["mt5", "gemma", "llama"])
def test_scores_equal_teacher_forcing_long_passages_included(folders, kind):
    checkpoint, path = folders[kind]
    reranker = Reranker(path, threads=1)
    tokenizer = (reranker.scorer.model).tokenizer
    found = {hit.id: hit.score for hit in reranker.rerank(QUESTION, [*HITS, LONG])}
    room = 511 if kind == "mt5" else 512  # the end token of the encoder
    tail = INSTRUCTION + ("" if kind == "mt5" else "\nQuestion:")
    for hit in [*HITS, LONG]:
        text = f"Passage: {hit.title} {hit.text}".strip()
        text = text[: room - len(tail)]  # a token of the tiny tokenizer is a character
        expected = slow_score(kind, checkpoint, tokenizer, text + INSTRUCTION, "How long is the Nile?")
        assert found[hit.id] == pytest.approx(expected, abs=1e-4), hit.id
    assert reranker.counters() | {"seconds": 0} == {"questions": 1, "passages": 11, "passages_cut": 1, "seconds": 0}


@pytest.mark.parametrize("kind", ["mt5", "gemma"])
def test_scores_do_not_depend_on_order_batch_or_company(folders, kind, monkeypatch):
    reranker = Reranker(folders[kind][1], threads=1)
    hits = [*HITS, LONG]
    whole = reranker.rerank(QUESTION, hits)
    for seed in range(3):
        assert reranker.rerank(QUESTION, random.Random(seed).sample(hits, len(hits))) == whole
    alone = [reranker.rerank(QUESTION, [hit])[0] for hit in hits]
    together = {hit.id: hit.score for hit in whole}
    assert all(abs(hit.score - together[hit.id]) < 1e-4 for hit in alone)
    for name, value in (("BATCH_TOKENS", 1), ("BATCH_LOGITS", 1)):
        monkeypatch.setattr(scoring, name, value)
        small = reranker.rerank(QUESTION, hits)
        assert [hit.id for hit in small] == [hit.id for hit in whole]
        assert all(abs(hit.score - together[hit.id]) < 1e-4 for hit in small)


def test_the_instruction_survives_a_passage_of_any_length(folders):
    tokenizer = open_scorer(folders["llama"][1], threads=1).model.tokenizer
    for body in ("word " * 200_000, "ab", "\U0001f600" * 3000, "e\u0301" * 3000):
        ids, cut = fitted_ids(tokenizer, body, INSTRUCTION, room=100)
        assert len(ids) <= 100 and cut == (len(body) > 2)
        assert tokenizer.decode(ids).endswith(INSTRUCTION)
    with pytest.raises(ModelError, match="leaves no room for a passage in 20 tokens"):
        fitted_ids(tokenizer, "word " * 50, INSTRUCTION, room=20)


def test_a_chat_model_is_asked_through_its_template(folders):
    checkpoint, path = folders["llama"]
    scorer = open_scorer(path, threads=1)
    chat = scoring.CausalScorer(scorer.model, chat=["<u>", "</u><a>"])
    found = chat.score(["Passage: a b"], INSTRUCTION, "How?")[0]
    ids = scorer.model.ids
    prompt, target = ids("<u>Passage: a b" + INSTRUCTION + "</u><a>"), ids("How?")
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1], -1)
    assert found == pytest.approx(float(table[range(len(target)), target].mean()), abs=1e-4)


def test_a_folder_from_before_is_refused_with_what_to_do(folders, tmp_path):
    import shutil

    import onnx

    from xqg_vdb.model_folder import open_model_folder, write_manifest

    copy = shutil.copytree(folders["llama"][1], tmp_path / "old")
    model = onnx.load(str(copy / "model.onnx"))
    kept = [value for value in model.graph.output if value.name != "target_log_probabilities"]
    made_by = {name: node for node in model.graph.node for name in node.output}
    gone = made_by["target_log_probabilities"], made_by[made_by["target_log_probabilities"].input[0]]
    nodes = [node for node in model.graph.node if "targets" not in node.input and node not in gone]
    nodes = [node for node in nodes if node.op_type != "GatherElements"]
    dead = {name for node in model.graph.node if "targets" in node.input for name in node.output}
    nodes = [node for node in nodes if not dead & set(node.input)]
    inputs = [value for value in model.graph.input if value.name != "targets"]
    del model.graph.output[:], model.graph.node[:], model.graph.input[:]
    model.graph.output.extend(kept)
    model.graph.node.extend(nodes)
    model.graph.input.extend(inputs)
    onnx.save(model, str(copy / "model.onnx"))
    manifest = open_model_folder(folders["llama"][1]).manifest
    write_manifest(copy, {key: value for key, value in manifest.items() if key not in ("files", "schema")})
    with pytest.raises(ModelError, match="was exported before generators could score a question: export it again"):
        Reranker(copy)


def test_the_prompt_is_the_published_one_and_may_name_the_language():
    scorer = CountingScorer()
    Reranker(scorer).rerank(QUESTION, [Hit("a", 0.0, "the\n text", title="Nile"), Hit("b", 0.0, "text")])
    passages, instruction, question = scorer.seen[0]
    assert passages == ["Passage: Nile the text", "Passage: text"]
    assert instruction == ". Please write a question based on this passage." and question == "How long is the Nile?"
    named = Reranker(scorer, name_language=True)
    assert named.instruction(replace(QUESTION, lang="swa")) == (
        ". Please write a question in Swahili based on this passage."
    )
    assert "in German" in named.instruction(Query("q", "Wie lang ist der Nil in Kilometern?"))
    assert named.instruction(Query("q", "1234")) == INSTRUCTION
    assert passage_text(Hit("a", 0.0, "", title="Nile")) == "Passage: Nile"


def test_interpolation_runs_from_the_first_stage_to_upr():
    scorer = CountingScorer()
    hits = [Hit("a", 9.0, "zzz"), Hit("b", 5.0, "How long is the Nile"), Hit("c", 1.0, "How")]
    order = {w: [hit.id for hit in Reranker(scorer, weight=w).rerank(QUESTION, hits)] for w in (0.0, 0.5, 1.0)}
    assert order[0.0] == ["a", "b", "c"] and order[1.0] == ["b", "c", "a"] and order[0.5][0] == "b"
    likelihood = scorer.score([passage_text(hit) for hit in hits], "", "How long is the Nile?")
    expected = 0.3 * standardised(likelihood) + 0.7 * standardised(np.array([9.0, 5.0, 1.0]))
    found = {hit.id: hit.score for hit in Reranker(scorer, weight=0.3).rerank(QUESTION, hits)}
    assert [found["a"], found["b"], found["c"]] == pytest.approx(expected.tolist())
    assert standardised(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]
    same = Reranker(scorer).rerank(QUESTION, [Hit("b", 0.0, "x"), Hit("a", 0.0, "x")])
    assert [hit.id for hit in same] == ["a", "b"]


def test_wrong_uses_are_refused(tmp_path):
    for options in ({"depth": 0}, {"weight": 1.5}, {"weight": float("nan")}):
        with pytest.raises(ValueError, match="must"):
            Reranker(CountingScorer(), **options)
    with pytest.raises(DataError, match="Question 'q' is blank"):
        Reranker(CountingScorer()).rerank(Query("q", " \n"), HITS)
    assert Reranker(CountingScorer()).rerank(QUESTION, []) == []
    for spec in ("bm25:x", "upr", "upr:", ""):
        with pytest.raises(DataError, match="given as upr:MODEL"):
            open_reranker(spec)
    from tiny_model import write_tiny_encoder

    with pytest.raises(ModelError, match="holds an encoder; UPR needs a generator"):
        open_reranker(f"upr:{write_tiny_encoder(tmp_path / 'e')}")


def test_search_ranks_again_and_says_what_it_took(folders, tmp_path):
    import json

    from cli_cases import run_cli, write_inputs, write_starter

    write_starter(tmp_path / "cache")
    write_inputs(tmp_path, 12)
    assert run_cli(tmp_path, "load", "corpus.jsonl", "wiki").returncode == 0
    ask = ["search", "wiki", "w1 w2 w3", "--query-lang", "sw", "--json"]
    plain = json.loads(run_cli(tmp_path, *ask, "-k", 6).stdout)[0]["hits"]
    done = run_cli(tmp_path, *ask, "-k", 3, "--rerank", f"upr:{folders['llama'][1]}", "--rerank-depth", 6)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    expected = Reranker(folders["llama"][1], threads=1).rerank(
        Query("0", "w1 w2 w3", "sw"), [Hit(hit["id"], hit["score"], hit["text"], title=hit["title"]) for hit in plain]
    )
    assert [hit["id"] for hit in record["hits"]] == [hit.id for hit in expected[:3]]
    assert record["seconds"]["rerank"] > 0
    assert "Ranked 6 passages again" in done.stderr and "(0 passages cut)" in done.stderr
    wrong = run_cli(tmp_path, *ask, "--rerank", "bm25")
    assert wrong.returncode == 3 and "given as upr:MODEL" in wrong.stderr and not wrong.stdout
