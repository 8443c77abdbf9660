"""Export: the gate, the starter (real, needs torch), hostile checkpoints, conventions. Nothing here needs a network."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from tiny_model import write_tiny_encoder
from tokenizers import Tokenizer

from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.cli.commands import cli
from xqg_vdb.errors import MismatchError, MissingExtra, ModelError
from xqg_vdb.export import encoder as encoder_export
from xqg_vdb.export import gate
from xqg_vdb.export.checkpoints import (
    Overrides,
    conventions,
    fetch_checkpoint,
    read_dense,
    read_json,
    strip_code_keys,
)
from xqg_vdb.export.encoder import explain, export
from xqg_vdb.export.gate import (
    load_tokenizer,
    load_weights,
    measure_parity,
    parity_texts,
    save_tokenizer,
    torch_vectors,
)
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.models.folder import open_model_folder


def silent(line):
    pass


@pytest.fixture(autouse=True)
def few_texts(request, monkeypatch):
    """A third of the gate's texts, and no calibration: most exports here are about something else."""
    if "whole_gate" in request.fixturenames:
        return
    questions, passages = parity_texts()
    fewer = questions[::3], [*passages[::3], passages[-1]]
    for module in (gate, encoder_export):
        monkeypatch.setattr(module, "parity_texts", lambda: fewer)
    nothing = LanguageMeans(), {"strength": 0.0, "mrr": {}, "measured_on": ""}
    monkeypatch.setattr(encoder_export, "measure_calibration", lambda encoder: nothing)


@pytest.fixture
def whole_gate():
    """For a test of the gate itself."""


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A small, randomly initialised BERT checkpoint with a word-piece tokenizer that knows single characters."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("checkpoints") / "bert"
    folder.mkdir()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in (*range(33, 127), *range(0x400, 0x450), *range(0x620, 0x650))]
    (folder / "vocab.txt").write_text("\n".join([*marks, *letters, *["##" + letter for letter in letters]]), "utf-8")
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=5 + 2 * len(letters), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=128,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder, safe_serialization=True)
    return folder


def test_fp32_export_passes_the_gate_and_records_it(bert, tmp_path, whole_gate):
    folder = export(str(bert), tmp_path / "out", precision="fp32", say=silent)
    parity = folder.manifest["parity"]
    assert parity["cosine_min"] >= 0.9999 and parity["texts"] > 100
    assert folder.manifest["speed"]["passages_per_second"] > 0
    assert folder.spec.pooling == "mean" and folder.spec.max_length == 128 and folder.spec.dim == 32
    assert folder.fingerprint == open_model_folder(tmp_path / "out").fingerprint
    assert not [p for p in tmp_path.iterdir() if p.name != "out"], "a scratch folder was left behind"
    with Encoder(folder.path) as encoder:
        rows = encoder.encode_passages(parity_texts()[1])
        _, theirs = torch_vectors(fetch_checkpoint(str(bert), into=tmp_path / "clean"), folder.spec)
    np.testing.assert_allclose(rows, theirs / np.linalg.norm(theirs, axis=1, keepdims=True), atol=1e-4)


def test_int8_and_overrides(bert, tmp_path):
    overrides = Overrides(pooling="cls", normalize=False, query_prefix="q: ", max_length=64)
    folder = export(str(bert), tmp_path / "out", precision="int8", overrides=overrides, say=silent)
    assert folder.manifest["parity"]["cosine_min"] >= 0.98
    assert (folder.spec.pooling, folder.spec.normalize, folder.spec.query_prefix) == ("cls", False, "q: ")
    assert folder.spec.max_length == 64 and folder.manifest["precision"] == "int8"


def test_an_int8_vector_depends_on_its_text_alone(bert, tmp_path):
    """Alone, in a batch, in another order: the same bits. With run-time ranges the neighbours change it."""
    folder = export(str(bert), tmp_path / "out", precision="int8", say=silent).path
    texts = ["a", "Hello there", "абв", "!!!!!!!!!!!!!! ????????????", "one two three four five six seven eight"]
    with Encoder(folder, threads=1) as encoder:
        together = encoder.encode_queries(texts, calibrate=False)
        for row, text in enumerate(texts):
            np.testing.assert_allclose(encoder.encode_queries([text], calibrate=False)[0], together[row], atol=2e-6)
        np.testing.assert_allclose(encoder.encode_queries(texts[::-1], calibrate=False), together[::-1], atol=2e-6)
    import onnx

    kinds = [node.op_type for node in onnx.load(str(folder / "model.onnx")).graph.node]
    assert kinds.count("QuantizeLinear") > 4 and "DynamicQuantizeLinear" not in kinds


def test_a_wrong_export_is_refused_with_both_figures(bert, tmp_path, monkeypatch):
    import xqg_vdb.export.encoder as module

    def other_weights(*what):
        return tuple(rows[:, ::-1] for rows in torch_vectors(*what))

    monkeypatch.setattr(module, "torch_vectors", other_weights)
    with pytest.raises(MismatchError, match=r"lowest cosine -?0\.\d+, wanted 0\.9999 .*nothing was written"):
        export(str(bert), tmp_path / "out", precision="fp32", say=silent)
    assert not list(tmp_path.iterdir())


def test_parity_is_the_lowest_cosine(tmp_path, whole_gate):
    questions, passages = parity_texts()
    with Encoder(write_tiny_encoder(tmp_path / "tiny")) as encoder:
        rows = encoder.encode_queries(questions, calibrate=False), encoder.encode_passages(passages).copy()
        rows[1][7] *= -1
        parity = measure_parity(encoder, rows)
    assert parity["cosine_min"] == pytest.approx(-1.0, abs=1e-5)
    # one row of cosine -1 among n of cosine 1
    assert parity["cosine_mean"] == pytest.approx((parity["texts"] - 2) / parity["texts"], abs=1e-5)


