"""Writes the modules of `torch_graphs` as ONNX: example inputs, names, axes, the trace; loaded by `export` only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def trace(
    module: nn.Module, example: Sequence[Tensor], inputs: Sequence[str], outputs: Sequence[str],
    axes: dict[str, dict[int, str]], path: str,
) -> None:  # fmt: skip
    """Write `module` as ONNX (opset 18, weights outside the file) to `path`."""
    with torch.no_grad():
        torch.onnx.export(
            module.eval(),
            tuple(example),
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=18,
            dynamo=False,
            do_constant_folding=False,  # tied embeddings stay one tensor; onnxruntime folds at load,
        )


def causal_example(config: Any) -> tuple[list[Tensor], list[str], list[str], dict[str, dict[int, str]]]:
    """Example inputs, input names, output names and dynamic axes of a `CausalGraph`."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return _decoder_example(config.num_hidden_layers, heads, head_dim)


def decoder_example(config: Any) -> tuple[list[Tensor], list[str], list[str], dict[str, dict[int, str]]]:
    """The same for a `DecoderGraph`."""
    layers = config.num_decoder_layers
    example, inputs, outputs, axes = _decoder_example(layers, config.num_heads, config.d_kv)
    cross = [name for i in range(layers) for name in (f"cross_key.{i}", f"cross_value.{i}")]
    example[8:8] = [torch.ones(2, 5, dtype=torch.bool)]
    inputs[8:8] = ["cross_mask"]
    axes["cross_mask"] = {0: "B", 1: "E"}
    example += [torch.randn(2, config.num_heads, 5, config.d_kv) for _ in cross]
    axes.update({name: {0: "B", 2: "E"} for name in cross})
    return example, inputs + cross, outputs, axes


def encoder_example(config: Any) -> tuple[list[Tensor], list[str], list[str], dict[str, dict[int, str]]]:
    """The same for an `EncoderGraph`."""
    cross = [name for i in range(config.num_decoder_layers) for name in (f"cross_key.{i}", f"cross_value.{i}")]
    axes = {name: {0: "B", 2: "E"} for name in cross} | {"tokens": {0: "B", 1: "E"}, "cross_mask": {0: "B", 1: "E"}}
    return (
        [torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.bool)],
        ["tokens", "cross_mask"],
        cross,
        axes,
    )


def _decoder_example(
    layers: int, heads: int, width: int
) -> tuple[list[Tensor], list[str], list[str], dict[str, dict[int, str]]]:
    batch, new, old = 2, 3, 4
    past = [name for i in range(layers) for name in (f"past_key.{i}", f"past_value.{i}")]
    present = [name for i in range(layers) for name in (f"key.{i}", f"value.{i}")]
    integers = {"tokens": (batch, new), "positions": (batch, new), "past_positions": (batch, old)}
    example = [torch.ones(shape, dtype=torch.int64) for shape in integers.values()]
    example += [torch.ones(batch, new, old + new, dtype=torch.bool), torch.tensor([1, 4])]
    example += [torch.tensor([2]), torch.tensor([1]), torch.tensor([5])]
    example += [torch.randn(batch, heads, old, width) for _ in past]
    axes = {"tokens": {0: "B", 1: "S"}, "positions": {0: "B", 1: "S"}, "past_positions": {0: "B", 1: "P"}}
    axes |= {"mask": {0: "B", 1: "S", 2: "T"}, "take": {0: "N"}, "norm": {0: "M"}, "targets": {0: "M"}}
    axes |= {"top_scores": {0: "N", 1: "K"}, "top_tokens": {0: "N", 1: "K"}, "log_norm": {0: "M"}}
    axes |= {"target_log_probabilities": {0: "M"}}
    axes |= {name: {0: "B", 2: "P"} for name in past} | {name: {0: "B", 2: "T"} for name in present}
    return (
        example,
        [*integers, "mask", "take", "k", "norm", "targets", *past],
        ["top_scores", "top_tokens", "log_norm", "target_log_probabilities", *present],
        axes,
    )
