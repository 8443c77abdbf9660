"""Encoder training: loss and gradient cache against slow ones, mining, overfitting, and the way into `export`."""

from dataclasses import replace

import numpy as np
import orjson
import pytest
from tiny_model import write_tiny_encoder
from training_cases import tiny_bert, twenty_pairs

from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.export.encoder import Overrides, export
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.models.folder import EncoderSpec
from xqg_vdb.train.encoder import XQG_PRESET, EncoderSettings, mine_negatives, pair_batch, train_encoder
from xqg_vdb.train.pairs import TrainingPair, content_key, hybrid, read_pairs
from xqg_vdb.train.run import Job, Schedule
from xqg_vdb.types import Passage

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")


def silent(line):
    pass


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("checkpoints") / "bert")


@pytest.fixture(scope="module")
def bert_with_dropout(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("checkpoints") / "bert", dropout=0.3)


def batch_of(folder, pairs, *, negatives=0, ignore_copies=True):
    from transformers import AutoTokenizer

    spec = EncoderSpec(32, "mean", normalize=True, query_prefix="q: ", passage_prefix="p: ")
    settings = EncoderSettings(query_tokens=32, passage_tokens=64, negatives=negatives, ignore_copies=ignore_copies)
    return pair_batch(pairs, tokenizer=AutoTokenizer.from_pretrained(folder), spec=spec, settings=settings)


def test_a_passage_in_another_language_is_no_negative(bert):
    pairs = hybrid(
        replace(pair, id=pair.id[0], positive=replace(pair.positive, title=pair.lang)) for pair in twenty_pairs()[:6]
    )
    same = batch_of(bert, pairs)["same"]
    for i, pair in enumerate(pairs):
        for j, other in enumerate(pairs):
            assert bool(same[i, j]) == (i != j and content_key(other.positive) in pair.copies)
    assert not batch_of(bert, pairs, ignore_copies=False)["same"].any()


@pytest.mark.parametrize(("pooling", "normalize", "temperature"), [("mean", True, 0.05), ("cls", False, 1.0)])
def test_the_loss_is_the_slow_obvious_one(bert, pooling, normalize, temperature):
    """One text at a time, no padding, a Python sum; the pairs share passages, so copies must be left out."""
    from transformers import AutoModel

    from xqg_vdb.train.trainer import contrastive_loss, embed

    model, pairs = AutoModel.from_pretrained(bert).eval(), twenty_pairs()[:6]
    batch, spec = batch_of(bert, pairs), EncoderSpec(32, pooling, normalize=normalize)
    fast = contrastive_loss(
        embed(model, batch["queries"], spec), embed(model, batch["passages"], spec),
        targets=batch["targets"], same=batch["same"], temperature=temperature,
    )  # fmt: skip

    def row(tokens, i):
        ids = tokens["input_ids"][i][tokens["attention_mask"][i].bool()]
        hidden = model(ids[None]).last_hidden_state[0]
        vector = hidden[0] if pooling == "cls" else hidden.mean(0)
        return vector / vector.norm() if normalize else vector

    losses = []
    for i, pair in enumerate(pairs):
        scores = {}
        for j, other in enumerate(pairs):
            if j == i or content_key(other.positive) != content_key(pair.positive):
                scores[j] = row(batch["queries"], i) @ row(batch["passages"], j) / temperature
        losses.append(-torch.log(scores[i].exp() / sum(score.exp() for score in scores.values())))
    torch.testing.assert_close(fast, sum(losses) / len(losses), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_cached_gradients_are_those_of_the_whole_batch(bert, chunk):
    from transformers import AutoModel

    from xqg_vdb.train.trainer import contrastive_loss, embed, embed_in_chunks

    model = AutoModel.from_pretrained(bert).double().eval()
    batch, spec = batch_of(bert, twenty_pairs()), EncoderSpec(32, "mean", normalize=True)
    where = {"targets": batch["targets"], "same": batch["same"]}
    plain = contrastive_loss(
        embed(model, batch["queries"], spec), embed(model, batch["passages"], spec), **where, temperature=0.05
    )
    plain.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    rows = (embed_in_chunks(model, batch[side], spec, chunk=chunk) for side in ("queries", "passages"))
    cached = contrastive_loss(*rows, **where, temperature=0.05)
    (cached / 4).backward()  # as gradient accumulation and loss scaling do; a power of two loses no bit
    torch.testing.assert_close(cached.detach(), plain.detach(), atol=1e-6, rtol=0)
    assert len(wanted) > 20
    for name, parameter in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad * 4, wanted[name], atol=1e-6, rtol=0)


