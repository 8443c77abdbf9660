"""Generator training: the loss against a slow one, overfitting, going on after a kill, and the way into `export`."""

import os
import signal
import subprocess
import sys
import time

import orjson
import pytest
from generation_cases import tiny_checkpoint
from training_cases import twenty_pairs, write_pairs

from xqg_vdb.errors import DataError, LockedError, MismatchError, ModelError
from xqg_vdb.generation.export import export_generator
from xqg_vdb.generation.opening import Options, open_generator
from xqg_vdb.generation.sampling import Decoding
from xqg_vdb.training.base import Base
from xqg_vdb.training.generator import GeneratorSettings, train_generator
from xqg_vdb.training.question_trees import Branch, Tree, TreeCollator
from xqg_vdb.training.running import hold, open_run
from xqg_vdb.training.schedule import Schedule

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")


def silent(line):
    pass


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: tiny_checkpoint(kind, folder / kind) for kind in ("gemma", "llama", "mt5")}


def settings(steps, **more):
    schedule = {"batch_size": 10, "learning_rate": 3e-3, "warmup": 0.0, "max_steps": steps} | more.pop("schedule", {})
    return GeneratorSettings(schedule=Schedule(**schedule), **more)


TREES = [
    Tree(tuple(range(10, 40)), (Branch((5, 6), (7, 8, 9)), Branch((10,), (11, 9)))),
    Tree((12, 13), (Branch((14,), (15, 16, 9)),)),
]


@pytest.mark.parametrize("kind", ["gemma", "llama"])
def test_the_loss_of_a_row_of_trees_is_that_of_its_questions_one_by_one(checkpoints, kind):
    """The slow, obvious way: each question after its passage, alone, in one causal sequence; windows included."""
    from transformers import AutoModelForCausalLM

    from xqg_vdb.training.trainers import question_loss

    model = AutoModelForCausalLM.from_pretrained(checkpoints[kind], attn_implementation="sdpa").eval()
    batch = TreeCollator.of(model.config)(TREES)
    assert (kind == "gemma") == isinstance(batch["attention_mask"], dict)
    labels = batch.pop("labels")
    fast = question_loss(model(**batch, use_cache=False), labels)
    total, count = 0.0, 0
    for tree in TREES:
        for branch in tree.branches:
            ids = [*tree.shared, *branch.ending, *branch.target]
            table = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
            first = len(ids) - len(branch.target)
            for i, token in enumerate(branch.target):
                total, count = total - table[first + i - 1, token], count + 1
    assert labels.tolist() == [[7, 8, 9, 11, 9, 15, 16, 9]]
    torch.testing.assert_close(fast, total / count, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gemma", "mt5"])
def test_a_tiny_generator_overfits_and_its_export_writes_the_questions(checkpoints, kind, tmp_path):
    pairs, out = twenty_pairs(), tmp_path / "out"
    began = time.monotonic()
    outcome = train_generator(
        Base(str(checkpoints[kind])), out, pairs=pairs, dev=pairs[:4], settings=settings(150), report=silent
    )
    assert time.monotonic() - began < 60
    assert outcome.steps == 150 and outcome.losses[0] > 2 and outcome.losses[-1] < 0.1
    assert outcome.after["loss"] < 0.1 < outcome.before["loss"]
    assert not (out / "run").exists() and orjson.loads((out / "training.json").read_bytes())["results"]["steps"] == 150
    folder = export_generator(str(out), tmp_path / "model", precision="int8", report=silent)
    generator = open_generator(folder.path, langs=["sw", "de"], options=Options(decoding=Decoding("greedy", threads=1)))
    written = list(generator.generate([pair.positive for pair in pairs[::2]], langs=["sw", "de"], n=1))
    right = sum(
        record.queries[pair.lang][0] == pair.query
        for i, record in enumerate(written) for pair in pairs[2 * i : 2 * i + 2]
    )  # fmt: skip
    assert right >= 18, [record.queries for record in written]
