"""The torch modules that become graphs, and how they are written; loaded by `export` only.

An encoder gives a vector for every token. A generator's decoder is made for many rows over one shared context (a
"tree"): the new tokens of all rows lie side by side in one sequence, and a mask says which earlier slots of the cache
each may see. So a passage's keys and values exist once, whatever the number of languages and samples.

Inputs   tokens, positions (B, S) int64; past_positions (B, P) int64; mask (B, S, P+S) bool; take (N,) int64, flat
         places in (B·S) that reach the output layer; k (1,) int64; norm (M,) int64, places in `take` whose log_norm is
         wanted; targets (M,) int64, one token for each of those;
         past_key.i, past_value.i (B, H, P, D) float32 and for an encoder-decoder cross_key.i, cross_value.i (B, H, E,
         D), cross_mask (B, E) bool
Outputs  top_scores (N, k) logits, best first; top_tokens (N, k); log_norm (M,) log-sum-exp of all logits;
         target_log_probabilities (M,), of `targets`: to score a given text without its (M, vocabulary) logits;
         key.i, value.i (B, H, P+S, D)
"""

from __future__ import annotations

import inspect
import io
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache

from xqg_vdb.errors import ModelError, reason
from xqg_vdb.export.checkpoints import Checkpoint
from xqg_vdb.export.gate import ELSEWHERE, TRACED, encoder_inputs, load_weights, model_class
from xqg_vdb.export.quantise import save_graph

OUTPUT = "last_hidden_state"
OPSET = 18


# An encoder: token ids and mask in, a vector for every token out.


