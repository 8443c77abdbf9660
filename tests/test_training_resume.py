"""A training run that is killed and started again ends with the losses and weights of an unbroken one."""

import os
import signal
import subprocess
import sys

import killing
import orjson
import processes
import pytest
from click.testing import CliRunner
from generation_cases import tiny_checkpoint
from training_cases import tiny_bert, twenty_pairs, write_pairs

from xqg_vdb.cli.commands import cli

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

STEPS = 40


def checkpoint_of(kind, folder):
    return tiny_bert(folder, dropout=0.1) if kind == "encoder" else tiny_checkpoint("llama", folder)


def command(kind, checkpoint, out, pairs):
    more = ["--mine", "2", "--negatives", "1", "--micro-batch", "4"] if kind == "encoder" else ["--micro-batch", "2"]
    return [
        "train", kind, str(checkpoint), str(out), "--pairs", str(pairs), "--dev", str(pairs), "--max-steps", str(STEPS),
        "--batch-size", "6", "--learning-rate", "1e-3", "--save-minutes", "0", "--threads", "1", "--dev-limit", "2",
        *more,
    ]  # fmt: skip


def kill_in_the_middle(arguments):
    """Start the command in a process of its own, which is killed as it begins to write its fifth checkpoint."""
    code = f"{killing.ARM}; from xqg_vdb.cli import main; sys.argv[0] = 'xqg-vdb'; main()"
    env = {**os.environ, **killing.at("os.mkdir */run/*checkpoint-5* 1")}
    process = processes.start([sys.executable, "-c", code, *arguments], env=env, stderr=subprocess.PIPE)
    said = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, said.decode()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["encoder", "generator"])
def test_a_killed_run_ends_as_an_unbroken_one(kind, tmp_path):
    checkpoint, pairs = (
        checkpoint_of(kind, tmp_path / "checkpoint"),
        write_pairs(tmp_path / "pairs.jsonl", twenty_pairs()),
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    kill_in_the_middle(command(kind, checkpoint, broken, pairs))
    steps = [int(p.name.rsplit("-", 1)[1]) for p in (broken / "run").glob("checkpoint-*")]
    half = broken / "run" / f"checkpoint-{max(steps) + 1}"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_step"')  # what a kill in the middle of writing leaves
    for out in (whole, broken):
        done = CliRunner().invoke(cli, command(kind, checkpoint, out, pairs))
        assert done.exit_code == 0, done.output
    one, other = (orjson.loads((out / "training.json").read_bytes()) for out in (whole, broken))
    assert other["results"]["resumed_at"] == 4 and one["results"]["resumed_at"] == 0
    losses = [[entry["loss"] for entry in record["history"] if "loss" in entry] for record in (one, other)]
    assert len(losses[0]) == STEPS and losses[0] == losses[1]
    for key in ("final_loss", "dev_before", "dev_after"):
        assert one["results"][key] == other["results"][key]
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    assert {p.name for p in whole.iterdir()} == {p.name for p in broken.iterdir()}
    again = CliRunner().invoke(cli, command(kind, checkpoint, whole, pairs))
    assert again.exit_code == 0 and again.output.splitlines()[-1] == done.output.splitlines()[-1]
    other = CliRunner().invoke(cli, [*command(kind, checkpoint, whole, pairs), "--seed", "1"])
    assert other.exit_code != 0 and "already holds something" in str(other.exception)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", ["os.rename */out/config.json 1", "shutil.rmtree */out/run 1"])
def test_a_run_that_is_killed_at_its_end_is_done_by_the_same_command(point, tmp_path):
    checkpoint, pairs = checkpoint_of("encoder", tmp_path / "c"), write_pairs(tmp_path / "p.jsonl", twenty_pairs())
    words = [*command("encoder", checkpoint, tmp_path / "out", pairs), "--max-steps", "2"]
    code = f"{killing.ARM}; from xqg_vdb.cli import main; sys.argv[0] = 'xqg-vdb'; main()"
    process = processes.start([sys.executable, "-c", code, *words], env={**os.environ, **killing.at(point)})
    assert process.wait() in (0, -signal.SIGKILL)
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0 and not (tmp_path / "out" / "run").exists(), done.output
    assert (tmp_path / "out" / "config.json").exists()
