"""The encoder on a minute real ONNX model, against a twin that encodes one text at a time in plain numpy."""

import threading

import numpy as np
import onnx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tiny_model import DIM, WORDS, write_tiny_encoder
from tokenizers import Tokenizer

from xqg_vdb.calibration import TextEncoder
from xqg_vdb.errors import CorruptError, DataError, ModelError
from xqg_vdb.models.encoder import WINDOW, Encoder
from xqg_vdb.models.folder import locate_model, write_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("models") / "tiny", calibration=0.5)


@pytest.fixture(scope="module")
def encoder(folder):
    with Encoder(folder, threads=2, batch_tokens=64) as encoder:
        yield encoder


def twin(folder, text, *, prefix, pooling="mean", normalize=True, max_length=16):
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(str(folder / "model.onnx")).graph.initializer}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    hidden = np.tanh(weights["table"][tokenizer.encode(prefix + text).ids] @ weights["mix"])
    vector = hidden[0] if pooling == "cls" else hidden.mean(axis=0)
    return vector / np.linalg.norm(vector) if normalize else vector


words = st.sampled_from(WORDS[7:-2])
texts = st.lists(st.lists(words, min_size=1, max_size=30).map(" ".join), max_size=40)


@given(texts=texts)
@settings(max_examples=40, deadline=None)
def test_rows_are_the_twins_in_input_order(encoder, folder, texts):
    rows = encoder.encode_passages(texts)
    assert rows.shape == (len(texts), DIM) and rows.dtype == np.float32
    for row, text in zip(rows, texts, strict=True):
        np.testing.assert_allclose(row, twin(folder, text, prefix="passage: "), atol=1e-5)


def test_queries_have_their_own_prefix(encoder, folder):
    np.testing.assert_allclose(
        encoder.encode_queries(["w1 w2"], calibrate=False)[0], twin(folder, "w1 w2", prefix="query: "), atol=1e-5
    )
    assert not np.allclose(encoder.encode_queries(["w1"], calibrate=False), encoder.encode_passages(["w1"]))


@pytest.mark.parametrize(("pooling", "normalize"), [("cls", True), ("mean", False), ("cls", False)])
def test_pooling_and_normalisation(tmp_path, pooling, normalize):
    folder = write_tiny_encoder(tmp_path / "m", pooling=pooling, normalize=normalize, seed=3)
    with Encoder(folder) as encoder:
        if pooling == "cls" and not normalize:
            with pytest.raises(ModelError, match=r"The vector of text 0 is zero \('w3 w4'\)"):
                encoder.encode_passages(["w3 w4"])
            return
        rows = encoder.encode_passages(["w3 w4", "w5"])
    for row, text in zip(rows, ["w3 w4", "w5"], strict=True):
        expected = twin(folder, text, prefix="passage: ", pooling=pooling, normalize=normalize)
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_any_iterable_and_any_length(encoder):
    n = 2 * WINDOW + 3
    rows = encoder.encode_passages(f"w{i % 40} w{i % 7}" for i in range(n))
    assert rows.shape == (n, DIM)
    np.testing.assert_allclose(rows[-1], encoder.encode_passages([f"w{(n - 1) % 40} w{(n - 1) % 7}"])[0], atol=1e-6)
    assert encoder.encode_passages([]).shape == (0, DIM)


def test_streams_in_bounded_windows(encoder):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield "w1 w2 w3"

    stream = encoder.stream_passages(endless())
    assert next(stream).shape == (WINDOW, DIM)
    assert read == WINDOW


def test_long_texts_are_cut(encoder, folder):
    long = " ".join(["w1", "w2"] * 200_000)
    np.testing.assert_allclose(
        encoder.encode_passages([long])[0], twin(folder, long[:900], prefix="passage: "), atol=1e-5
    )


