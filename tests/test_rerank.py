"""UPR against teacher forcing with transformers on small random models; its prompt, its cutting, its order."""

import random
from functools import partial

import numpy as np
import pytest

from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.models import forest as branches
from xqg_vdb.models.forest import Stepper
from xqg_vdb.search.rerank import (
    INSTRUCTION,
    Reranker,
    Scorer,
    fitted_ids,
    passage_text,
    reranker_spec,
    standardised,
)
from xqg_vdb.types import Hit, Question

QUESTION = Question("q", "How long is  the Nile?", "en")
HITS = [
    Hit(f"p{i}", 1.0 - i / 10, f"Passage {i} " + "xyzABC"[i % 6] * (5 + i * 7 % 31) + " on rivers", title=f"t{i}")
    for i in range(10)
]
LONG = Hit("long", 0.2, "a very long passage on rivers " * 400, title="Long")


class CountingScorer:
    """Scores by the number of letters that passage and question share; no model."""

    def __init__(self):
        self.truncated, self.seen = 0, []

    def score(self, passage, questions):
        self.seen.append((passage, list(questions)))
        return np.array([-1.0 / (1 + len(set(passage) & set(question))) for question in questions])


@pytest.fixture(scope="module")
def folders(tiny_generator):
    return {kind: tiny_generator(kind) for kind in ("mt5", "gemma", "llama")}


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
    reranker = Reranker(path, threads=1, weight=1.0)
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
def test_the_scores_of_one_question_do_not_depend_on_order_or_on_the_other_hits(folders, kind):
    reranker = Reranker(folders[kind][1], threads=1, weight=1.0)
    hits = [*HITS, LONG]
    whole = reranker.rerank(QUESTION, hits)
    for seed in range(3):
        assert reranker.rerank(QUESTION, random.Random(seed).sample(hits, len(hits))) == whole
    alone = [reranker.rerank(QUESTION, [hit])[0] for hit in hits]
    assert sorted(alone, key=lambda hit: hit.id) == sorted(whole, key=lambda hit: hit.id)


def varied_questions(number):
    """Questions of 1 to 150 characters (tokens of the tiny tokenizer), with their languages."""
    words = ["How", "long", "is", "the", "Nile", "and", "where", "does", "it", "end", "or", "begin", "today"]
    draw = random.Random(3)
    texts = [" ".join(draw.choices(words, k=1 + i % 7)) + "?" for i in range(number - 1)]
    texts.append(" ".join(draw.choices(words, k=40)))  # beyond MAX_QUESTION_TOKENS
    return [Question(f"q{i}", text, ["en", "de", "sw"][i % 3]) for i, text in enumerate(texts)]


def shared_hits(number):
    """Hits per question: most passages are found by several questions, one by all but one, and one by a single one."""
    draw = random.Random(5)
    hits = [[*draw.sample(HITS, 4), LONG] for _ in range(number)]
    hits[1], hits[2] = [], [Hit("own", 0.5, "a passage of its own"), *HITS]
    return hits


@pytest.mark.parametrize("kind", ["mt5", "gemma", "llama"])
def test_many_questions_get_the_scores_of_each_alone(folders, kind, monkeypatch):
    queries, hits = varied_questions(9), shared_hits(9)
    one_by_one, together = (Reranker(folders[kind][1], threads=1, weight=1.0) for _ in range(2))
    expected = [one_by_one.rerank(query, own) for query, own in zip(queries, hits, strict=True)]
    counts = one_by_one.counters() | {"seconds": 0}
    assert counts == {"questions": 8, "passages": 7 * 5 + 11, "passages_cut": 7, "seconds": 0}
    # one pass for all questions of a passage; a few a pass behind the cache; one a pass, by either bound
    for name, value in (("CHUNK_TOKENS", 2**20), ("CHUNK_LOGITS", 100 * 100), ("CHUNK_TOKENS", 1), ("CHUNK_LOGITS", 1)):
        monkeypatch.setattr(branches, name, value)
        together = Reranker(together.scorer, weight=1.0)
        together.scorer.truncated = 0
        found = together.rerank_all(queries, hits)
        for own, wanted in zip(found, expected, strict=True):
            score = {hit.id: hit.score for hit in wanted}
            assert {hit.id for hit in own} == set(score)
            assert all(abs(hit.score - score[hit.id]) < 1e-4 for hit in own)
            assert own == sorted(own, key=lambda hit: (-hit.score, hit.id))
        assert together.counters() | {"seconds": 0} == counts