def test_an_export_never_overwrites(bert, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(ModelError, match="out exists and is not empty: remove it, or export to another folder"):
        export(str(bert), tmp_path / "out", say=silent)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such-folder/here", "There is no checkpoint 'no/such-folder/here'"),
        (
            "../up",
            r"There is no checkpoint '\.\./up': give a local folder, a hub id \(owner/model\) or 'starter:encoder'",
        ),
    ],
)
def test_unknown_checkpoints(name, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        export(name, tmp_path / "out", say=silent)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_checkpoint(tmp_path):
    (tmp_path / "c").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json with a model_type"):
        export(str(tmp_path / "c"), tmp_path / "out", say=silent)


CANARY = "import pathlib; pathlib.Path({path!r}).write_text('ran')\n"


def hostile(folder, marker, *, weights):
    """A checkpoint that tries to run code in every way that loaders have allowed."""
    folder.mkdir()
    code = CANARY.format(path=str(marker))
    for name in ("modeling_evil.py", "tokenization_evil.py", "configuration_evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    config = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 20,
        "max_position_embeddings": 32,
        "architectures": ["Evil"],
        "auto_map": {"AutoModel": "modeling_evil.Evil", "AutoConfig": "configuration_evil.Evil"},
        "_attn_implementation_internal": "evil/kernels",
        "_attn_implementation": "evil/kernels",
        "text_config": {"_attn_implementation_internal": "evil/kernels"},
    }
    (folder / "config.json").write_bytes(orjson.dumps(config))
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(tokenizer))

    class Bomb:
        def __reduce__(self):
            return (pathlib.Path.write_text, (marker, "ran"))

    import pickle

    for name in ("pytorch_model.bin", "model.pt", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    if weights:
        from safetensors.numpy import save_file

        save_file(
            {"embeddings.word_embeddings.weight": np.zeros((20, 32), np.float32)}, str(folder / "model.safetensors")
        )
    return folder


def test_pickled_code_never_runs(tmp_path):
    """torch's restricted loader refuses it, in a process of its own."""
    pytest.importorskip("torch")
    marker = tmp_path / "marker"
    folder = hostile(tmp_path / "evil", marker, weights=False)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is refused by torch's restricted loader"):
        export(str(folder), tmp_path / "out", say=silent)
    assert not marker.exists()


def test_other_pickles_are_not_even_tried(tmp_path):
    folder = hostile(tmp_path / "evil", tmp_path / "marker", weights=False)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"has model\.pt, training_args\.bin, not model\.safetensors or"):
        export(str(folder), tmp_path / "out", say=silent)


def test_pickles_that_hold_no_weights_are_not_called_code(bert, tmp_path):
    torch = pytest.importorskip("torch")
    folder = shutil.copytree(bert, tmp_path / "c")
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(3)], folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin holds no plain weights by name \(AttributeError"):
        fetch_checkpoint(str(folder), into=tmp_path / "clean")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            lambda torch: {"junk": torch.zeros(1).expand(1 << 40)},
            r"\(MemoryError: 4,398,\S+ bytes of numbers in a file",
        ),
        (lambda torch: {"junk": torch.eye(2).to_sparse()}, r"holds no plain weights by name \(RuntimeError"),
        (lambda torch: {"junk": torch.zeros(3, device="meta")}, r"holds no plain weights by name \(NotImplem"),
        (lambda torch: {3: torch.zeros(3)}, r"holds no plain weights by name \(TypeError"),
    ],
)
def test_tensors_that_are_not_in_the_file_fill_neither_memory_nor_disk(bert, tmp_path, more, said):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    folder = shutil.copytree(bert, tmp_path / "c")
    torch.save(load_file(folder / "model.safetensors") | more(torch), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=said):
        fetch_checkpoint(str(folder), into=tmp_path / "clean")
    assert not (tmp_path / "clean" / "model.safetensors").exists()