class _Output(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """One output of a model, and nothing else."""

    def __init__(self, model: Any, names: list[str], output: str) -> None:
        super().__init__()
        self.model, self.names, self.output = model, names, output

    def forward(self, *values: Any) -> Any:
        """(batch, length, dim) of an encoder, (batch, 1) of a cross-encoder."""
        return getattr(self.model(**dict(zip(self.names, values, strict=True))), self.output)


def write_encoder(checkpoint: Checkpoint, target: Path, *, cross: bool = False) -> None:
    """Write the fp32 graph of an encoder or a cross-encoder with free batch and length. Raises ModelError."""
    traced, output = checkpoint.config["model_type"] in TRACED, "logits" if cross else OUTPUT
    kind = "AutoModelForSequenceClassification" if cross else model_class(checkpoint)
    model = load_weights(kind, checkpoint, attention="eager" if traced else None).eval()
    _spread_experts(model)
    names = encoder_inputs(checkpoint, model, cross=cross)
    tokens = torch.arange(2 * 16).reshape(2, 16) % 7 + 1
    mask = torch.ones_like(tokens)
    mask[1, 10:] = 0
    example = (tokens, mask, torch.zeros_like(tokens))
    axes = {name: {0: "batch", 1: "length"} for name in (*names, *([] if cross else [OUTPUT]))}
    how: dict[str, Any] = {"dynamo": False, "dynamic_axes": axes}
    if not traced:
        how = {"dynamo": True, "dynamic_shapes": {"values": ({0: _FREE, 1: _FREE},) * len(names)}}
    module = _Output(model, names, output)
    _write(module, dict(zip(names, example, strict=False)), [output], target, checkpoint.source, how)


class _Experts(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """All experts of a layer for every token, those that the router did not choose with the weight 0.

    transformers' ways either have no ONNX form or copy the weights of its experts for each token.
    """

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.experts = (experts,)  # in a tuple, so that its stacked weights are not the graph's
        first, end = (["gate_up_proj", "up_proj"][not experts.has_gate], "down_proj")
        self.weights = nn.ParameterList(
            nn.Parameter(weight if experts.is_transposed else weight.T.contiguous(), requires_grad=False)
            for pair in zip(getattr(experts, first), experts.down_proj, strict=True)
            for weight in pair
        )
        self.biases = [getattr(experts, f"{name}_bias") if experts.has_bias else None for name in (first, end)]

    def forward(self, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Hidden (tokens, dim), the chosen experts and their shares (tokens, k); (tokens, dim)."""
        (experts,), (up, down) = self.experts, self.biases
        total, width = torch.zeros_like(hidden), len(self.weights) // 2
        share = torch.zeros(hidden.shape[0], width, dtype=shares.dtype).scatter(1, chosen, shares)
        for i in range(width):
            rows = hidden @ self.weights[2 * i] + (0 if up is None else up[i])
            rows = experts._apply_gate(rows) if experts.has_gate else experts.act_fn(rows)
            rows = rows @ self.weights[2 * i + 1] + (0 if down is None else down[i])
            if getattr(experts, "has_post_expert_norm", False):
                rows = experts.post_expert_norm(rows)
            total = total + rows * share[:, i : i + 1]
        return total


def _spread_experts(model: Any) -> dict[str, Any]:
    """Put `_Experts` in the place of experts that transformers 5 keeps in stacked weights; those by name."""
    found = {name: m for name, m in model.named_modules() if hasattr(m, "is_transposed") and hasattr(m, "down_proj")}
    for name, module in found.items():
        model.set_submodule(name, _Experts(module))
    return found


_FREE = torch.export.Dim.DYNAMIC


def _write(
    module: nn.Module,
    example: dict[str, Tensor],
    outputs: Sequence[str],
    target: Path,
    source: str,
    how: dict[str, Any],
) -> None:
    """Write `module`, which came from `source`, as ONNX. Raises ModelError."""
    # graphs over 2 GB are written with files of weights: gather them
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as name, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        written = Path(name) / "written.onnx"
        try:
            with redirect_stderr(io.StringIO()):  # where it fails, torch prints half a graph
                torch.onnx.export(
                    module.eval(), tuple(example.values()), str(written), input_names=list(example),
                    output_names=list(outputs), opset_version=OPSET, verbose=False, **how,
                )  # fmt: skip
        except Exception as error:  # torch's exporter raises classes of its own, around those of what it calls
            raise ModelError(f"torch cannot export {source} ({reason(error)}): {ELSEWHERE}.") from error
        model = onnx.load(str(written))
        for node in model.graph.node:
            del node.metadata_props[:]  # lines and paths of this machine's Python files
        save_graph(model, target)


# A generator's modules.

MASKED = -1e9


def _additive(mask: Tensor) -> Tensor:
    """(B, S, T) bool to (B, 1, S, T) float: 0 where visible."""
    return (1.0 - mask.unsqueeze(1).to(torch.float32)) * MASKED


def _best(logits: Tensor, k: Tensor, norm: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    most = torch.clamp(k, max=logits.shape[-1]).item()
    torch._check(most >= 1)  # torch.export knows nothing of a number in a tensor
    torch._check(most <= logits.shape[-1])
    best = torch.topk(logits, most, dim=-1)
    # a pass over the whole vocabulary, so only for the rows that ask: decoding asks for none
    asked = logits.index_select(0, norm)
    log_norm = torch.logsumexp(asked, dim=-1)
    return best.values, best.indices, log_norm, asked.gather(1, targets.unsqueeze(1)).squeeze(1) - log_norm


class _CausalGraph(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """Any decoder-only `transformers` model, with a free attention mask and an output layer for chosen places only."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.body, self.head, self.config = model.model, model.lm_head, model.config
        self.layers = model.config.num_hidden_layers
        self.softcap = getattr(model.config, "final_logit_softcapping", None)
        # Cohere's and Granite's
        self.scale = getattr(model.config, "logit_scale", None) or 1 / getattr(model.config, "logits_scaling", 1)

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
        logits = self.head(hidden.reshape(-1, hidden.shape[-1]).index_select(0, take)) * self.scale
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


class _EncoderGraph(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
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


class _DecoderGraph(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """A T5-shaped decoder over a tree.

    Its position bias comes from the given positions, not from the order of slots.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.decoder
        self.embed, self.blocks, self.norm = decoder.embed_tokens, decoder.block, decoder.final_layer_norm
        self.head, self.layers = model.lm_head, len(self.blocks)
        old = int(transformers.__version__.split(".")[0]) < 5 and getattr(model.config, "tie_word_embeddings", False)
        tied = getattr(model.config, "scale_decoder_outputs", old)
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
    sizes = {
        "bidirectional": False, "num_buckets": attention.relative_attention_num_buckets,
        "max_distance": attention.relative_attention_max_distance,
    }  # fmt: skip
    asked = inspect.signature(attention._relative_position_bucket).parameters  # UMT5's knows its sizes
    buckets = attention._relative_position_bucket(distance, **{k: v for k, v in sizes.items() if k in asked})
    return attention.relative_attention_bias(buckets).permute(0, 3, 1, 2)


# Example inputs and free axes of these modules, and the trace.


def write_causal(model: Any, target: Path, source: str) -> None:
    """Write the graph of a decoder-only model. Raises ModelError."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    experts = _spread_experts(model)
    _trace(_CausalGraph(model), *_decoder_example(config.num_hidden_layers, heads, width), target, source)
    for name, module in experts.items():  # the model is what the graph is compared with
        model.set_submodule(name, module)


def write_seq2seq(model: Any, encoder: Path, decoder: Path, source: str) -> None:
    """Write the two graphs of a T5-shaped model. Raises ModelError."""
    config = model.config
    cross = [name for i in range(config.num_decoder_layers) for name in (f"cross_key.{i}", f"cross_value.{i}")]
    states = {name: torch.randn(2, config.num_heads, 5, config.d_kv) for name in cross}
    tokens, cross_mask = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.bool)
    _trace(_EncoderGraph(model), {"tokens": tokens, "cross_mask": cross_mask}, cross, encoder, source)
    example, outputs = _decoder_example(config.num_decoder_layers, config.num_heads, config.d_kv)
    first = dict(list(example.items())[:8])
    _trace(_DecoderGraph(model), {**first, "cross_mask": cross_mask, **example, **states}, outputs, decoder, source)


def _decoder_example(layers: int, heads: int, width: int) -> tuple[dict[str, Tensor], list[str]]:
    """Inputs by name in the order of `forward`, and the names of the outputs."""
    batch, new, old = 2, 3, 4
    shapes = {"tokens": (batch, new), "positions": (batch, new), "past_positions": (batch, old)}
    example = {name: torch.ones(shape, dtype=torch.int64) for name, shape in shapes.items()}
    example |= {"mask": torch.ones(batch, new, old + new, dtype=torch.bool), "take": torch.tensor([1, 4])}
    example |= {"k": torch.tensor([2]), "norm": torch.tensor([1]), "targets": torch.tensor([5])}
    kinds = [f"{kind}.{i}" for i in range(layers) for kind in ("key", "value")]
    example |= {f"past_{name}": torch.randn(batch, heads, old, width) for name in kinds}
    return example, ["top_scores", "top_tokens", "log_norm", "target_log_probabilities", *kinds]


_AXES = {
    "tokens": 2, "positions": 2, "past_positions": 2, "mask": 3, "cross_mask": 2, "take": 1, "k": 0, "norm": 1,
    "targets": 1,
}  # fmt: skip
"""How many axes of an input are free, from the first on; of all other inputs (B, H, length, D) the first and third."""


def _trace(module: nn.Module, example: dict[str, Tensor], outputs: Sequence[str], target: Path, source: str) -> None:
    shapes = [dict.fromkeys(range(_AXES[name]) if name in _AXES else (0, 2), _FREE) for name in example]
    named = sum(p.kind is not p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())
    nested = (*shapes[:named], *([tuple(shapes[named:])] if shapes[named:] else []))
    _write(module, example, outputs, target, source, {"dynamo": True, "dynamic_shapes": nested})
