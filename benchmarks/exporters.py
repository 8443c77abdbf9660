"""What the two exporters of torch are worth for a BERT: nodes, closeness, and the speed of its int8 graph.

    python benchmarks/exporters.py                    # a random BERT of the starter's shape, 64 texts of 64 tokens

Families of `export/gate.py`'s `TRACED` are traced; all others go through `torch.export`. Repeats are interleaved, the
ratio is that of medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnx
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from xqg_vdb.export import graphs
from xqg_vdb.export.checkpoints import Checkpoint
from xqg_vdb.export.quantise import quantize_int8
from xqg_vdb.models.engine import open_session


@click.command()
@click.option("--layers", default=12, show_default=True)
@click.option("--repeats", default=9, show_default=True)
def main(layers: int, repeats: int) -> None:
    """Print a line for each exporter, and the ratio of their int8 graphs' seconds."""
    torch.manual_seed(0)
    shape = {"vocab_size": 5000, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
    config = transformers.BertConfig(**shape, num_hidden_layers=layers, max_position_embeddings=512)
    ids = np.random.default_rng(0).integers(0, 5000, (64, 64))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    with tempfile.TemporaryDirectory() as name:
        model = transformers.BertModel(config, add_pooling_layer=False).eval()
        model.save_pretrained(Path(name) / "c")
        words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")), pad_token="[PAD]", unk_token="[UNK]",
            model_input_names=list(feeds),
        ).save_pretrained(Path(name) / "c")  # fmt: skip
        source = Checkpoint(Path(name) / "c", "bert", "local", config.to_dict())
        with torch.inference_mode():
            theirs = model(**{key: torch.tensor(value) for key, value in feeds.items()}).last_hidden_state.numpy()
        sessions = {}
        for how, traced in (("traced", graphs.TRACED), ("torch.export", frozenset[str]())):
            graphs.TRACED = traced
            fp32, int8 = Path(name) / how / "fp32" / "model.onnx", Path(name) / how / "int8.onnx"
            fp32.parent.mkdir(parents=True)
            graphs.write_encoder(source, fp32)
            (Path(name) / how / "int8").mkdir()
            quantize_int8(fp32, int8, samples=[ids[i : i + 1] for i in range(8)])
            nodes = len(onnx.load(str(int8)).graph.node)
            sessions[how] = open_session(int8, threads=1)
            given = {node.name for node in sessions[how].get_inputs()}
            off = [
                np.abs(open_session(graph, threads=1).run(None, {k: feeds[k] for k in given})[0] - theirs).max()
                for graph in (fp32, int8)
            ]
            click.echo(f"{how:<14}{nodes} nodes; fp32 off by {off[0]:.1e}, int8 by {off[1]:.2f}")
        seconds: dict[str, list[float]] = {how: [] for how in sessions}
        for _ in range(repeats):
            for how, session in sessions.items():
                given, begin = {node.name for node in session.get_inputs()}, time.process_time()
                session.run(None, {key: feeds[key] for key in given})
                seconds[how].append(time.process_time() - begin)
        medians = {how: statistics.median(values) for how, values in seconds.items()}
        click.echo(
            f"int8, seconds of the exported to those of the traced: {medians['torch.export'] / medians['traced']:.2f}"
        )


if __name__ == "__main__":
    main()