def test_weights_that_share_memory_are_read(bert, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    folder = shutil.copytree(bert, tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    numbers, start, views = torch.cat([value.t().flatten() for value in weights.values()]), 0, {}
    for key, value in weights.items():
        views[key] = numbers[start : (start := start + value.numel())].view(value.t().shape).t()
    views["again"] = views[key]
    torch.save(views, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    fetch_checkpoint(str(folder), into=tmp_path / "clean")
    read = load_file(tmp_path / "clean" / "model.safetensors")
    assert all(torch.equal(read[key], weights[key]) for key in weights)


def test_what_cannot_be_asked_of_an_export_is_said_before_it_begins(tmp_path):
    with pytest.raises(ModelError, match="Cross-encoders are exported in fp32 alone: leave --precision away"):
        export(f"cross:{tmp_path}", tmp_path / "out", precision="int8")
    with pytest.raises(ModelError, match="Say where to export the folder"):
        export(str(tmp_path), generator=True)


def test_honest_pickled_weights_are_converted(bert, tmp_path):
    """Two shards of the transformer, and a projection in one file."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    folder = with_dense(tmp_path / "pickled", bert=bert, pooling="pooling_mode_mean_tokens", layers=[(16, "Tanh")])
    names = {
        "model": ["pytorch_model-00001-of-00002", "pytorch_model-00002-of-00002"],
        "2_Dense/model": ["pytorch_model"],
    }
    for safe, pickled in names.items():
        weights = load_file(file := folder / f"{safe}.safetensors")
        for part, name in enumerate(pickled):
            torch.save(
                {key: weights[key] for key in sorted(weights)[part :: len(pickled)]}, file.with_name(f"{name}.bin")
            )
        file.unlink()
    source = fetch_checkpoint(str(folder), into=tmp_path / "clean")
    theirs = load_weights("AutoModel", fetch_checkpoint(str(bert), into=tmp_path / "plain")).state_dict()
    ours = load_weights("AutoModel", source).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in load_file(bert / "model.safetensors"))
    np.testing.assert_array_equal(read_dense(source.dense[0])[0].T, weights["linear.weight"])


def test_a_configuration_too_large_to_be_one_is_refused(bert, tmp_path):
    folder = tmp_path / "large"
    shutil.copytree(bert, folder)
    (folder / "generation_config.json").write_bytes(orjson.dumps({"auto_map": "x" * (5 << 20)}))
    with pytest.raises(ModelError, match=r"generation_config\.json has over 4 MiB"):
        fetch_checkpoint(str(folder), into=tmp_path / "clean")


def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    pytest.importorskip("torch")
    marker = tmp_path / "marker"
    folder = hostile(tmp_path / "evil", marker, weights=True)
    clean = fetch_checkpoint(str(folder), into=tmp_path / "clean")
    names = {str(p.relative_to(clean.path)) for p in clean.path.rglob("*")}
    assert names == {"config.json", "tokenizer_config.json", "model.safetensors"}
    assert b"evil" not in (clean.path / "config.json").read_bytes().replace(b"Evil", b"")
    with pytest.raises(ModelError, match=r"brings Python code of its own \(modeling_evil\.Evil\), which is never run"):
        export(str(folder), tmp_path / "out", say=silent)
    with pytest.raises(ModelError, match=r"lacks .* weights of BertModel, such as"):
        load_weights("AutoModel", dataclasses.replace(clean, code={}))
    with pytest.raises(ModelError, match="cannot load the checkpoint's tokenizer"):
        load_tokenizer(clean.path)
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    (tmp_path / "c").mkdir()
    os.mkfifo(tmp_path / "c" / "config.json")
    os.mkfifo(tmp_path / "c" / "model.json")
    with pytest.raises(ModelError, match=r"has no config\.json with a model_type"):
        export(str(tmp_path / "c"), tmp_path / "out", say=silent)
    with pytest.raises(ModelError, match=r"has no model\.json|is not a model folder"):
        Encoder(tmp_path / "c")


def test_code_keys_are_stripped_at_every_depth():
    record = {"a": [{"auto_map": 1, "b": {"_attn_implementation_autoset": 1, "c": 2}}], "_attn_implementation": 3}
    assert strip_code_keys(record) == {"a": [{"b": {"c": 2}}]}


def checkpoint(folder, source, *, config=None, files=None, overrides=None):
    folder.mkdir()
    record = {"model_type": "bert", "hidden_size": 32, "max_position_embeddings": 512, **(config or {})}
    (folder / "config.json").write_bytes(orjson.dumps(record))
    (folder / "model.safetensors").write_bytes(b"x")
    for name, value in (files or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(orjson.dumps(value))
    found = fetch_checkpoint(str(folder), into=folder.with_name("clean"))
    return conventions(dataclasses.replace(found, source=source), overrides or Overrides())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("intfloat/multilingual-e5-base", ("mean", True, "query: ", "passage: ", 512)),
        ("BAAI/bge-m3", ("cls", True, "", "", 512)),
        ("BAAI/bge-small-en-v1.5", ("cls", True, "Represent this sentence for searching relevant passages: ", "", 512)),
        ("sentence-transformers/LaBSE", ("cls", True, "", "", 256)),
        ("ielabgroup/bert-base-multilingual-cased-xor-tydi", ("cls", False, "", "", 128)),
        ("somebody/unknown", ("mean", True, "", "", 512)),
    ],
)
def test_family_conventions(tmp_path, source, expected):
    spec, _ = checkpoint(tmp_path / "c", source)
    assert (spec.pooling, spec.normalize, spec.query_prefix, spec.passage_prefix, spec.max_length) == expected


def test_sentence_transformers_files_win_over_the_family(tmp_path):
    files = {
        "modules.json": PIPELINE,
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        "sentence_bert_config.json": {"max_seq_length": 100},
        "config_sentence_transformers.json": {"prompts": {"query": "Q ", "document": "D "}},
    }
    spec, learned = checkpoint(tmp_path / "c", "intfloat/multilingual-e5-small", files=files)
    assert learned == "sentence-transformers files"
    assert (spec.pooling, spec.normalize, spec.query_prefix, spec.passage_prefix) == ("cls", True, "Q ", "D ")
    assert spec.max_length == 100


ST = "sentence_transformers.models."
PIPELINE = [{"type": ST + "Transformer", "path": ""}, {"type": ST + "Pooling", "path": "1_Pooling"}]


def numbered(modules):
    """Modules as sentence-transformers writes them; a pair is (kind, folder)."""
    listed = [module if isinstance(module, dict) else {"type": ST + module[0], "path": module[1]} for module in modules]
    return [{"idx": i, "name": str(i), **module} for i, module in enumerate(listed)]


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode": "mean", "embedding_dimension": 32, "include_prompt": True}, "mean"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
        ({"pooling_mode": "weightedmean"}, "weighted-mean"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": False}, "max"),
        ({"pooling_mode_cls_token": True, "include_prompt": True}, "cls"),
        ({"pooling_mode_cls_token": 1, "pooling_mode_mean_tokens": 0}, "cls"),
    ],
)
def test_every_spelling_of_pooling(tmp_path, config, pooling):
    files = {"modules.json": PIPELINE, "1_Pooling/config.json": config}
    assert checkpoint(tmp_path / "c", "x/y", files=files)[0].pooling == pooling


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"1_Pooling/config.json": {"pooling_mode_mean_sqrt_len_tokens": True}}, "pools by mean_sqrt_len_tokens; supp"),
        ({"1_Pooling/config.json": {"pooling_mode": ["mean", "max"]}}, "pools by mean and max; supported: mean"),
        ({"modules.json": [*PIPELINE, {"type": ST + "LayerNorm", "path": "2_LayerNorm"}]}, "runs .*, LayerNorm; only"),
        ({"modules.json": PIPELINE[::-1]}, "runs Pooling, Transformer; only"),
        ({"modules.json": [{"type": "evil.\x1b[31m\nM", "path": ""}, *PIPELINE[1:]]}, r"evil[^\x1b\n]*M, Pool"),
    ],
)  # fmt: skip
def test_what_cannot_be_reproduced_is_refused_by_name(tmp_path, files, said):
    with pytest.raises(ModelError, match=said):
        checkpoint(tmp_path / "c", "x/y", files={"modules.json": PIPELINE, **files})


FOREIGN = {"AutoModel": "modeling_qwen.Qwen2Model"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"sentence_bert_config.json": {"config_kwargs": {"hidden_act": "relu"}}},
            "does by config_kwargs.hidden_act",
        ),
        ({"tokenizer_config.json": {"truncation_side": "left"}}, "does by truncation_side"),
        ({"tokenizer.json": {"truncation": {"max_length": 9, "direction": "Left"}}}, "does by truncation_side"),
        ({"config_sentence_transformers.json": {"similarity_fn_name": "euclidean"}}, "ranks by euclidean distance"),
        ({"modules.json": [{"type": "custom_st.Transformer", "path": ""}, *PIPELINE[1:]]}, r"runs custom_st\.Transf"),
        ({"modules.json": [PIPELINE[0], {"type": ST + "Pooling", "path": "../1_Pooling"}]}, "does not list modules"),
        ({"sentence_bert_config.json": {"transformer_task": "fill-mask"}}, "does by fill-mask"),
        ({"sentence_bert_config.json": {"modality_config": {"message": {}}}}, "does by modality_config.text = None"),
        (
            {"sentence_bert_config.json": {"modality_config": ["text"]}},
            "modality_config = .*, where a value of type dict",
        ),
        ({"sentence_bert_config.json": {"max_seq_length": "40"}}, "max_seq_length = '40', where a value of type int"),
        ({"sentence_bert_config.json": {"model_args": 3}}, "does by model_args.3"),
        (
            {"sentence_bert_config.json": {"module_output_name": [1]}},
            "module_output_name = .*, where a value of type str",
        ),
        ({"sentence_bert_config.json": {"max_seq_length": 4}}, "reads 4 tokens of a text: give --max-length 8"),
        ({"config_sentence_transformers.json": {"truncate_dim": "16"}}, "truncate_dim = '16', where .* type int"),
        ({"config_sentence_transformers.json": {"prompts": {"query": 3}}}, r"prompts that are no texts \({'query': 3}"),
        ({"adapter_config.json": [1]}, "adapter_config.json holds a list"),
        ({"1_Pooling/config.json": {}}, "has a Pooling module without a config.json: give --pooling"),
        ({"adapter_config.json": {"base_model_name_or_path": "a/b"}}, "is an adapter of a/b: merge it into that one"),
        ({"config.json": {"model_type": "qwen2", "auto_map": FOREIGN}}, "has a qwen2 that may compute something else"),
        (
            {"config.json": {"model_type": "new", "auto_map": FOREIGN}},
            r"never run, and transformers .* knows no type 'new'",
        ),
        ({"config.json": {"quantization_config": {"quant_method": "awq"}}}, "has weights quantised by awq"),
    ],
)
def test_what_would_give_other_vectors_is_refused_by_name(tmp_path, change, said):
    pytest.importorskip("transformers")
    files = {"modules.json": PIPELINE, "1_Pooling/config.json": {"pooling_mode": "cls"}, **change}
    config = {"hidden_size": 32, "model_type": "bert", **files.pop("config.json", {})}
    with pytest.raises(ModelError, match=said):
        checkpoint(tmp_path / "c", "x/y", config=config, files=files)
        gate.check_code(fetch_checkpoint(str(tmp_path / "c"), into=tmp_path / "again"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_hidden_layers": 10**9}, 'has "num_hidden_layers":1000000000, as no model has'),
        ({"num_hidden_layers": -1}, 'has "num_hidden_layers":-1, as no model has'),
        ({"text_config": {"num_local_experts": 10**30}}, "num_local_experts.*as no model has"),
        ({"num_labels": 10**9}, "num_labels.*as no model has"),
        ({"vocab_size": 10**9}, "bytes of weights, its config.json speaks of 32,000,0"),
        ({"intermediate_size": 10**8}, "bytes of weights, its config.json speaks of "),
        ({"quantization_config": {"load_in_8bit": True}}, "quantised by what its quantization_config says"),
        ({"architectures": [3], "hidden_act": "no"}, "cannot load"),
    ],
)
@pytest.mark.parametrize("modules", [False, True])
def test_a_model_that_could_not_be_built_is_refused_before_it_is(bert, tmp_path, config, said, modules):
    pytest.importorskip("sentence_transformers")
    folder = tmp_path / "c"
    sentence_transformer(folder, {"pooling_mode": "mean"}, bert=bert) if modules else shutil.copytree(bert, folder)
    record = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(record | config))
    try:
        refused = " ".join(explain(str(folder))["refused"])
    except ModelError as error:
        refused = str(error)
    assert re.search(said, refused)
    with pytest.raises(ModelError):
        export(str(folder), tmp_path / "out", precision="fp32", say=silent)


def test_a_module_writes_no_file_outside(bert, tmp_path):
    folder = sentence_transformer(tmp_path / "c", {"pooling_mode": "mean"}, bert=bert)
    evil = "a/" + "../" * 20 + str(tmp_path / "evil")
    listed = [{"type": ST + "Transformer", "path": ""}, {"type": evil, "path": "1_Pooling"}]
    (folder / "modules.json").write_bytes(orjson.dumps(numbered(listed)))
    source = fetch_checkpoint(str(folder), into=tmp_path / "clean")
    assert (
        not (tmp_path / "evil").exists()
        and (
            source.path / orjson.loads((source.path / "modules.json").read_bytes())[1]["path"] / "config.json"
        ).is_file()
    )
    with pytest.raises(ModelError, match="runs Transformer, a/"):
        conventions(source)


def test_a_graph_of_a_model_that_transformers_does_not_know_is_explained(bert, tmp_path):
    pytest.importorskip("sentence_transformers")
    folder = sentence_transformer(tmp_path / "c", {"pooling_mode": "mean"}, bert=bert, prompts={"\x1b[31m": "x"})
    config = {"model_type": "new", "hidden_size": 12, "auto_map": {"AutoModel": "modeling.NewModel"}}
    (folder / "config.json").write_bytes(orjson.dumps(config))
    write_tiny_encoder(folder / "onnx")
    shown = CliRunner().invoke(cli, ["export", "--explain", str(folder)])
    assert shown.exit_code == 0 and "not asked (" in shown.output and "refused" not in shown.output
    assert "\x1b" not in shown.output


def test_a_generator_is_explained(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "c")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "eos_token_id": [1, 2]}
    (folder / "config.json").write_bytes(orjson.dumps(config | {"num_hidden_layers": 1, "num_attention_heads": 4}))
    shown = CliRunner().invoke(cli, ["export", "--explain", str(folder)], catch_exceptions=False)
    assert re.search("eos +1; 2", shown.output) and "refused" not in shown.output


def test_files_of_other_programs_are_named(tmp_path):
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"has GGUF files, .* let llama\.cpp serve them and export its URL"):
        fetch_checkpoint(str(tmp_path / "gguf"), into=tmp_path / "clean")


def test_a_language_model_that_says_nothing_of_pooling_is_no_encoder(tmp_path):
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    with pytest.raises(ModelError, match="--generator exports it as a generator; as an encoder, give --pooling"):
        checkpoint(tmp_path / "c", "x/y", config=config)


def test_a_folders_family_is_told_by_its_own_name_alone(tmp_path):
    (tmp_path / "xdr-e5-labse").mkdir()
    assert checkpoint(tmp_path / "xdr-e5-labse" / "mine", str(tmp_path / "xdr-e5-labse" / "mine"))[1] == "default"


def test_overrides_come_before_refusals(tmp_path):
    files = {"modules.json": PIPELINE, "1_Pooling/config.json": {"pooling_mode_mean_sqrt_len_tokens": True}}
    assert checkpoint(tmp_path / "c", "x/y", files=files, overrides=Overrides(pooling="cls"))[0].pooling == "cls"


def test_empty_prompts_do_not_wipe_the_familys_and_a_default_prompt_counts(tmp_path):
    record = {"prompts": {"query": "", "document": ""}}
    files = {"config_sentence_transformers.json": record}
    spec, _ = checkpoint(tmp_path / "a", "intfloat/multilingual-e5-small", files=files)
    assert (spec.query_prefix, spec.passage_prefix) == ("query: ", "passage: ")
    record = {"prompts": {"all": "text: "}, "default_prompt_name": "all"}
    (tmp_path / "more").mkdir()
    spec, _ = checkpoint(tmp_path / "more" / "b", "x/y", files={"config_sentence_transformers.json": record})
    assert (spec.query_prefix, spec.passage_prefix) == ("text: ", "text: ")
    (tmp_path / "third").mkdir()
    files = {"config_sentence_transformers.json": {"prompts": {"query": "", "document": "", "corpus": "c: "}}}
    assert checkpoint(tmp_path / "third" / "c", "x/y", files=files)[0].passage_prefix == "c: "


def test_a_length_that_stands_in_the_tokenizer_alone(tmp_path):
    files = {"tokenizer_config.json": {"model_max_length": 64, "tokenizer_class": "TokenizersBackend"}}
    assert checkpoint(tmp_path / "c", "x/y", files=files)[0].max_length == 64
    written = orjson.loads((tmp_path / "clean" / "tokenizer_config.json").read_bytes())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_length_beyond_the_trained_positions_counts_where_positions_are_angles(tmp_path):
    files = {
        "modules.json": PIPELINE, "1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": None},
        "sentence_bert_config.json": {"max_seq_length": 300}, "config_sentence_transformers.json": {"truncate_dim": 99},
    }  # fmt: skip
    config = {"max_position_embeddings": 130}
    (tmp_path / "more").mkdir()
    assert checkpoint(tmp_path / "c", "x/y", config=config, files=files)[0].max_length == 130
    spec, _ = checkpoint(tmp_path / "more" / "c", "x/y", config=config | {"rope_theta": 10000.0}, files=files)
    assert (spec.max_length, spec.pool_prompt, spec.dim) == (300, False, 32)
    (tmp_path / "third").mkdir()  # a length that stands in the tokenizer alone is not read beyond them
    files |= {"sentence_bert_config.json": {}, "tokenizer_config.json": {"model_max_length": 300}}
    spec, _ = checkpoint(tmp_path / "third" / "c", "x/y", config=config | {"rope_theta": 10000.0}, files=files)
    assert spec.max_length == 130


def test_ranking_by_cosine_is_kept_where_no_module_normalises(tmp_path):
    files = {"modules.json": PIPELINE, "1_Pooling/config.json": {"pooling_mode": "mean"}}
    for name, normalize in (("cosine", True), ("dot", False), (None, True)):  # sentence-transformers takes cosine
        record = {"config_sentence_transformers.json": {"similarity_fn_name": name}}
        (tmp_path / str(name)).mkdir()
        assert checkpoint(tmp_path / str(name) / "c", "x/y", files=files | record)[0].normalize is normalize


def sentence_transformer(folder, pooling, *, bert, lower=False, prompts=None):
    """The files that make a sentence-transformers checkpoint of a transformers one."""
    shutil.copytree(bert, folder)
    for name, value in {
        "modules.json": numbered([*PIPELINE, ("Normalize", "2_Normalize")]),
        "1_Pooling/config.json": {"word_embedding_dimension": 32, **pooling},
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": lower},
        "config_sentence_transformers.json": {"prompts": prompts or {}},
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(orjson.dumps(value))
    return folder


@pytest.mark.parametrize(
    "pooling",
    ["pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"],
)
def test_pooling_equals_sentence_transformers(bert, tmp_path, pooling):
    pytest.importorskip("sentence_transformers")
    others = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    config = {f"pooling_mode_{name}": f"pooling_mode_{name}" == pooling for name in others}
    folder = sentence_transformer(tmp_path / "st", config, bert=bert, prompts={"query": "ask: "})
    exported = export(str(folder), tmp_path / "out", precision="fp32", say=silent)
    assert exported.manifest["parity"]["cosine_min"] >= 0.9999 and exported.spec.query_prefix == "ask: "


def test_lower_case_equals_sentence_transformers(bert, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = sentence_transformer(tmp_path / "st", {"pooling_mode_mean_tokens": True}, bert=bert, lower=True)
    export(str(folder), tmp_path / "out", precision="fp32", say=silent)
    texts = ["WHERE Is The Nile?", "ПРИВЕТ Мир"]
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts, prompt="")
    with Encoder(tmp_path / "out", calibration=0.0) as encoder:
        np.testing.assert_allclose(encoder.encode_passages(texts), theirs, atol=1e-5)


@pytest.mark.parametrize("family", ["Qwen3", "ModernBert"])
def test_families_that_are_not_traced(bert, tmp_path, family):
    """Rotary positions, last-token pooling, sliding windows: through torch.export, in fp32 and int8."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    vocabulary = len((bert / "vocab.txt").read_text("utf-8").split("\n"))
    own = {"head_dim": 16, "num_key_value_heads": 1} if family == "Qwen3" else {"pad_token_id": 0, "local_attention": 8}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=1 if family == "Qwen3" else 2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128, **own,
    )  # fmt: skip
    mode = "lasttoken" if family == "Qwen3" else "mean_tokens"
    folder = sentence_transformer(tmp_path / "st", {f"pooling_mode_{mode}": True}, bert=bert)
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    tokenizer = orjson.loads((folder / "tokenizer_config.json").read_bytes())
    tokenizer |= {"tokenizer_class": "TokenizersBackend", "model_input_names": ["input_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(tokenizer))
    exported = export(str(folder), tmp_path / "out", precision="int8", say=silent)
    assert exported.manifest["parity"]["cosine_min"] >= 0.99


def test_xlm_r_positions(tmp_path):
    spec, _ = checkpoint(tmp_path / "c", "x/y", config={"model_type": "xlm-roberta", "max_position_embeddings": 514})
    assert spec.max_length == 512


def with_dense(folder, *, bert, pooling, layers):
    """LaBSE's, distiluse's and EmbeddingGemma's shape: projections after pooling. layers: (width, activation)."""
    from safetensors.numpy import save_file

    modules = [("Dense", f"{i + 2}_Dense") for i in range(len(layers))]
    sentence_transformer(folder, {pooling: True}, bert=bert)
    (folder / "modules.json").write_bytes(orjson.dumps(numbered([*PIPELINE, *modules, ("Normalize", "9_Normalize")])))
    rng, width = np.random.default_rng(0), 32
    for (_, name), (out, activation) in zip(modules, layers, strict=True):
        (folder / name).mkdir()
        config = {"in_features": width, "out_features": out, "bias": True}
        home = "linear" if activation == "Identity" else "activation"
        config["activation_function"] = f"torch.nn.modules.{home}.{activation}"
        (folder / name / "config.json").write_bytes(orjson.dumps(config))
        weights = {"linear.weight": rng.standard_normal((out, width)) / 6, "linear.bias": rng.standard_normal(out)}
        save_file({k: v.astype(np.float32) for k, v in weights.items()}, str(folder / name / "model.safetensors"))
        width = out
    return folder


@pytest.mark.parametrize(
    ("pooling", "layers"),
    [
        ("pooling_mode_cls_token", [(16, "Tanh")]),
        ("pooling_mode_mean_tokens", [(16, "Tanh")]),
        ("pooling_mode_mean_tokens", [(48, "Identity"), (16, "Identity")]),
        ("pooling_mode_max_tokens", [(16, "GELU"), (12, "Sigmoid"), (8, "ReLU")]),
    ],
)
def test_all_projections_are_part_of_the_export(bert, tmp_path, pooling, layers):
    pytest.importorskip("sentence_transformers")
    folder = with_dense(tmp_path / "st", bert=bert, pooling=pooling, layers=layers)
    exported = export(str(folder), tmp_path / "out", precision="fp32", say=silent)
    assert exported.spec.dim == layers[-1][0] and exported.manifest["parity"]["cosine_min"] >= 0.9999


def test_a_checkpoint_whose_files_lie_otherwise_equals_sentence_transformers(bert, tmp_path):
    """Before 2021: the transformer in a folder, its file named by architecture; Tanh where no activation is named."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder, top = (
        with_dense(tmp_path / "st", bert=bert, pooling="pooling_mode_cls_token", layers=[(16, "Identity")]),
        tmp_path / "st" / "0_Transformer",
    )
    top.mkdir()
    for file in [file for file in folder.iterdir() if file.is_file() and file.name != "modules.json"]:
        file.rename((folder if file.name == "config_sentence_transformers.json" else top) / file.name)
    (top / "sentence_bert_config.json").unlink()
    (top / "sentence_roberta_config.json").write_bytes(orjson.dumps({"max_seq_length": 20, "do_lower_case": True}))
    (folder / "1_Pooling").rename(folder / "pooling")
    modules = [("Transformer", "0_Transformer"), ("Pooling", "pooling"), ("Dense", "2_Dense")]
    (folder / "modules.json").write_bytes(orjson.dumps(numbered(modules)))
    dense = orjson.loads((folder / "2_Dense" / "config.json").read_bytes())
    del dense["activation_function"]
    (folder / "2_Dense" / "config.json").write_bytes(orjson.dumps(dense))
    exported = export(str(folder), tmp_path / "out", precision="fp32", say=silent)
    assert (exported.spec.max_length, exported.spec.pooling, exported.spec.dim) == (20, "cls", 16)
    texts = ["WHERE Is The Nile?", "the river runs on " * 20]
    original = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert original.similarity_fn_name == "cosine"  # where no file says otherwise: so rows of length 1
    theirs = original.encode(texts, normalize_embeddings=True)
    with Encoder(tmp_path / "out", calibration=0.0) as encoder:
        np.testing.assert_allclose(encoder.encode_passages(texts), theirs, atol=1e-5)


def test_overrides_change_what_the_original_is_compared_by(bert, tmp_path):
    pytest.importorskip("sentence_transformers")
    folder = sentence_transformer(tmp_path / "st", {"pooling_mode_mean_tokens": True}, bert=bert)
    overrides = Overrides(pooling="last", max_length=16, dim=8)
    exported = export(str(folder), tmp_path / "out", precision="fp32", overrides=overrides, say=silent)
    assert exported.manifest["parity"]["cosine_min"] > 0.9999 and exported.spec.pooling == "last"


def test_the_tokenizer_is_what_transformers_makes_of_the_files(bert, tmp_path):
    """BERT's lower-cases by tokenizer_config.json, whatever tokenizer.json says."""
    transformers = pytest.importorskip("transformers")
    folder = shutil.copytree(bert, tmp_path / "c")
    record = orjson.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(record | {"do_lower_case": True}))
    made = save_tokenizer(fetch_checkpoint(str(folder), into=tmp_path / "clean"), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)("ABC Def")["input_ids"]
    assert Tokenizer.from_file(str(made)).encode("ABC Def").ids == theirs
    assert theirs != Tokenizer.from_file(str(folder / "tokenizer.json")).encode("ABC Def").ids


def test_special_tokens_that_transformers_5_lists_are_read(bert, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = shutil.copytree(bert, tmp_path / "c")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_tokens(["<a>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    record = orjson.loads((folder / "tokenizer_config.json").read_bytes())
    record |= {"extra_special_tokens": ["<a>"], "tokenizer_class": "TokenizersBackend", "backend": "tokenizers"}
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(record))
    source = fetch_checkpoint(str(folder), into=tmp_path / "clean")
    assert load_tokenizer(source.path)("<a>")["input_ids"][1] == len(tokenizer) - 1


def test_heads_that_were_pruned_are_left_out(bert, tmp_path):
    transformers = pytest.importorskip("transformers")
    if transformers.__version__ >= "5":
        pytest.skip("transformers 5 prunes no heads")
    folder = shutil.copytree(bert, tmp_path / "c")
    model = transformers.AutoModel.from_pretrained(folder)
    model.prune_heads({0: [1]})
    model.save_pretrained(folder)
    made = export(str(folder), tmp_path / "out", precision="fp32", overrides=Overrides(pooling="mean"), say=silent)
    assert made.manifest["parity"]["cosine_min"] > 0.9999 and not explain(str(folder))["refused"]


def test_the_original_reads_the_longest_text_first(bert, tmp_path, monkeypatch):
    """BigBird leaves its sparse attention for good at the first short text, and would equal a graph without it."""
    pytest.importorskip("transformers")
    read = []
    monkeypatch.setattr(gate, "_transformers_row", lambda *of: lambda prompt, text: read.append(text) or np.ones(2))
    source = fetch_checkpoint(str(bert), into=tmp_path / "clean")
    torch_vectors(source, conventions(source, Overrides(pooling="mean"))[0])
    assert read[0] == max(read, key=len)


def test_what_torch_prints_of_a_failed_export_is_not_shown(bert, tmp_path, monkeypatch, capfd):
    torch = pytest.importorskip("torch")

    def fail(*args, **more):
        print("half a graph", file=sys.stderr)
        raise ValueError("Could not guard on data-dependent expression")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ModelError, match=r"torch cannot export .*data-dependent"):
        export(str(bert), tmp_path / "out", precision="fp32", say=silent)
    assert "half a graph" not in capfd.readouterr().err


def test_weights_that_are_not_there_are_refused(bert, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(bert, tmp_path / "c")
    weights = {name: array for name, array in load_file(folder / "model.safetensors").items() if "layer.1" not in name}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 16 weights of BertModel, such as encoder\.layer\.1"):
        export(str(folder), tmp_path / "out", precision="fp32", say=silent)


def test_an_unknown_activation_is_refused_by_name(bert, tmp_path):
    folder = with_dense(tmp_path / "st", bert=bert, pooling="pooling_mode_mean_tokens", layers=[(16, "Hardswish")])
    with pytest.raises(ModelError, match="2_Dense of the checkpoint ends in Hardswish; supported: Identity, Tanh"):
        export(str(folder), tmp_path / "out", precision="fp32", say=silent)


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "lasttoken"])
def test_prompts_that_are_not_pooled_equal_sentence_transformers(bert, tmp_path, mode):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    prompts = {"query": "Represent this question: ", "document": ""}
    pooling = {f"pooling_mode_{mode}": True, "include_prompt": False}
    folder = sentence_transformer(tmp_path / "st", pooling, bert=bert, prompts=prompts)
    export(str(folder), tmp_path / "out", precision="fp32", say=silent)
    texts = ["where is the Nile?", "Привет", "x"]
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts, prompt_name="query")
    with Encoder(tmp_path / "out", calibration=0.0) as encoder:
        np.testing.assert_allclose(encoder.encode_queries(texts, calibrate=False), theirs, atol=1e-5)


def test_rows_may_be_cut_to_their_first_numbers(bert, tmp_path):
    whole = export(str(bert), tmp_path / "whole", precision="fp32", say=silent)
    cut = export(str(bert), tmp_path / "cut", precision="fp32", overrides=Overrides(dim=8), say=silent)
    assert cut.spec.dim == 8 and cut.fingerprint != whole.fingerprint
    with Encoder(whole.path) as long, Encoder(cut.path) as short:
        rows = long.encode_passages(["abc", "x y"])[:, :8]
        expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(short.encode_passages(["abc", "x y"]), expected, atol=1e-6)
    with pytest.raises(ModelError, match="rows of 32 numbers: --dim cannot be 33"):
        export(str(bert), tmp_path / "more", precision="fp32", overrides=Overrides(dim=33), say=silent)


def test_the_same_export_again_is_done_and_another_is_refused(bert, tmp_path):
    """As after a kill between the last rename and the exit; what a killed one left is cleared away."""
    source, out, said = tmp_path / "bert", tmp_path / "out", []
    shutil.copytree(bert, source)
    (tmp_path / ".out.new" / "checkpoint").mkdir(parents=True)
    first = export(str(source), out, precision="fp32", say=silent)
    assert {path.name for path in tmp_path.iterdir()} == {"bert", "out"}
    assert export(str(source), out, precision="fp32", say=said.append).fingerprint == first.fingerprint
    assert said == [f"{out} is there already, made by the same command"]
    with pytest.raises(ModelError, match="exists and is not empty"):
        export(str(source), out, precision="int8", say=silent)
    os.utime(source / "config.json", (2e9, 2e9))  # it was trained further
    with pytest.raises(ModelError, match="exists and is not empty"):
        export(str(source), out, precision="fp32", say=silent)


def test_a_folders_name_is_never_one_of_the_hubs(bert, tmp_path, monkeypatch):
    shutil.copytree(bert, tmp_path / "owner" / "model")
    monkeypatch.chdir(tmp_path)
    folder = export("owner/model", tmp_path / "out", precision="fp32", say=silent)
    assert (folder.manifest["from"], folder.facts.source) == ("folder", "folder:model")


def test_what_a_checkpoint_is_stands_beside_what_its_own_software_does(bert, tmp_path):
    pytest.importorskip("sentence_transformers")
    prompts = {"query": "ask: ", "document": ""}
    folder = sentence_transformer(tmp_path / "st", {"pooling_mode_cls_token": True}, bert=bert, prompts=prompts)
    record = explain(str(folder))
    differ = {name for name, (theirs, ours) in record["facts"].items() if theirs != ours}
    assert differ == {"tokenizer", "graph", "told by", "prompts that are not used"} and not record["refused"]
    assert record["facts"]["query prompt"] == ("ask: ", "ask: ") and record["facts"]["pooling"] == ("cls", "cls")
    (folder / "1_Pooling" / "config.json").write_bytes(orjson.dumps({"pooling_mode_mean_sqrt_len_tokens": True}))
    refused = explain(str(folder))["refused"]
    assert "pools by mean_sqrt_len_tokens" in refused[0]


def test_a_plain_checkpoint_is_explained_by_transformers(bert, tmp_path):
    record = explain(str(bert))
    theirs = {name: value for name, (value, _) in record["facts"].items() if value is not None}
    assert theirs == {
        "modules": "BertModel", "longest text": 128, "dimensions": 32, "lower-cased": False,
        "tokenizer": theirs["tokenizer"],
    }  # fmt: skip
    assert record["software"].startswith("transformers ") and not record["refused"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mbart", "is_encoder_decoder": True}, r"is an encoder-decoder \(mbart\): of these, only t5"),
        ({"model_type": "of_next_year"}, "transformers .* cannot load .*of_next_year.*pip install -U transformers"),
        ({"hidden_size": "wide"}, "does not say how wide|cannot load"),
        ({"num_attention_heads": 5}, "cannot load .*hidden size .* multiple of the number of attention heads"),
        ({"model_type": "vit"}, "takes no input_ids.*, so it is no text encoder"),
    ],
)
def test_what_transformers_cannot_do_is_one_line_before_anything_is_exported(bert, tmp_path, config, said):
    shutil.copytree(bert, tmp_path / "c")
    record = orjson.loads((tmp_path / "c" / "config.json").read_bytes()) | config
    (tmp_path / "c" / "config.json").write_bytes(orjson.dumps(record))
    refused = explain(str(tmp_path / "c"))["refused"]
    assert len(refused) >= 1 and re.search(said, refused[-1]) and "\n" not in refused[-1]
    with pytest.raises(ModelError):
        export(str(tmp_path / "c"), tmp_path / "out", precision="fp32", say=silent)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors", POINTER, "c/model.safetensors is a pointer of Git LFS, not the file itself: download it"),
        ("model.safetensors", b"", "c/model.safetensors is empty"),
        ("model.safetensors", b"<html>" * 9, "c/model.safetensors is cut or damaged"),
        ("model.safetensors", None, "has no weights, not model.safetensors or"),
        ("tokenizer.json", POINTER, "c/tokenizer.json is a pointer of Git LFS"),
        ("config.json", POINTER, "c/config.json is a pointer of Git LFS"),
        ("tokenizer_config.json", b'{"a":' * 300 + b"1" + b"}" * 300, "cannot be read as JSON .Recursion limit"),
        ("special_tokens_map.json", b'{"a":' * 900 + b"1" + b"}" * 900, "cannot be read as JSON .Recursion limit"),
        ("onnx/model.onnx", POINTER, "model.onnx is a pointer of Git LFS.* Or delete its onnx folder"),
        ("config.json", b'{"model_type": "bert", "vocab_size": "many"}', "has vocab_size = 'many', where a value"),
        (
            "config.json",
            b'{"model_type": "bert", "hidden_size": 48, "vocab_size": 9}',
            "size mismatch.*correct its conf",
        ),
    ],
)
def test_what_is_damaged_is_named(bert, tmp_path, file, content, said):
    pytest.importorskip("torch")
    folder = shutil.copytree(bert, tmp_path / "c")
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(ModelError) as error:
        export(str(folder), tmp_path / "out", precision="fp32", say=silent)
    assert re.search(said, str(error.value)) and "\n" not in str(error.value)


