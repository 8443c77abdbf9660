"""An encoder's graph from torch: token ids and mask in, a vector for every token out."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

from xqg_vdb.errors import MissingExtra, ModelError
from xqg_vdb.export.checkpoints import Checkpoint, load_weights
from xqg_vdb.models.engine import open_session

TRACED = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"})
"""Families whose traced graph onnxruntime's attention fusion knows (all layers fuse; of the other exporter's none).

Every other family goes through `torch.export`: tracing takes branches of the example for good, silently wrong on some.
"""

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
OUTPUT = "last_hidden_state"
OPSET = 18


def export_graph(checkpoint: Checkpoint, target: Path) -> None:
    """Write the fp32 graph of a checkpoint with free batch and length. Raises ModelError, MissingExtra."""
    try:
        import onnx  # noqa: F401 - torch needs it, and says so late
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtra(f'Exporting needs {error.name}: pip install "xqg-vdb[export]".') from error
    transformers.logging.set_verbosity_error()
    traced = checkpoint.config["model_type"] in TRACED
    model = load_weights("AutoModel", checkpoint, attention="eager" if traced else None).eval()
    segments = traced and int(checkpoint.config.get("type_vocab_size", 0)) > 1
    names = [*INPUTS[:2], *(INPUTS[2:3] if segments else ())]
    missing = set(names) - set(inspect.signature(model.forward).parameters)
    if missing:
        raise ModelError(f"{checkpoint.source} takes no {', '.join(sorted(missing))}, so it is no text encoder.")
    tokens = torch.arange(2 * 16).reshape(2, 16) % 7 + 1
    mask = torch.ones_like(tokens)
    mask[1, 10:] = 0
    example = (tokens, mask, torch.zeros_like(tokens))[: len(names)]
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        try:
            _export(_Tokens(model, names).eval(), example, target, names, traced=traced)
        except Exception as error:  # torch's exporter raises classes of its own and of what it calls
            raise ModelError(f"torch cannot export {checkpoint.source}: {str(error)[:300]}") from error


def _Tokens(model: Any, names: list[str]) -> Any:
    import torch

    class Tokens(torch.nn.Module):  # type: ignore[misc]
        """The vectors of all tokens, and nothing else."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            """(batch, length, dim)."""
            return self.model(**dict(zip(names, values, strict=True))).last_hidden_state

    return Tokens()


def _export(model: Any, example: tuple[Any, ...], target: Path, names: list[str], *, traced: bool) -> None:
    import torch

    names_and_opset: dict[str, Any] = {"input_names": names, "output_names": [OUTPUT], "opset_version": OPSET}
    if traced:
        axes = {name: {0: "batch", 1: "length"} for name in (*names, OUTPUT)}
        torch.onnx.export(model, example, str(target), dynamo=False, dynamic_axes=axes, **names_and_opset)
        return
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = {"values": tuple(free for _ in names)}
    torch.onnx.export(
        model, example, str(target), dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False,
        **names_and_opset,
    )  # fmt: skip


def tokens_first(graph: Path) -> None:
    """Let a publisher's graph give its vectors of tokens first, in place.

    Raises ModelError where it has none, or wants an input that nobody can give.
    """
    session = open_session(graph, threads=1)
    unknown = sorted({node.name for node in session.get_inputs()} - set(INPUTS))
    if unknown:
        raise ModelError(f"The checkpoint's own graph wants {', '.join(unknown)}: delete its onnx folder.")
    outputs = session.get_outputs()
    tokens = [node.name for node in outputs if node.type == "tensor(float)" and len(node.shape) == 3]
    if not tokens:
        raise ModelError("The checkpoint's own graph gives no vectors of tokens: delete its onnx folder.")
    if outputs[0].name == tokens[0]:
        return
    import onnx

    model = onnx.load(str(graph))
    first = next(node for node in model.graph.output if node.name == tokens[0])
    del model.graph.output[:]
    model.graph.output.append(first)
    onnx.save_model(model, str(graph), save_as_external_data=graph.stat().st_size > 1 << 30)
