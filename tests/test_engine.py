"""onnxruntime as we open it: it tells nobody anything, and an encoder survives a fork."""

import os
import signal
import subprocess
import sys

import pytest
from tiny_model import write_tiny_encoder

from xqg_vdb.errors import ModelError
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.models.engine import open_session

WORK = """
import sys, time
from pathlib import Path
from xqg_vdb.models.encoder import Encoder
with Encoder(Path(sys.argv[1])) as encoder:
    encoder.encode_passages(["w1 w2", "w3"])
    time.sleep(3)  # its first events are written by then
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine") / "model"
    write_tiny_encoder(folder)
    return folder


def files_after(home, model, code=WORK):
    """What lies in the home of a process that encoded."""
    env = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    env |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "XDG_DATA_HOME": str(home / "data")}
    subprocess.run([sys.executable, "-c", code, str(model)], env=env, check=True)
    return [path for path in home.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]


def test_the_engine_keeps_no_device_id_and_no_events(tmp_path, model):
    assert files_after(tmp_path, model) == []


def test_a_provider_that_is_not_here_is_named(model):
    with pytest.raises(ModelError, match=r"no TpuExecutionProvider here; available: .*CPUExecutionProvider"):
        open_session(model / "model.onnx", threads=1, provider="TpuExecutionProvider")


def test_a_file_that_is_no_graph_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"cannot load .*model\.onnx"):
        open_session(tmp_path / "model.onnx", threads=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_encoder_that_was_used_before_a_fork_encodes_after_it(model, monkeypatch):
    """As gunicorn's preload, Celery and multiprocessing do; the parent has used its threads."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    texts = [f"w{i % 60} " * (1 + i % 7) for i in range(200)]
    with Encoder(model, threads=2, batch_tokens=64) as encoder:
        expected = encoder.encode_passages(texts)
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a child that hangs ends, and says so by its signal
            same = (encoder.encode_passages(texts) == expected).all()
            os._exit(0 if same else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert (encoder.encode_passages(texts) == expected).all()