@pytest.mark.parametrize("kind", ["mt5", "gemma", "llama"])
def test_many_questions_equal_teacher_forcing(folders, kind):
    checkpoint, path = folders[kind]
    scorer = Scorer(path, threads=1)
    tokenizer, questions = scorer.model.tokenizer, ["How?", "Where does the Nile end?", "How long is it?", "How?"]
    for text in (passage_text("t", "the Nile"), passage_text("Long", LONG.text)):
        after = INSTRUCTION + ("" if kind == "mt5" else "\nQuestion:")
        prompt = text[: (511 if kind == "mt5" else 512) - len(after)] + INSTRUCTION
        for score, question in zip(scorer.score(text, questions), questions, strict=True):
            assert score == pytest.approx(slow_score(kind, checkpoint, tokenizer, prompt, question), abs=1e-4)
    assert scorer.truncated == 4


def test_a_question_may_take_room_from_its_passage(folders):
    """In a short model the passage is cut at another place for each length of question."""
    scorer = Scorer(folders["gemma"][1], threads=1)
    scorer.model.max_length = 300
    asked = ["How?", "How long is the Nile?", "Where?" * 20]
    text = passage_text("Long", LONG.text)
    together = scorer.score(text, asked)
    alone = [scorer.score(text, [one])[0] for one in asked]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(np.round(alone, 3))) == 3


def test_a_passage_is_read_once_for_all_its_questions(folders, monkeypatch):
    scorer = Scorer(folders["llama"][1], threads=1)
    fed, run = [], Stepper._outputs
    monkeypatch.setattr(
        Stepper, "_outputs", lambda self, forest, feeds, names: fed.append(feeds) or run(self, forest, feeds, names)
    )
    text, questions = passage_text("t", "the Nile " * 20), [f"How long is river {i}?" for i in range(60)]
    scorer.score(text, questions)
    prompt, question = len(text + INSTRUCTION + "\nQuestion:"), len(" How long is river 10?")
    assert sum(feeds["tokens"].size for feeds in fed) < prompt + 60 * question
    assert len(fed) > 2 and all(feeds["tokens"].size <= branches.CHUNK_TOKENS for feeds in fed)


def test_nothing_asked_nothing_answered(folders):
    for kind in ("mt5", "llama"):
        scorer = Scorer(folders[kind][1], threads=1)
        assert scorer.score("Passage: a", []).shape == (0,)
    reranker = Reranker(scorer)
    assert reranker.rerank_all([], []) == [] and reranker.rerank_all([QUESTION] * 2, [[], []]) == [[], []]
    assert reranker.counters()["questions"] == 0
    with pytest.raises(ValueError, match="1 questions, but hits for 0"):
        reranker.rerank_all([QUESTION], [])


def test_where_texts_part():
    draw = random.Random(1)
    for _ in range(200):
        texts = [draw.choices([1, 2], k=draw.randrange(6)) for _ in range(draw.randrange(1, 5))]
        slow = next(
            i for i in range(7) if len({tuple(text[: i + 1]) for text in texts}) > 1 or i >= min(map(len, texts))
        )
        assert branches.common_length(texts) == slow


def keep_call(calls, stage, done, total):
    calls.append((stage, done, total))


def test_progress_counts_hits_and_the_order_of_questions_is_kept():
    told = []
    queries, hits = varied_questions(5), shared_hits(5)
    found = Reranker(CountingScorer()).rerank_all(queries, hits, progress=partial(keep_call, told))
    assert found == [Reranker(CountingScorer()).rerank(*pair) for pair in zip(queries, hits, strict=True)]
    assert told[0] == ("ranking again", 0, 26) and told[-1] == ("ranking again", 26, 26)


def test_the_instruction_survives_a_passage_of_any_length(folders):
    tokenizer = Scorer(folders["llama"][1], threads=1).model.tokenizer
    for body in ("word " * 200_000, "ab", "\U0001f600" * 3000, "e\u0301" * 3000):
        ids, cut = fitted_ids(tokenizer, body, INSTRUCTION, room=100)
        assert len(ids) <= 100 and cut == (len(body) > 2)
        assert tokenizer.decode(ids).endswith(INSTRUCTION)
    with pytest.raises(ModelError, match="leaves no room for a passage in 20 tokens"):
        fitted_ids(tokenizer, "word " * 50, INSTRUCTION, room=20)


