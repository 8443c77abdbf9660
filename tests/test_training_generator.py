"""Generator training: the loss against a slow one, overfitting, going on after a kill, and the way into `export`."""

import orjson
import pytest
from generation_cases import tiny_checkpoint
from training_cases import twenty_pairs

from xqg_vdb.errors import DataError, LockedError, MismatchError, MissingExtra, ModelError
from xqg_vdb.export.encoder import export
from xqg_vdb.files import lock_folder
from xqg_vdb.generate.local import open_generator
from xqg_vdb.models.decoder import Decoding
from xqg_vdb.train.generator import GeneratorSettings, _Tree, train_generator, tree_collator
from xqg_vdb.train.run import Job, Schedule, open_run

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")


def silent(line):
    pass


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {kind: tiny_checkpoint(kind, folder / kind) for kind in ("gemma", "llama", "mt5")}
    config = orjson.loads((found["mt5"] / "config.json").read_bytes())
    (found["mt5"] / "config.json").write_bytes(orjson.dumps({**config, "dropout_rate": 0.0}))  # learns faster without
    return found


def settings(steps, **more):
    schedule = {"batch_size": 10, "learning_rate": 3e-3, "warmup": 0.0, "max_steps": steps} | more.pop("schedule", {})
    return GeneratorSettings(schedule=Schedule(**schedule), **more)


TREES = [
    _Tree(tuple(range(10, 40)), (((5, 6), (7, 8, 9)), ((10,), (11, 9)))),
    _Tree((12, 13), (((14,), (15, 16, 9)),)),
]


@pytest.mark.parametrize("kind", ["gemma", "llama"])
def test_the_loss_of_a_row_of_trees_is_that_of_its_questions_one_by_one(checkpoints, kind):
    """The slow, obvious way: each question after its passage, alone, in one causal sequence; windows included."""
    from transformers import AutoModelForCausalLM

    from xqg_vdb.train.trainer import question_loss

    model = AutoModelForCausalLM.from_pretrained(checkpoints[kind], attn_implementation="sdpa").eval()
    batch = tree_collator(model.config)(TREES)
    assert (kind == "gemma") == isinstance(batch["attention_mask"], dict)
    labels = batch.pop("labels")
    fast = question_loss(model(**batch, use_cache=False), labels)
    total, count = 0.0, 0
    for tree in TREES:
        for named, target in tree.branches:
            ids = [*tree.shared, *named, *target]
            table = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
            first = len(ids) - len(target)
            for i, token in enumerate(target):
                total, count = total - table[first + i - 1, token], count + 1
    assert labels.tolist() == [[7, 8, 9, 11, 9, 15, 16, 9]]
    torch.testing.assert_close(fast, total / count, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "steps"), [("gemma", 60), ("mt5", 150)])
def test_a_tiny_generator_overfits_and_its_export_writes_the_questions(checkpoints, kind, steps, tmp_path):
    pairs, out = twenty_pairs(), tmp_path / "out"
    job = Job(str(checkpoints[kind]), out, settings(steps), pairs=pairs, dev=pairs[:4], say=silent)
    outcome = train_generator(job)
    assert outcome.steps == steps and outcome.losses[0] > 2 and outcome.losses[-1] < 0.1
    assert outcome.after["loss"] < 0.1 < outcome.before["loss"]
    assert (
        not (out / "run").exists() and orjson.loads((out / "training.json").read_bytes())["results"]["steps"] == steps
    )
    folder = export(str(out), tmp_path / "model", generator=True, say=silent)
    generator = open_generator(folder.path, query_langs=["sw", "de"], decoding=Decoding("greedy"), threads=1)
    written = list(generator.generate([pair.positive for pair in pairs[::2]], query_langs=["sw", "de"], n=1))
    right = sum(
        record.queries[pair.lang][0] == pair.query
        for i, record in enumerate(written) for pair in pairs[2 * i : 2 * i + 2]
    )  # fmt: skip
    assert right >= 18, [record.queries for record in written]


def test_frozen_embeddings_leave_the_table_as_it_is(checkpoints, tmp_path):
    from safetensors.torch import load_file

    before = load_file(checkpoints["llama"] / "model.safetensors")
    for name, more in {"frozen": {"freeze_embeddings": True}, "all": {}}.items():
        out = tmp_path / name
        lines = []
        pairs = twenty_pairs()[:4]
        train_generator(Job(str(checkpoints["llama"]), out, settings(3, **more), pairs=pairs, say=lines.append))
        after = load_file(out / "model.safetensors")
        assert set(after) == set(before), name
        same = {key for key in before if torch.equal(before[key], after[key])}
        assert ("model.embed_tokens.weight" in same) == (name != "all")
        assert "model.layers.0.mlp.up_proj.weight" not in same, name
        assert orjson.loads((out / "config.json").read_bytes())["xqg_vdb_finetuned"] == {"max_passage_tokens": 160}


def test_micro_batches_give_the_step_of_the_whole_batch(checkpoints, tmp_path):
    """Questions have unequal lengths, so a mean of means would differ."""
    losses = {}
    for micro in (None, 1):
        schedule = {"micro_batch": micro, "batch_size": 5}
        how, pairs = settings(4, schedule=schedule), twenty_pairs()
        outcome = train_generator(Job(str(checkpoints["llama"]), tmp_path / str(micro), how, pairs=pairs, say=silent))
        losses[micro] = outcome.losses
    assert losses[1] == pytest.approx(losses[None], rel=1e-3) and len(losses[1]) == 4


def test_a_long_passage_is_cut_and_its_questions_are_not(checkpoints):
    from xqg_vdb.generate.prompts import finetuned
    from xqg_vdb.train.generator import question_trees
    from xqg_vdb.train.pairs import TrainingPair
    from xqg_vdb.types import Passage

    pair = TrainingPair("q", "Who?", "sw", Passage("p", "x" * 500, "T"))
    prompt = finetuned(max_passage_tokens=20)
    (tree,) = question_trees(
        [pair] * 2, encode=lambda text: [ord(c) for c in text], prompt=prompt, bos=3, eos=1, max_question_tokens=48
    )
    assert "".join(map(chr, tree.shared[1:])) == "Passage: T. xxxxxxxx\n" and tree.shared[0] == 3
    assert "".join(map(chr, tree.branches[0][0])) == "Question in Swahili:"
    assert tree.branches[1][1] == (*map(ord, " Who?"), 1)


def test_runs_are_held_apart(checkpoints, tmp_path):
    base = str(checkpoints["llama"])
    with pytest.raises(DataError, match="no training pair"):
        train_generator(Job(base, tmp_path / "a", settings(1), pairs=[], say=silent))
    run = open_run(tmp_path / "b", {"base": "one", "pairs": 3})
    assert open_run(tmp_path / "b", {"base": "one", "pairs": 3}) == run
    with pytest.raises(MismatchError, match="another base, pairs: repeat that run's command"):
        open_run(tmp_path / "b", {"base": "two", "pairs": 4})
    with lock_folder(run), pytest.raises(LockedError, match="is used by process"):
        lock_folder(run)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="already holds something"):
        open_run(tmp_path / "c", {})
    with pytest.raises(DataError, match="no multiple"):
        how = settings(2, schedule={"batch_size": 5, "micro_batch": 2})
        train_generator(Job(base, tmp_path / "d", how, pairs=twenty_pairs(), say=silent))
    # without the packages of the extra that is asked for first
    with pytest.raises((ModelError, MissingExtra), match=r"--accept-license|starter-generator"):
        train_generator(Job("starter:generator", tmp_path / "e", settings(1), pairs=twenty_pairs(), say=silent))