def test_bad_texts_are_named(encoder):
    with pytest.raises(DataError, match="Text 1 is blank"):
        encoder.encode_passages(["w1", " \n"])
    with pytest.raises(DataError, match=r"Text 2 is not valid Unicode \('w\\ud800'\)"):
        encoder.encode_passages(["w1", "w2", "w\ud800"])
    with pytest.raises(ModelError, match=r"The vector of text 514 is not finite \('w1 nan'\)"):
        encoder.encode_passages([*["w1"] * (WINDOW + 2), "w1 nan"])


def test_calibration_needs_only_langs(encoder, folder):
    plain = encoder.encode_queries(["w1 w2", "w3"], calibrate=False)
    moved = encoder.encode_queries(["w1 w2", "w3"], question_langs=["sw", "und"])
    means = encoder.language_means.means
    for row, vector, mean in zip(moved, plain, [means["sw"], (means["sw"] + means["ar"]) / 2], strict=True):
        expected = vector - 0.5 * mean
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), atol=1e-5)
    with Encoder(folder, calibration=0.0) as off:
        np.testing.assert_array_equal(
            off.encode_queries(["w1"], question_langs=["sw"]), off.encode_queries(["w1"], calibrate=False)
        )


def test_threads_share_one_encoder(encoder):
    texts = [[f"w{i} w{j}" for j in range(30)] for i in range(8)]
    expected = [encoder.encode_passages(own) for own in texts]
    found = [None] * len(texts)

    def work(i):
        found[i] = encoder.encode_passages(texts[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_providers_and_threads_are_validated(folder):
    with pytest.raises(ModelError, match=r"onnxruntime has no NoSuchProvider here; available: .*CPUExecutionProvider"):
        Encoder(folder, provider="NoSuchProvider")
    with pytest.raises(ModelError, match="threads must be 1 or more, got 0"):
        Encoder(folder, threads=0)


def test_the_fingerprint_is_of_weights_and_conventions(folder, tmp_path):
    same = write_tiny_encoder(tmp_path / "same", calibration=0.9)
    with Encoder(folder) as one, Encoder(same) as two:
        assert one.facts.fingerprint == two.facts.fingerprint  # calibration moves no passage
        assert isinstance(one, TextEncoder)
    for i, change in enumerate([{"seed": 1}, {"pooling": "cls"}, {"normalize": False}, {"max_length": 15}]):
        with Encoder(write_tiny_encoder(tmp_path / str(i), **change)) as other, Encoder(folder) as one:
            assert other.facts.fingerprint != one.facts.fingerprint, change


def test_changed_files_are_found(tmp_path):
    for name in ("model.onnx", "tokenizer.json", "calibration.npz"):
        folder = write_tiny_encoder(tmp_path / name.replace(".", "-"))
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(bytes(data))
        with pytest.raises(CorruptError, match=f"{name} is not the file that was exported"):
            Encoder(folder)
        (folder / name).unlink()
        with pytest.raises(CorruptError, match=f"lacks {name}, which its model.json lists"):
            Encoder(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", ".hidden", "x" * 200])
def test_a_strangers_manifest_reads_nothing_outside(tmp_path, name):
    folder = write_tiny_encoder(tmp_path / "m")
    import orjson

    manifest = orjson.loads((folder / "model.json").read_bytes())
    manifest["files"][name] = "0" * 64
    (folder / "model.json").write_bytes(orjson.dumps(manifest))
    with pytest.raises(ModelError, match="which is not a plain file name"):
        Encoder(folder)


def test_a_changed_manifest_is_found(tmp_path):
    manifest = write_tiny_encoder(tmp_path / "m") / "model.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"query: "', '"quest: "'))
    with pytest.raises(CorruptError, match=r"model\.json is not what was exported; .*delete its line 'checksum'"):
        Encoder(tmp_path / "m")
    manifest.write_text(
        "\n".join(line for line in text.splitlines() if "checksum" not in line).replace("},\n}", "}\n}")
    )
    Encoder(tmp_path / "m").close()  # as earlier versions wrote it


def test_unknown_models_say_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        ModelError, match="'starter' has not been exported on this machine yet: run `xqg-vdb export starter:enc"
    ):
        locate_model("starter")
    write_tiny_encoder(tmp_path / "models" / "mymodel")
    with pytest.raises(ModelError, match=r"There is no model '.*mymodle'.* Did you mean '.*mymodel'\?"):
        Encoder(tmp_path / "models" / "mymodle")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no model\.json: if it is a checkpoint, run `xqg-vdb export"):
        Encoder(tmp_path / "empty")


def test_a_named_encoder_is_exported_when_it_is_first_used(tmp_path, monkeypatch):
    """The exporter is a stand-in that writes a tiny encoder; test_journeys.py runs the real one."""
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))
    asked = []

    def export(checkpoint, out, precision, report):
        asked.append((checkpoint, out.name, precision))
        write_tiny_encoder(out)

    monkeypatch.setattr("xqg_vdb.export.encoder.export_on_first_use", export)
    for _ in range(2):
        with Encoder("starter") as first, Encoder("owner/model") as second:
            assert repr(first) == f"Encoder({first.facts.source!r}, fp32, 12 dimensions, λ=0)"
            assert first.facts == second.facts
    assert asked == [("starter:encoder", "starter-int8", "int8"), ("owner/model", "owner--model-int8", "int8")]
    with pytest.raises(ModelError, match="There is no model 'nobody'"):
        Encoder("nobody")


def test_one_text_in_place_of_a_list_is_refused_with_the_cure(tmp_path):
    with Encoder(write_tiny_encoder(tmp_path / "m")) as encoder:
        for encode in (encoder.encode_queries, encoder.encode_passages):
            with pytest.raises(DataError, match=r"Give a list of texts, not one: \['w1 w2'\]\."):
                encode("w1 w2")


def test_questions_are_calibrated_for_their_language_unless_told_otherwise(tmp_path):
    with Encoder(write_tiny_encoder(tmp_path / "m", calibration=0.5)) as encoder:
        texts = ["w1 w2", "w3"]
        detected = encoder.encode_queries(texts)
        np.testing.assert_array_equal(detected, encoder.encode_queries(texts, question_langs=[None, None]))
        assert not np.allclose(detected, encoder.encode_queries(texts, calibrate=False))


def test_a_folder_of_links_opens_and_a_hostile_one_is_refused(tmp_path):
    """Links, as hub caches, DVC and Kubernetes make them; the checksum protects."""
    real, linked = write_tiny_encoder(tmp_path / "real"), tmp_path / "linked"
    linked.mkdir()
    for file in real.iterdir():
        (linked / file.name).symlink_to(file)
    with Encoder(real) as first, Encoder(linked) as second:
        np.testing.assert_array_equal(first.encode_passages(["w1 w2"]), second.encode_passages(["w1 w2"]))
    with (real / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CorruptError, match="is not the file that was exported"):
        Encoder(linked)
    (linked / "model.json").unlink()
    with (linked / "model.json").open("wb") as file:
        file.truncate(10 << 30)  # sparse
    with pytest.raises(CorruptError, match="10,737,418,240 bytes, more than any manifest"):
        Encoder(linked)


def test_a_tokenizer_that_multiplies_texts_is_refused(tmp_path):
    folder = write_tiny_encoder(tmp_path / "m")
    record = orjson.loads((folder / "tokenizer.json").read_bytes())
    step = {"type": "Replace", "pattern": {"String": "w"}, "content": "w" * 30}
    record["normalizer"] = {"type": "Sequence", "normalizers": [step, step]}
    (folder / "tokenizer.json").write_bytes(orjson.dumps(record))
    manifest = orjson.loads((folder / "model.json").read_bytes())
    write_manifest(folder, {key: manifest[key] for key in ("kind", "source", "encoder", "precision")})
    with pytest.raises(ModelError, match="it makes texts many times as long"):
        Encoder(folder)