def test_a_chat_model_is_asked_through_its_template(folders):
    checkpoint, path = folders["llama"]
    scorer = Scorer(path, threads=1)
    scorer.chat = ["<u>", "</u><a>"]
    found = scorer.score("Passage: a b", ["How?"])[0]
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

    from xqg_vdb.models.folder import open_model_folder, write_manifest

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


def test_the_prompt_is_the_published_one():
    scorer = CountingScorer()
    Reranker(scorer).rerank(QUESTION, [Hit("a", 0.0, "the\n text", title="Nile"), Hit("b", 0.0, "text")])
    assert [passage for passage, _ in scorer.seen] == ["Passage: Nile the text", "Passage: text"]
    assert scorer.seen[0][1] == ["How long is the Nile?"]
    assert INSTRUCTION == ". Please write a question based on this passage."
    assert passage_text("Nile", "") == "Passage: Nile"


def test_interpolation_runs_from_the_first_stage_to_upr():
    scorer = CountingScorer()
    hits = [Hit("a", 9.0, "zzz"), Hit("b", 5.0, "How long is the Nile"), Hit("c", 1.0, "How")]
    order = {w: [hit.id for hit in Reranker(scorer, weight=w).rerank(QUESTION, hits)] for w in (0.0, 0.5, 1.0)}
    assert order[0.0] == ["a", "b", "c"] and order[1.0] == ["b", "c", "a"] and order[0.5][0] == "b"
    asked = ["How long is the Nile?"]
    likelihood = np.concatenate([scorer.score(passage_text(hit.title, hit.text), asked) for hit in hits])
    for weight, options in ((0.3, {"weight": 0.3}), (0.25, {})):  # a quarter unless told otherwise
        expected = weight * standardised(likelihood) + (1 - weight) * standardised(np.array([9.0, 5.0, 1.0]))
        found = {hit.id: hit.score for hit in Reranker(scorer, **options).rerank(QUESTION, hits)}
        assert [found["a"], found["b"], found["c"]] == pytest.approx(expected.tolist())
    assert standardised(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]
    same = Reranker(scorer).rerank(QUESTION, [Hit("b", 0.0, "x"), Hit("a", 0.0, "x")])
    assert [hit.id for hit in same] == ["a", "b"]


def test_wrong_uses_are_refused(tmp_path):
    for options in ({"depth": 0}, {"weight": 1.5}, {"weight": float("nan")}):
        with pytest.raises(ValueError, match="must"):
            Reranker(CountingScorer(), **options)
    with pytest.raises(DataError, match="Question 'q' is blank"):
        Reranker(CountingScorer()).rerank(Question("q", " \n"), HITS)
    assert Reranker(CountingScorer()).rerank(QUESTION, []) == []
    for spec in ("bm25:x", "upr", "upr:", ""):
        with pytest.raises(DataError, match="given as upr:MODEL"):
            reranker_spec(spec)
    from tiny_model import write_tiny_encoder

    with pytest.raises(ModelError, match="kind encoder: upr:MODEL wants a generator"):
        Reranker(write_tiny_encoder(tmp_path / "e"))


def test_search_ranks_again_and_says_what_it_took(folders, tmp_path):
    import json

    from cli_cases import run_cli, write_inputs, write_starter

    write_starter(tmp_path / "cache")
    write_inputs(tmp_path, 12)
    assert run_cli(tmp_path, "load", "corpus.jsonl", "wiki").returncode == 0
    ask = ["search", "wiki", "w1 w2 w3", "--question-lang", "sw", "--json"]
    plain = json.loads(run_cli(tmp_path, *ask, "-k", 6).stdout)[0]["hits"]
    done = run_cli(tmp_path, *ask, "-k", 3, "--rerank", f"upr:{folders['llama'][1]}", "--rerank-depth", 6)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    expected = Reranker(folders["llama"][1], threads=1).rerank(
        Question("0", "w1 w2 w3", "sw"),
        [Hit(hit["id"], hit["score"], hit["text"], title=hit["title"]) for hit in plain],
    )
    assert [hit["id"] for hit in record["hits"]] == [hit.id for hit in expected[:3]]
    assert [hit["score"] for hit in record["hits"]] == pytest.approx([hit.score for hit in expected[:3]], abs=1e-2)
    assert record["seconds"]["rerank"] >= 0
    assert "Ranked 6 passages again" in done.stderr and "(0 passages cut)" in done.stderr
    wrong = run_cli(tmp_path, *ask, "--rerank", "bm25")
    assert wrong.returncode == 3 and "given as upr:MODEL" in wrong.stderr and not wrong.stdout


