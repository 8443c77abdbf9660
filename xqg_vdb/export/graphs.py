"""The torch modules that are traced into generator graphs; loaded by `export` only.

Both decoders have the same face, made for decoding many rows over one shared context (a "tree"): the new tokens of all
rows lie side by side in one sequence, and a mask says which earlier slots of the cache each of them may see. So a
passage's keys and values exist once, whatever the number of languages and samples. That
is also why optimum's decoder graphs do not serve here: their mask is causal by construction and their output layer runs
on every position.

Inputs   tokens, positions (B, S) int64; past_positions (B, P) int64; mask (B, S, P+S) bool; take (N,) int64, flat
places in
         (B·S) that reach the output layer; k (1,) int64; norm (M,) int64, places in `take` whose log_norm is wanted;
         targets (M,) int64, one token for each of those;
         past_key.i, past_value.i (B, H, P, D) float32 and for an encoder-decoder cross_key.i, cross_value.i (B, H, E,
         D), cross_mask (B, E) bool
Outputs  top_scores (N, k) logits, best first; top_tokens (N, k); log_norm (M,) log-sum-exp of all logits;
         target_log_probabilities (M,), of `targets`: to score a given text without its (M, vocabulary) logits;
         key.i, value.i (B, H, P+S, D)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

MASKED = -1e9


def _additive(mask: Tensor) -> Tensor:
    """(B, S, T) bool to (B, 1, S, T) float: 0 where visible."""
    return (1.0 - mask.unsqueeze(1).to(torch.float32)) * MASKED


def _best(logits: Tensor, k: Tensor, norm: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    best = torch.topk(logits, torch.clamp(k[0], max=logits.shape[-1]), dim=-1)
    # a pass over the whole vocabulary, so only for the rows that ask: decoding asks for none
    asked = logits.index_select(0, norm)
    log_norm = torch.logsumexp(asked, dim=-1)
    return best.values, best.indices, log_norm, asked.gather(1, targets.unsqueeze(1)).squeeze(1) - log_norm


class CausalGraph(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """Any decoder-only `transformers` model, with a free attention mask and an output layer for chosen places only."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.body, self.head, self.config = model.model, model.lm_head, model.config
        self.layers = model.config.num_hidden_layers
        self.softcap = getattr(model.config, "final_logit_softcapping", None)

    def forward(
        self, tokens: Tensor, positions: Tensor, past_positions: Tensor, mask: Tensor, take: Tensor, k: Tensor,
        norm: Tensor, targets: Tensor, *past: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """See the module's text."""
        cache = DynamicCache()
        for i in range(self.layers):
            cache.update(past[2 * i], past[2 * i + 1], i)
        hidden = self.body(
            input_ids=tokens,
            attention_mask=self._masks(mask, positions, past_positions),
            position_ids=positions,
            past_key_values=cache,
            cache_position=torch.arange(tokens.shape[1]),  # unused by models with a ready mask and position_ids
            use_cache=True,
        ).last_hidden_state
        logits = self.head(hidden.reshape(-1, hidden.shape[-1]).index_select(0, take))
        if self.softcap:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        new = [tensor for layer in cache.layers[: self.layers] for tensor in (layer.keys, layer.values)]
        return (*_best(logits, k, norm, targets), *new)

    def _masks(self, mask: Tensor, positions: Tensor, past_positions: Tensor) -> Tensor | dict[str, Tensor]:
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        window = getattr(self.config, "sliding_window", None)
        if kinds == {"full_attention"} and not window:
            return _additive(mask)
        slots = torch.cat([past_positions, positions], dim=1)
        near = (positions.unsqueeze(2) - slots.unsqueeze(1)) < int(window or 0)
        if kinds == {"full_attention"}:  # every layer slides (Mistral)
            return _additive(mask & near)
        return {"full_attention": _additive(mask), "sliding_attention": _additive(mask & near)}


class EncoderGraph(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """A T5-shaped encoder that ends in the decoder's cross-attention keys and values, so they are computed once."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.cross = nn.ModuleList(block.layer[1].EncDecAttention for block in model.decoder.block)

    def forward(self, tokens: Tensor, cross_mask: Tensor) -> tuple[Tensor, ...]:
        """Tokens (B, E) int64, cross_mask (B, E) bool; cross_key.i, cross_value.i (B, H, E, D) per decoder layer."""
        hidden = self.encoder(input_ids=tokens, attention_mask=cross_mask.to(torch.int64)).last_hidden_state
        out: list[Tensor] = []
        for attention in self.cross:
            out += [_heads(attention.k(hidden), attention), _heads(attention.v(hidden), attention)]
        return tuple(out)


class DecoderGraph(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """A T5-shaped decoder over a tree.

    Its position bias comes from the given positions, not from the order of slots.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embed, self.blocks, self.norm = (
            model.decoder.embed_tokens,
            model.decoder.block,
            model.decoder.final_layer_norm,
        )
        self.head, self.layers = model.lm_head, len(model.decoder.block)
        tied = getattr(model.config, "tie_word_embeddings", False)
        self.scale = model.config.d_model**-0.5 if tied else 1.0

    def forward(
        self, tokens: Tensor, positions: Tensor, past_positions: Tensor, mask: Tensor, take: Tensor, k: Tensor,
        norm: Tensor, targets: Tensor, cross_mask: Tensor, *states: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """See the module's text; states are the past, then the cross keys and values."""
        past, cross = states[: 2 * self.layers], states[2 * self.layers :]
        slots = torch.cat([past_positions, positions], dim=1)
        distance = slots.unsqueeze(1) - positions.unsqueeze(2)
        visible, source = _additive(mask), _additive(cross_mask.unsqueeze(1))
        hidden, bias, new = self.embed(tokens), None, []
        for i, block in enumerate(self.blocks):
            own, other = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
            if own.has_relative_attention_bias:  # T5 and mT5: in the first layer, for all; UMT5: in every layer
                bias = _relative_bias(own, distance)
            normed = block.layer[0].layer_norm(hidden)
            keys = torch.cat([past[2 * i], _heads(own.k(normed), own)], dim=2)
            values = torch.cat([past[2 * i + 1], _heads(own.v(normed), own)], dim=2)
            hidden = hidden + _attend(own, normed, keys, values, bias + visible)
            normed = block.layer[1].layer_norm(hidden)
            hidden = hidden + _attend(other, normed, cross[2 * i], cross[2 * i + 1], source)
            hidden = block.layer[2](hidden)
            new += [keys, values]
        hidden = self.norm(hidden).reshape(-1, hidden.shape[-1]).index_select(0, take) * self.scale
        return (*_best(self.head(hidden), k, norm, targets), *new)


def _heads(states: Tensor, attention: Any) -> Tensor:
    return states.view(states.shape[0], states.shape[1], attention.n_heads, attention.key_value_proj_dim).transpose(
        1, 2
    )


def _attend(attention: Any, hidden: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """T5's attention: no scaling, bias added to the scores."""
    scores = _heads(attention.q(hidden), attention) @ keys.transpose(2, 3) + bias
    mixed = (scores.softmax(dim=-1) @ values).transpose(1, 2)
    return attention.o(mixed.reshape(hidden.shape[0], hidden.shape[1], attention.inner_dim))


def _relative_bias(attention: Any, distance: Tensor) -> Tensor:
    """(B, S, T) key position minus query position to (B, H, S, T)."""
    buckets = attention._relative_position_bucket(
        distance,
        bidirectional=False,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    return attention.relative_attention_bias(buckets).permute(0, 3, 1, 2)


# Writes the modules of `torch_graphs` as ONNX: example inputs, names, axes, the trace; loaded by `export` only.


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