def test_weights_under_another_name_are_named(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "c")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(
        ModelError, match=r"has consolidated\.safetensors, not model\.safetensors or pytorch_model\.bin"
    ):
        fetch_checkpoint(str(folder), into=tmp_path / "copy")


def test_a_shard_that_is_cut_or_missing_is_named(bert, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(bert, tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for part, name in enumerate(names):
        save_file(
            {key: weights[key] for key in sorted(weights)[part::2]}, str(folder / name), metadata={"format": "pt"}
        )
    where = {key: names[i % 2] for i, key in enumerate(sorted(weights))}
    (folder / "model.safetensors.index.json").write_bytes(orjson.dumps({"metadata": {}, "weight_map": where}))
    load_weights("AutoModel", fetch_checkpoint(str(folder), into=tmp_path / "whole"))
    with open(folder / names[1], "r+b") as file:
        file.truncate(file.seek(0, 2) - 4)
    with pytest.raises(ModelError, match=rf"c/{names[1]} is cut or damaged"):
        load_weights("AutoModel", fetch_checkpoint(str(folder), into=tmp_path / "cut"))
    (folder / names[1]).unlink()
    with pytest.raises(ModelError, match=rf"c/{names[1]} is not there, or a link to nothing"):
        load_weights("AutoModel", fetch_checkpoint(str(folder), into=tmp_path / "less"))


def test_a_tokenizer_of_another_model_is_refused_before_the_export(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "c")
    record = orjson.loads((folder / "tokenizer.json").read_bytes())
    record["model"]["vocab"]["a"] = 5000
    (folder / "tokenizer.json").write_bytes(orjson.dumps(record))
    (refused,) = explain(str(folder))["refused"]
    assert re.search(r"writes tokens up to 5000, and the model knows \d+ of them, so it is of another model", refused)


def test_distilbert_calls_its_width_otherwise_and_takes_no_segments(bert, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = shutil.copytree(bert, tmp_path / "distilbert")
    config = transformers.DistilBertConfig(vocab_size=200, dim=48, n_layers=1, n_heads=2, hidden_dim=64)
    transformers.DistilBertModel(config).save_pretrained(folder)
    source = fetch_checkpoint(str(folder), into=tmp_path / "clean")
    assert conventions(source)[0].dim == 48
    assert gate.encoder_inputs(source, load_weights("AutoModel", source)) == ["input_ids", "attention_mask"]


def test_a_hub_repository_with_onnx_needs_no_torch(tmp_path, bert):
    """A checkpoint that ships its graph: no torch, and int8 is compared with that graph."""
    first = export(str(bert), tmp_path / "first", precision="fp32", say=silent)
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes((first.path / "model.onnx").read_bytes())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((bert / name).read_bytes())
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from pathlib import Path; from xqg_vdb.export.encoder import export\n"
        f"export({str(folder)!r}, Path({str(tmp_path / 'out')!r}), precision='fp32', say=lambda l: None)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Encoder(tmp_path / "out") as ours, Encoder(first.path) as theirs:
        np.testing.assert_allclose(ours.encode_passages(["abc"]), theirs.encode_passages(["abc"]), atol=1e-6)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (
            ["model.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin"],
            {"model.safetensors", "2_Dense/pytorch_model.bin"},
        ),
        (["pytorch_model.bin", "training_args.bin"], {"pytorch_model.bin"}),
        (
            ["onnx/model.onnx", "model.safetensors", "2_Dense/model.safetensors"],
            {"onnx/model.onnx", "2_Dense/model.safetensors"},
        ),
    ],
)
def test_what_is_taken_from_the_hub(there, wanted, tmp_path, monkeypatch):
    """Pickles only where a folder has no safetensors; beside the publisher's graph no weights but the projections'."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    taken, files = set(), [*there, "modules.json", "modeling.py", "1_Pooling/config.json"]
    info = SimpleNamespace(sha="0" * 40, siblings=[SimpleNamespace(rfilename=name) for name in files])

    def download(name, *, revision, allow_patterns, ignore_patterns):
        taken.update(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        fetch_checkpoint("owner/model", into=tmp_path / "clean")
    assert taken == wanted | {"modules.json", "1_Pooling/config.json"}


def test_without_torch_the_message_names_the_extra(bert, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r'pip install "xqg-vdb\[export\]"'):
        export(str(bert), tmp_path / "model", say=silent)


@pytest.mark.parametrize(
    ("transposed", "gated", "biased"), [(False, True, False), (True, True, True), (True, False, True)]
)
def test_experts_in_a_graph_give_what_the_chosen_ones_give(transposed, gated, biased):
    """Against the sum over each token's own experts, which is what transformers computes."""
    torch = pytest.importorskip("torch")
    from xqg_vdb.export import graphs

    dim, inner, number = 6, 10, 4
    model, random = torch.nn.Module(), torch.Generator().manual_seed(0)
    model.layer = torch.nn.Module()
    experts = model.layer.experts = torch.nn.Module()
    experts.is_transposed, experts.has_gate, experts.has_bias = transposed, gated, biased
    experts.act_fn, first = torch.nn.functional.gelu, "gate_up_proj" if gated else "up_proj"
    experts._apply_gate = lambda rows: rows.chunk(2, dim=-1)[1] * experts.act_fn(rows.chunk(2, dim=-1)[0])
    for name, (reads, gives) in {first: (dim, inner * (1 + gated)), "down_proj": (inner, dim)}.items():
        shape = (number, reads, gives) if transposed else (number, gives, reads)
        setattr(experts, name, torch.nn.Parameter(torch.randn(shape, generator=random)))
        setattr(experts, f"{name}_bias", torch.nn.Parameter(torch.randn(number, gives, generator=random)))
    hidden, shares = torch.randn(7, dim, generator=random), torch.rand(7, 2, generator=random)
    chosen = torch.stack([torch.randperm(number, generator=random)[:2] for _ in hidden])

    def linear(rows, name, i):
        weight = getattr(experts, name)[i]
        return rows @ (weight if transposed else weight.T) + (getattr(experts, f"{name}_bias")[i] if biased else 0)

    wanted = torch.zeros_like(hidden)
    for token, of in enumerate(chosen.tolist()):
        for i, share in zip(of, shares[token], strict=True):
            rows = linear(hidden[token], first, i)
            wanted[token] += share * linear((experts._apply_gate if gated else experts.act_fn)(rows), "down_proj", i)
    assert set(graphs._spread_experts(model)) == {"layer.experts"}
    torch.testing.assert_close(model.layer.experts(hidden, chosen, shares), wanted)


@pytest.mark.parametrize("file", ["1_Pooling/config.json", "sentence_bert_config.json", "tokenizer_config.json"])
def test_a_configuration_that_is_a_list_is_refused_by_name(file, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("[1]")
    with pytest.raises(ModelError, match=rf"{file} holds a list, not names with values"):
        read_json(tmp_path / file, default={})