@pytest.mark.parametrize(
    ("family", "activation"),
    [("bert", None), ("electra", None), ("xlm-roberta", "Identity"), ("modernbert", None)],
)
def test_a_cross_encoder_scores_as_sentence_transformers_does(tmp_path, family, activation):
    torch, library = pytest.importorskip("torch"), pytest.importorskip("sentence_transformers")
    from xqg_vdb import export
    from xqg_vdb.export.encoder import explain
    from xqg_vdb.models.folder import open_model_folder

    checkpoint = cross_checkpoint(tmp_path / "checkpoint", family, activation=activation)
    folder = export(f"cross:{checkpoint}", tmp_path / "out", say=lambda line: None)
    assert folder.kind == "cross-encoder" and folder.manifest["parity"]["difference_max"] <= 1e-4
    assert open_model_folder(tmp_path / "out").fingerprint == folder.fingerprint
    facts = explain(f"cross:{checkpoint}")["facts"]
    assert all(len(set(facts[name])) == 1 for name in ("activation", "max_length")), facts
    reranker, hits = Reranker(f"cross:{tmp_path / 'out'}", depth=20), [*HITS, LONG]
    assert reranker.weight == 1.0
    ranked = reranker.rerank(QUESTION, hits)
    original = library.CrossEncoder(str(checkpoint), device="cpu", local_files_only=True)
    question = " ".join(QUESTION.text.split())
    with torch.inference_mode():
        wanted = original.predict([(question, " ".join(f"{hit.title} {hit.text}".split())) for hit in hits])
    theirs = dict(zip([hit.id for hit in hits], wanted.tolist(), strict=True))
    assert theirs and max(abs(hit.score - theirs[hit.id]) for hit in ranked) < 1e-4
    assert [hit.id for hit in ranked] == sorted(theirs, key=lambda docid: (-theirs[docid], docid))
    assert reranker.counters()["passages_cut"] == 1
    together = reranker.rerank_all([QUESTION, Question("r", "rivers", "en")], [hits, hits])
    assert max(abs(one.score - other.score) for one, other in zip(together[0], ranked, strict=True)) < 1e-5


def cross_checkpoint(folder, family, *, activation=None, labels=1):
    """A minute random classifier of pairs, whose tokens are characters."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = [chr(c) for c in range(33, 127)]
    marks = ["<pad>", "<s>", "</s>", "<unk>"] if family == "xlm-roberta" else ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    pad, start, end, unknown = marks
    core = Tokenizer(models.WordLevel({mark: i for i, mark in enumerate([*marks, *letters])}, unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")])
    segment = "" if family == "xlm-roberta" else ":1"
    core.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", pair=f"{start} $A {end} $B{segment} {end}{segment}",
        special_tokens=[(start, 1), (end, 2)],
    )  # fmt: skip
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if family == "bert" else [])]  # none: zeros for both
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, unk_token=unknown, cls_token=start, sep_token=end, model_max_length=120,
        model_input_names=inputs,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    sizes = {"vocab_size": 98, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 130, "num_labels": labels, "pad_token_id": 0}
    if family != "modernbert":
        sizes["type_vocab_size"] = 1 if family == "xlm-roberta" else 2
    config = transformers.AutoConfig.for_model(family, initializer_range=0.4, **sizes)
    if activation is not None:
        config.sentence_transformers = {"activation_fn": f"torch.nn.modules.linear.{activation}"}
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def test_what_is_no_cross_encoder_is_refused_by_name(tmp_path, folders):
    from xqg_vdb.export.encoder import export

    several = cross_checkpoint(tmp_path / "several", "bert", labels=3)
    with pytest.raises(ModelError, match="with 3 labels; a cross-encoder is"):
        export(f"cross:{several}", tmp_path / "out")
    with pytest.raises(ModelError, match="cross:MODEL a cross-encoder"):
        Scorer(f"cross:{folders['llama'][1]}")
    with pytest.raises(ModelError, match="There is no model"):
        Scorer(f"cross:{tmp_path / 'nothing'}")
    with pytest.raises(DataError, match="upr:MODEL or cross:MODEL"):
        reranker_spec("colbert:x")
    assert (reranker_spec("cross:m"), reranker_spec("upr:m")) == ("cross:m", "m")
