"""Our decoding against `transformers.generate`, token for token, on small random models; quantisation and its gate."""

import os
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
import pytest

from xqg_vdb.errors import MismatchError, ModelError
from xqg_vdb.export.quantise import ZERO, pack
from xqg_vdb.generate.local import CausalGenerator, Seq2SeqGenerator
from xqg_vdb.generate.prompts import CausalPrompt, few_shot
from xqg_vdb.models.decoder import CausalModel, Decoding, describe_folder
from xqg_vdb.models.folder import open_model_folder
from xqg_vdb.texts.corpus import read_corpus, sample_corpus
from xqg_vdb.types import Passage

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx")

LANGS = ["de", "sw", "hi"]
PASSAGES = [
    Passage(f"p{i}", f"Passage {i} " + "xyzABC"[i % 6] * (5 + i * 3 % 17) + " on rivers", title=f"t{i}")
    for i in range(16)
]
PROMPT = CausalPrompt("test", "Example: q\n", "Ask in {language}:", stop=())


@pytest.fixture(scope="module")
def folders(tiny_generator):
    made = {kind: tiny_generator(kind) for kind in ("mt5", "gemma", "llama")}
    return {kind: (checkpoint, open_model_folder(export)) for kind, (checkpoint, export) in made.items()}


def causal(folder, decoding, prompt=PROMPT):
    return CausalGenerator(CausalModel(folder, stop=(), threads=1), prompt=prompt, decoding=decoding)


def texts(records):
    return [text for record in records for lang in LANGS for text in record.queries[lang]]


@pytest.mark.parametrize("kind", ["mt5", "gemma", "llama"])
def test_equals_transformers_generate_at_batch_1_and_16(folders, kind):
    checkpoint, folder = folders[kind]
    decoding = Decoding(mode="greedy", max_tokens=12)
    if kind == "mt5":
        reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint)
        ours = Seq2SeqGenerator(folder, decoding=decoding, threads=1)
        tokenizer, skip = ours.tokenizer, 0
        prompts = [ours.input_ids(passage, lang) for passage in PASSAGES for lang in LANGS]
    else:
        reference = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager")
        ours = causal(folder, decoding)
        tokenizer, skip = ours.model.tokenizer, 1
        parts = [(PROMPT.prefix, *PROMPT.passage_parts(p), PROMPT.ending(lang)) for p in PASSAGES for lang in LANGS]
        prompts = [[i for part in several for i in ours.model.ids(part)] for several in parts]
    expected = []
    for ids in prompts:
        rows = reference.generate(torch.tensor([ids]), max_new_tokens=12, pad_token_id=0, do_sample=False).tolist()
        expected += [" ".join(tokenizer.decode(row[len(ids) * skip :]).split()) for row in rows]
    one = [text for passage in PASSAGES for text in texts(ours.generate_batch([passage], query_langs=LANGS, n=2))]
    assert texts(ours.generate_batch(PASSAGES, query_langs=LANGS, n=2)) == one
    assert one == expected


@pytest.mark.parametrize("kind", ["mt5", "llama"])
def test_the_gate_sees_another_models_logits(folders, kind):
    from xqg_vdb.export.generator import LARGEST_DIFFERENCE, measure_logits

    checkpoint, folder = folders[kind]
    assert folder.manifest["parity"]["logits_differ"] < 1e-4
    name = "AutoModelForSeq2SeqLM" if kind == "mt5" else "AutoModelForCausalLM"
    model = getattr(transformers, name).from_pretrained(checkpoint, attn_implementation="eager").eval()
    assert measure_logits(model, folder)["logits_differ"] < 1e-4
    model.lm_head.weight.data.mul_(1.1)  # as a family with a scale of its own: the same tokens, other probabilities
    assert measure_logits(model, folder)["logits_differ"] > LARGEST_DIFFERENCE


@pytest.mark.parametrize("kind", ["mt5", "gemma"])
def test_samples_do_not_depend_on_order_batch_or_company(folders, kind):
    settings = Decoding(top_k=10, max_tokens=10)
    ours = (
        Seq2SeqGenerator(folders[kind][1], decoding=settings, threads=1)
        if kind == "mt5"
        else causal(folders[kind][1], settings)
    )
    whole = {r.id: r for r in ours.generate_batch(PASSAGES, query_langs=LANGS, n=3)}
    backwards = {r.id: r for r in ours.generate(PASSAGES[::-1], query_langs=LANGS, n=3)}
    assert whole == backwards
    fewer = ours.generate_batch(PASSAGES[3:4], query_langs=["sw"], n=2)[0]
    assert fewer.queries["sw"] == whole["p3"].queries["sw"][:2]
    again = ours.generate_batch(PASSAGES[3:4], query_langs=["sw"], n=2, attempt=1)[0]
    assert again.queries["sw"] != fewer.queries["sw"]
    assert len({text for record in whole.values() for several in record.queries.values() for text in several}) > 72