def test_both_passes_of_the_cache_draw_the_same_dropout(bert_with_dropout):
    """The cached gradient of one chunk is the plain gradient, if and only if dropout repeats itself."""
    from transformers import AutoModel

    from xqg_vdb.train.trainer import contrastive_loss, embed, embed_in_chunks

    model = AutoModel.from_pretrained(bert_with_dropout).train()
    batch, spec = batch_of(bert_with_dropout, twenty_pairs()), EncoderSpec(32, "cls", normalize=False)
    where = {"targets": batch["targets"], "same": batch["same"]}
    torch.manual_seed(5)
    queries = embed(model, batch["queries"], spec)
    contrastive_loss(queries, embed(model, batch["passages"], spec), **where, temperature=1.0).backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.manual_seed(5)
    rows = (embed_in_chunks(model, batch[side], spec, chunk=100) for side in ("queries", "passages"))
    contrastive_loss(*rows, **where, temperature=1.0).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_copies_of_the_positive_are_left_out_only_where_asked(bert):
    pairs = twenty_pairs()[:4]  # two passages, each the positive of two questions
    found = batch_of(bert, pairs)["same"].int().tolist()
    assert found == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    assert not batch_of(bert, pairs, ignore_copies=False)["same"].any()


def test_negatives_follow_from_the_batch_alone(bert):
    others = [Passage(f"n{i}", f"other {i}") for i in range(6)]
    pairs = [replace(pair, negatives=tuple(others[: 6 * (i % 2)])) for i, pair in enumerate(twenty_pairs()[:4])]
    one, again = (batch_of(bert, pairs, negatives=3) for _ in range(2))
    assert one["targets"].tolist() == [0, 1, 5, 6] and len(one["passages"]["input_ids"]) == 10
    assert torch.equal(one["passages"]["input_ids"], again["passages"]["input_ids"])
    rows = {
        tuple(batch_of(bert, pairs[1:2] + pairs[k:], negatives=3)["passages"]["input_ids"][1].tolist())
        for k in range(1, 4)
    }
    assert len(rows) > 1, "the same negatives whatever else is in the batch"


def test_mined_negatives_are_the_nearest_passages_that_do_not_answer(tmp_path):
    passages = [Passage(f"p{i}", f"w{i} w{i + 1}") for i in range(12)]
    pairs = [TrainingPair(f"q{i}", f"w{i}", "sw", passages[i]) for i in range(8)]
    pairs += [
        TrainingPair("again", "w0", "sw", passages[11]),
        TrainingPair("x", "w9", "sw", passages[9], (passages[10],)),
    ]
    with Encoder(write_tiny_encoder(tmp_path / "model"), calibration=0.0) as encoder:
        pool = list({content_key(p): p for pair in pairs for p in (pair.positive, *pair.negatives)}.values())
        rows = encoder.encode_passages([p.text for p in pool])
        asked = encoder.encode_queries([pair.query for pair in pairs], calibrate=False)
        mined = mine_negatives(pairs, lambda _: (asked, rows), count=3, skip=1)
        for pair, before in zip(mined, pairs, strict=True):
            good = {p.positive.id for p in pairs if p.query == pair.query} | {p.id for p in before.negatives}
            scores = dict(
                zip((p.id for p in pool), rows @ encoder.encode_queries([pair.query], calibrate=False)[0], strict=True)
            )
            left = sorted((score for docid, score in scores.items() if docid not in good), reverse=True)
            old = len(before.negatives)
            found = [p.id for p in pair.negatives[old:]]
            assert pair.negatives[:old] == before.negatives and not good & set(found)
            assert [scores[docid] for docid in found] == pytest.approx(left[1:4], rel=0, abs=1e-5)


