"""onnxruntime as we open it: it tells nobody anything, and an encoder survives a fork."""

import json
import os
import pickle
import signal
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from tiny_model import write_tiny_encoder

from xqg_vdb.errors import MissingExtra, ModelError
from xqg_vdb.models import encoder as encoders
from xqg_vdb.models import engine
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.models.engine import engines, open_session, runtime
from xqg_vdb.models.folder import MANIFEST, write_manifest

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


def test_nor_where_the_client_of_a_server_imports_it_first(tmp_path, model):
    code = "from xqg_vdb.store import open_store\nopen_store('http://127.0.0.1:9').close()\n" + WORK
    assert files_after(tmp_path, model, code) == []


def test_a_provider_that_is_not_here_is_named(model):
    with pytest.raises(ModelError, match=r"no TpuExecutionProvider here; available: .*CPUExecutionProvider"):
        open_session(model / "model.onnx", threads=1, provider="TpuExecutionProvider")


def test_a_file_that_is_no_graph_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"cannot load .*model\.onnx"):
        open_session(tmp_path / "model.onnx", threads=1)


def test_a_graph_for_which_there_is_no_memory_need_not_be_made_again(model, monkeypatch):
    def short(*arguments, **options):
        raise Exception("Load model from model.onnx failed:std::bad_alloc")

    monkeypatch.setattr(runtime(), "InferenceSession", short)
    with pytest.raises(ModelError, match=r"std::bad_alloc; free some memory, or export the model again\.$"):
        open_session(model / "model.onnx", threads=1)


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


# Engines.

OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed (extra openvino)")
TEXTS = [f"w{i % 40} " * (1 + i % 7) for i in range(90)]


@OPENVINO
@pytest.mark.parametrize(("name", "differs"), [("openvino", 1e-6), ("openvino-bf16", 0.02)])
def test_openvino_gives_the_rows_of_onnxruntime(model, name, differs):
    if name not in engines():
        pytest.skip("this CPU computes nothing in bf16")
    with Encoder(model, threads=2) as ours, Encoder(model, engine=name, threads=2, batch_tokens=64) as theirs:
        rows = theirs.encode_passages(TEXTS)
        np.testing.assert_allclose(rows, ours.encode_passages(TEXTS), atol=differs)
        np.testing.assert_array_equal(theirs.encode_passages(TEXTS[::-1])[::-1], rows)  # whatever the batch
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(theirs)).encode_passages(TEXTS), rows)
        assert theirs.facts == ours.facts


@OPENVINO
@pytest.mark.parametrize("name", ["openvino", "openvino-bf16"])
def test_openvino_gives_the_8_bit_rows_of_onnxruntime(tmp_path, name):
    if name not in engines():
        pytest.skip("this CPU computes nothing in bf16")
    onnx = pytest.importorskip("onnx")
    from xqg_vdb.export.quantise import quantize_int8

    folder = write_tiny_encoder(tmp_path / "model")
    samples = [np.array([[0, word, 2]], np.int64) for word in range(3, 47)]  # not `nan`
    quantize_int8(folder / "model.onnx", folder / "model.onnx", samples=samples)
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(str(folder / "model.onnx")).graph.node}
    write_manifest(folder, {**json.loads((folder / MANIFEST).read_text()), "precision": "int8"})
    with Encoder(folder, threads=2) as ours, Encoder(folder, engine=name, threads=2, batch_tokens=64) as theirs:
        rows = theirs.encode_passages(TEXTS)
        np.testing.assert_allclose(rows, ours.encode_passages(TEXTS), atol=0.02 if "bf16" in name else 1e-5)
        np.testing.assert_array_equal(theirs.encode_passages(TEXTS[::-1])[::-1], rows)


@OPENVINO
def test_openvino_refuses_8_bit_weights_that_would_overflow(tmp_path, monkeypatch):
    folder = write_tiny_encoder(tmp_path / "model")
    manifest = json.loads((folder / MANIFEST).read_text())
    write_manifest(folder, {**manifest, "precision": "int8", "machine": {"vnni": True}})
    monkeypatch.setattr(encoders, "cpu_has_vnni", lambda: False)
    with pytest.raises(ModelError, match="for a CPU with VNNI: export again here, or use engine onnxruntime"):
        Encoder(folder, engine="openvino")


@OPENVINO
def test_openvino_keeps_no_client_id_and_asks_no_host(tmp_path, model):
    refuse = "import sys\nsys.addaudithook(lambda event, _: event.startswith('socket.') and sys.exit(event))\n"
    code = refuse + WORK.replace("Path(sys.argv[1])", "Path(sys.argv[1]), engine='openvino'")
    assert files_after(tmp_path, model, code + "assert 'openvino_telemetry' not in sys.modules\n") == []


@OPENVINO
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_openvino_says_that_it_cannot_follow_a_fork(model):
    with Encoder(model, engine="openvino", threads=1) as encoder:
        encoder.encode_passages(["w1"])
        if (child := os.fork()) == 0:
            signal.alarm(60)
            try:
                encoder.encode_passages(["w1"])
            except ModelError as error:
                os._exit(0 if "in the new process" in str(error) else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0


@OPENVINO
def test_openvino_names_a_graph_that_it_cannot_run(tmp_path):
    folder = write_tiny_encoder(tmp_path / "model")
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(folder / "model.onnx"))
    graph.graph.node[1].domain, graph.graph.node[1].op_type = "com.microsoft", "QAttention"
    graph.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(graph, str(folder / "model.onnx"))
    write_manifest(folder, {**json.loads((folder / MANIFEST).read_text()), "precision": "int8"})
    with pytest.raises(ModelError, match=r"OpenVINO cannot load .*model\.onnx; export the model again.*QAttention"):
        Encoder(folder, engine="openvino")


def test_an_engine_that_is_not_installed_is_named_with_what_to_type(model, monkeypatch):
    engine._openvino.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r'needs openvino: pip install "xqg-vdb\[openvino\]"'):
        Encoder(model, engine="openvino")
    assert engines() == ["onnxruntime"]


@pytest.mark.parametrize(
    ("exported_with", "here", "careful"), [(True, False, "1"), (True, True, "0"), (False, False, "0")]
)
def test_8_bit_weights_of_another_cpu_are_multiplied_without_overflow(
    tmp_path, monkeypatch, exported_with, here, careful
):
    """Without VNNI, fast products of 8-bit weights overflow 16 bits: slow ones take their place."""
    folder = write_tiny_encoder(tmp_path / "model")
    manifest = json.loads((folder / MANIFEST).read_text())
    write_manifest(folder, {**manifest, "precision": "int8", "machine": {"vnni": exported_with}})
    monkeypatch.setattr(encoders, "cpu_has_vnni", lambda: here)
    opened, original = [], engine.runtime().InferenceSession

    def session(path, options, **settings):
        opened.append(options.get_session_config_entry("session.x64quantprecision"))
        return original(path, options, **settings)

    monkeypatch.setattr(engine.runtime(), "InferenceSession", session)
    Encoder(folder).close()
    assert opened == [careful]