def test_what_is_recorded_of_a_local_checkpoint_is_its_own_name(folders):
    checkpoint, folder = folders["llama"]
    found = causal(folder, Decoding()).settings
    assert (found["source"], found["revision"]) == (checkpoint.name, "local")
    assert str(checkpoint.parent) not in repr(found)
    from_hub = replace(folder, manifest={**folder.manifest, "source": "google/gemma-3-270m", "revision": "3f1c"})
    assert describe_folder(from_hub)["source"] == "google/gemma-3-270m"


def test_a_long_passage_is_cut_and_the_instruction_stays(folders):
    settings = Decoding(mode="greedy", max_tokens=6)
    short = CausalPrompt("test", "Example: q\n", "Ask in {language}:", stop=(), max_passage_tokens=40)
    ours = causal(folders["llama"][1], settings, short)
    long, cut = Passage("a", "word " * 200_000), Passage("a", "word " * 30)
    kept = ours.model.ids("Passage: " + "word " * 30)[:40]
    assert ours._body(long, 5) == ours._body(cut, 5) == kept + ours.model.ids("\n")
    assert ours.truncated == 2
    assert (
        ours.generate_batch([long], query_langs=["de"], n=1)[0].queries
        == ours.generate_batch([cut], query_langs=["de"], n=1)[0].queries
    )
    seq2seq = Seq2SeqGenerator(folders["mt5"][1], decoding=settings, max_input=64, threads=1)
    ids = seq2seq.input_ids(long, "de")
    assert len(ids) == 64 and ids[-1] == 1
    assert seq2seq.tokenizer.decode(ids).startswith("Generate a German question for this passage: word")


def test_prompt_without_room_is_refused(folders):
    ours = causal(folders["llama"][1], Decoding(max_tokens=1024))
    ours.model.max_length = 1050
    with pytest.raises(ModelError, match="leave no room for a passage in the model's 1050 tokens"):
        ours.generate_batch(PASSAGES[:1], query_langs=["de"], n=1)


def test_packing_is_within_half_a_step_and_exact_for_8_bit_blocks():
    weights = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    blocks, scales = pack(weights)
    steps = np.repeat(scales, 32, axis=1)
    unpacked = ((blocks.astype(np.float32) - ZERO) * scales[:, :, None]).reshape(weights.shape)
    assert np.abs(unpacked - weights).max() <= (steps / 2).max() * 1.001
    again = pack(unpacked)
    assert (again[0] == blocks).all()


@pytest.fixture
def exported_before(folders, monkeypatch):
    """The fp32 folder of an export is the one that is there: tracing it again would show nothing new."""
    from xqg_vdb.export import generator as export

    def copied(source, folder, *, say):
        there = next(plain for checkpoint, plain in folders.values() if str(checkpoint) == source.source)
        return replace(there, path=Path(shutil.copytree(there.path, folder)))

    monkeypatch.setattr(export, "_fp32_folder", copied)


@pytest.mark.parametrize("kind", ["mt5", "gemma"])
def test_int8_export_is_measured_and_smaller(folders, kind, tmp_path, exported_before):
    from xqg_vdb.export.encoder import export

    checkpoint, plain = folders[kind]
    folder = export(str(checkpoint), tmp_path / "int8", precision="int8", generator=True, say=lambda _: None)
    parity = folder.manifest["parity"]
    assert parity["token_agreement"] > 0.9 and parity["tokens"] == 128
    assert open_model_folder(folder.path).fingerprint != plain.fingerprint
    assert (folder.path / "model.onnx").stat().st_size < 0.9 * (plain.path / "model.onnx").stat().st_size


def test_a_wrecked_quantisation_is_refused(folders, tmp_path, monkeypatch, exported_before):
    from xqg_vdb.export import generator, quantise
    from xqg_vdb.export.encoder import export

    monkeypatch.setattr(quantise, "ZERO", 96)  # as if blocks were read with another zero point
    monkeypatch.setattr(generator, "quantise_graph", quantise.quantise_graph)
    with pytest.raises(MismatchError, match="8-bit weights change this model too much: same next token"):
        export(str(folders["llama"][0]), tmp_path / "int8", generator=True, say=lambda _: None)
    assert not (tmp_path / "int8").exists() and not list(tmp_path.iterdir())