def test_a_tiny_encoder_overfits_and_its_export_passes_the_gate(bert, tmp_path):
    pairs, lines = twenty_pairs(), []
    settings = EncoderSettings(
        schedule=Schedule(max_steps=60, batch_size=20, micro_batch=8, learning_rate=3e-3, warmup=0.0, eval_every=30),
        mine=2, negatives=1, overrides=Overrides(query_prefix="q: ", passage_prefix="p: ", max_length=100),
    )  # fmt: skip
    job = Job(str(bert), tmp_path / "out", settings, pairs=pairs, dev=pairs, say=lines.append)
    outcome = train_encoder(job)
    assert outcome.losses[-1] < 0.1 < 1 < outcome.losses[0]
    assert outcome.before["MRR@10"] < 0.8 and outcome.after["MRR@10"] > 0.95 and outcome.after["R@10"] == 1.0
    assert any(line.startswith("step 30 of 60, dev: R@10") for line in lines), lines
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| MRR@10 |" in card and "20 pairs about 10 passages (de 10, sw 10)" in card and str(bert) in card
    folder = export(str(tmp_path / "out"), tmp_path / "model", precision="fp32", say=silent)
    assert folder.manifest["conventions_from"] == "sentence-transformers files"
    assert folder.manifest["parity"]["cosine_min"] > 0.9999
    assert (folder.spec.query_prefix, folder.spec.max_length, folder.spec.pooling) == ("q: ", 100, "mean")
    with Encoder(folder.path, calibration=0.0) as encoder:
        scores = (
            encoder.encode_queries([p.query for p in pairs], calibrate=False)
            @ encoder.encode_passages([p.positive.title_and_text for p in pairs[::2]]).T
        )
    assert (scores.argmax(axis=1) == np.arange(20) // 2).mean() >= 0.9


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_alignment_closes_a_gap_that_was_made(bert, tmp_path, micro_batch):
    """A language that is English in other letters: its questions find nothing, then what their translations find."""
    cipher = str.maketrans("abcdefghijklmnopqrstuvwxyz", "бцдефгхийклмнопярстувщюызш")
    sentences = [f"{subject} {verb} {number}" for number, (subject, verb) in enumerate(
        (subject, verb) for subject in ("the cat", "a dog", "my hen", "our cow") for verb in ("eats", "is", "has")
    )]  # fmt: skip
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{text.translate(cipher)}\t{text}\tbg\n" for text in sentences), "utf-8")
    pairs, lines = read_pairs(str(path), split="train"), []
    settings = EncoderSettings(
        schedule=Schedule(max_steps=60, batch_size=12, micro_batch=micro_batch, learning_rate=3e-3, warmup=0.0),
        align=True, overrides=Overrides(query_prefix="q: ", passage_prefix="p: ", max_length=100),
    )  # fmt: skip
    out = tmp_path / "out"
    outcome = train_encoder(Job(str(bert), out, settings, pairs=pairs, dev=pairs, say=lines.append))
    assert outcome.losses[-1] < 0.6 * outcome.losses[0]
    assert outcome.before["MRR@10"] < 0.8 and outcome.after["MRR@10"] > 0.95, (outcome.before, outcome.after)
    before, after = (
        export(str(folder), tmp_path / name, precision="fp32", overrides=settings.overrides, say=silent)
        for folder, name in ((bert, "before"), (out, "after"))
    )
    with Encoder(before.path, calibration=0.0) as old, Encoder(after.path, calibration=0.0) as new:
        stayed = (old.encode_queries(sentences) * new.encode_queries(sentences)).sum(axis=1)
        moved = (old.encode_queries(sentences) * new.encode_queries([pair.query for pair in pairs])).sum(axis=1)
    assert stayed.min() > 0.9, "English stays"
    assert moved.min() > 0.9, "the other language comes to it"


def test_the_alignment_loss_is_the_slow_obvious_one():
    from xqg_vdb.train.trainer import alignment_loss

    rng = np.random.default_rng(5)
    rows, goals = (rng.normal(size=(5, 7)).astype(np.float32) for _ in range(2))
    goals[3] = goals[1]
    same = np.zeros((5, 5), bool)
    same[1, 3] = same[3, 1] = True
    total = 0.0
    for i, row in enumerate(rows):
        scores = [row @ goal / 0.5 for j, goal in enumerate(goals) if not same[i, j]]
        total += ((row - goals[i]) ** 2).sum() / (2 * 0.5) - row @ goals[i] / 0.5 + np.log(np.exp(scores).sum())
    fast = alignment_loss(*map(torch.from_numpy, (rows, goals)), same=torch.from_numpy(same), temperature=0.5)
    assert float(fast) == pytest.approx(total / 5 / 2, rel=1e-5)


def test_alignment_says_what_it_needs(bert, tmp_path):
    pairs = twenty_pairs()
    with pytest.raises(DataError, match=r"1 of 20 pairs have no translation, the first is '0-sw': --align takes \.tsv"):
        bare = [replace(pairs[0], translation=""), *pairs[1:]]
        train_encoder(Job(str(bert), tmp_path / "a", EncoderSettings(align=True), pairs=bare, say=silent))
    with pytest.raises(DataError, match="no hard negatives: leave --mine"):
        settings = EncoderSettings(align=True, mine=2)
        train_encoder(Job(str(bert), tmp_path / "a", settings, pairs=pairs, say=silent))
    assert not (tmp_path / "a").exists()


def test_the_papers_preset(bert, tmp_path):
    assert (XQG_PRESET.schedule.batch_size, XQG_PRESET.negatives, XQG_PRESET.schedule.epochs) == (128, 7, 40)
    assert (XQG_PRESET.query_tokens, XQG_PRESET.passage_tokens, XQG_PRESET.temperature) == (32, 128, 1.0)
    short = replace(XQG_PRESET, schedule=Schedule(max_steps=2, batch_size=8))
    train_encoder(Job(str(bert), tmp_path / "out", short, pairs=twenty_pairs(), say=silent))
    pooling = orjson.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_bytes())
    assert pooling["pooling_mode_cls_token"] and not pooling["pooling_mode_mean_tokens"]
    modules = orjson.loads((tmp_path / "out" / "modules.json").read_bytes())
    assert [module["type"].rsplit(".", 1)[-1] for module in modules] == ["Transformer", "Pooling"]


def test_what_cannot_be_trained_is_refused(bert, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="two training pairs"):
        train_encoder(Job(str(bert), tmp_path / "out", EncoderSettings(), pairs=twenty_pairs()[:1], say=silent))
    with pytest.raises(ModelError, match="no checkpoint"):
        train_encoder(
            Job(str(tmp_path / "nothing"), tmp_path / "a", EncoderSettings(), pairs=twenty_pairs(), say=silent)
        )
    for pooling in ("last", "max"):
        settings = EncoderSettings(overrides=Overrides(pooling=pooling))
        with pytest.raises(ModelError, match="does not pool by cls or mean"):
            train_encoder(Job(str(bert), tmp_path / pooling, settings, pairs=twenty_pairs(), say=silent))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ModelError, match="without torchrun"):
        train_encoder(Job(str(bert), tmp_path / "b", EncoderSettings(), pairs=twenty_pairs(), say=silent))