def test_encoder_decoders_without_t5s_shape_are_refused_by_name(folders, tmp_path):
    from xqg_vdb.export.encoder import export

    shutil.copytree(folders["llama"][0], tmp_path / "c")
    config = orjson.loads((tmp_path / "c" / "config.json").read_bytes())
    config |= {"model_type": "mbart", "is_encoder_decoder": True}
    (tmp_path / "c" / "config.json").write_bytes(orjson.dumps(config))
    with pytest.raises(ModelError, match=r"encoder-decoder \(mbart\): of these, only t5, mt5, umt5 export"):
        export(str(tmp_path / "c"), tmp_path / "out", precision="fp32", generator=True, say=lambda _: None)


def test_explain_says_that_it_is_a_generator_and_what_would_be_refused(folders, tmp_path):
    from xqg_vdb.export.encoder import explain

    record = explain(str(folders["llama"][0]))
    assert record["kind"] == "generator" and not record["refused"]
    facts = {name: ours for name, (_, ours) in record["facts"].items()}
    assert facts == {
        "modules": "decoder", "max_length": 2048, "bos": None, "eos": [1], "chat": False, "finetuned": None,
    }  # fmt: skip
    folder = shutil.copytree(folders["llama"][0], tmp_path / "c")
    config = orjson.loads((folder / "config.json").read_bytes()) | {"layer_types": ["conv"]}
    (folder / "config.json").write_bytes(orjson.dumps(config))
    (refused,) = explain(str(folder))["refused"]
    assert (
        "has layers of conv; only those of full and sliding attention can be exported: let a server run it" in refused
    )


def test_the_graph_names_no_file_of_this_machine(folders):
    assert b".py" not in (folders["llama"][1].path / "model.onnx").read_bytes()


def test_generators_refuse_folders_of_another_kind(folders):
    with pytest.raises(ModelError, match="holds a seq2seq-generator, where a causal-generator is needed"):
        CausalModel(folders["mt5"][1], stop=())
    with pytest.raises(ModelError, match="holds a causal-generator, where a seq2seq-generator is needed"):
        Seq2SeqGenerator(folders["llama"][1], decoding=Decoding())


def test_opening_picks_the_prompt_and_checks_scripts(folders, tmp_path):
    from xqg_vdb.generate.local import open_generator

    path = folders["llama"][1].path
    with pytest.raises(ModelError, match=r"does not know the script of Hindi \(hi\), Russian \(ru\): leave them out"):
        open_generator(path, query_langs=["de", "hi", "ru"], threads=1)
    assert open_generator(path, query_langs=["nl", "sw"], threads=1).settings["translation"]["pairs"] == 16
    with pytest.raises(ModelError, match="has no chat template"):
        open_generator(path, query_langs=["nl"], prompt="chat", threads=1)
    moved = shutil.copytree(path, tmp_path / "copy")
    (moved / "model.onnx").write_bytes(b"\0" * 100)
    with pytest.raises(Exception, match="is not the file that was exported"):
        open_generator(moved, query_langs=["nl"])


def test_the_starter_generator_equals_transformers_generate():
    """Slow (minutes, 3 GB): needs XQG_TEST_STARTER_GENERATOR, a folder with `checkpoint` and its fp32 export `fp32`."""
    root = os.environ.get("XQG_TEST_STARTER_GENERATOR")
    if not root:
        pytest.skip("set XQG_TEST_STARTER_GENERATOR to a folder with the starter's checkpoint and its fp32 export")
    passages = list(islice(read_corpus(sample_corpus().corpus, detect=False), 16))
    prompt, folder = few_shot(), open_model_folder(Path(root) / "fp32")
    ours = causal(folder, Decoding(mode="greedy", max_tokens=16), prompt)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        Path(root) / "checkpoint", attn_implementation="eager"
    )
    expected = []
    for passage in passages:
        parts = (prompt.prefix, *prompt.passage_parts(passage), prompt.ending("de"))
        ids = [ours.model.bos, *(i for part in parts for i in ours.model.ids(part))]
        rows = reference.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=16)
        expected.append(prompt.cut(ours.model.tokenizer.decode(rows[0, len(ids) :].tolist())))
    one = [ours.generate_batch([passage], query_langs=["de"], n=1)[0].queries["de"][0] for passage in passages]
    several = [record.queries["de"][0] for record in ours.generate_batch(passages, query_langs=["de"], n=1)]
    assert one == several == expected
