"""What runs graphs and reads tokenizers, in one place: without telemetry, quiet, and with errors in our words."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.errors import MissingExtra, ModelError, no_room
from xqg_vdb.types import Vectors

CPU = "CPUExecutionProvider"

Engine = Literal["onnxruntime", "openvino", "openvino-bf16"]
"""What runs an encoder's graph. `openvino` computes in float32, `openvino-bf16` products in bfloat16."""


def runtime() -> Any:
    """The module onnxruntime. Since 1.32 it keeps a device id and events and looks up a host, unless told not to."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at the import; `disable_telemetry_events()` comes too late
    import onnxruntime

    return onnxruntime


def open_session(path: Path, *, threads: int, provider: str = CPU, saturates: bool = False) -> Any:
    """An `InferenceSession`; threads: inside one operator. Raises ModelError without that provider or for no graph.

    saturates: the graph's 8-bit weights are for another CPU, and this one's fast products of them would overflow.
    """
    ort = runtime()
    if provider not in (available := ort.get_available_providers()):
        raise ModelError(f"onnxruntime has no {provider} here; available: {', '.join(available)}.")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1" if saturates else "0")
    try:
        return ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime raises its own classes, all plain Exceptions
        cure = "free some memory, or export the model again" if no_room(error) else "export the model again"
        raise ModelError(f"onnxruntime cannot load {path}: {str(error)[:200]}; {cure}.") from error


def open_encoder_graph(
    path: Path, *, engine: Engine, threads: int, provider: str, saturates: bool
) -> tuple[frozenset[str], Callable[[Mapping[str, Any]], Vectors]]:
    """An encoder's graph: the names of its inputs, and a function to the tokens' vectors, for many threads at once.

    What the function returns is overwritten when its thread calls it again. Raises MissingExtra, ModelError.
    """
    if engine == "onnxruntime":
        inside = 1 if provider == CPU else threads  # a CPU runs several batches side by side
        session = open_session(path, threads=inside, provider=provider, saturates=saturates)
        output = session.get_outputs()[0].name
        return frozenset(node.name for node in session.get_inputs()), lambda feeds: session.run([output], feeds)[0]
    if saturates:
        raise ModelError(f"{path} has 8-bit weights for a CPU with VNNI: export again here, or use engine onnxruntime.")
    model, process, mine = _compile(path, engine, threads), os.getpid(), threading.local()

    def run(feeds: Mapping[str, Any]) -> Vectors:
        if os.getpid() != process:
            raise ModelError("OpenVINO's threads stay behind at a fork: open the Encoder in the new process.")
        if not hasattr(mine, "request"):
            mine.request = model.create_infer_request()
        mine.request.infer(feeds)
        hidden: Vectors = mine.request.get_output_tensor(0).data
        return hidden

    return frozenset(node.get_any_name() for node in model.inputs), run


def _compile(path: Path, engine: Engine, threads: int) -> Any:
    core = _openvino().Core()
    if engine == "openvino-bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ModelError("This CPU computes nothing in bf16: use the engine openvino.")
    precision = "bf16" if engine == "openvino-bf16" else "f32"
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads}
    try:
        return core.compile_model(str(path), "CPU", hints)
    except Exception as error:  # RuntimeError, and what its parser raises
        reason = " ".join(str(error).split())[-160:]
        raise ModelError(f"OpenVINO cannot load {path}; export the model again (…{reason}).") from error


@cache
def _openvino() -> Any:
    """The module openvino, whose import would write a client's id into the home folder and report it."""
    there = "openvino_telemetry" in sys.modules
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it has a stub for this case
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra(f'The engine needs {error.name}: pip install "xqg-vdb[openvino]".') from error
    finally:
        if not there:
            del sys.modules["openvino_telemetry"]
    return openvino


def engines() -> list[Engine]:
    """The engines that are installed here and that this CPU runs."""
    try:
        capabilities = _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except MissingExtra:
        return ["onnxruntime"]
    return [name for name in get_args(Engine) if name != "openvino-bf16" or "BF16" in capabilities]


@cache
def cpu_has_vnni() -> bool:
    """True when the CPU multiplies 8-bit numbers without saturating 16-bit sums (VNNI, or 64-bit Arm)."""
    import platform

    if platform.machine() in ("aarch64", "arm64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


_MOST_GROWTH = 64


def open_tokenizer(path: Path) -> Any:
    """A `tokenizers.Tokenizer`. Raises ModelError for none, and for one whose replacements multiply a text."""
    from tokenizers import Tokenizer

    try:
        record = orjson.loads(path.read_bytes())
        growth = max(_growth(record.get(part)) for part in ("normalizer", "pre_tokenizer", "decoder"))
        if growth > _MOST_GROWTH or str(record.get("post_processor")).count("'Sequence': {'id': 'A'") > 8:
            raise ValueError("it makes texts many times as long")
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"{path} is not a tokenizer ({str(error)[:200]}); export the model again.") from error


def _growth(step: Any) -> float:
    """How many times as long a text can become in a step: the process aborts where there is no memory for it."""
    if not isinstance(step, dict):
        return 1.0
    inner = [part for value in step.values() if isinstance(value, list) for part in value]
    added = len(str(step.get("content", step.get("prepend", ""))))
    return math.prod(map(_growth, inner), start=float(max(1, added)))


def ort_value(array: NDArray[np.generic]) -> Any:
    """The array as a CPU OrtValue."""
    return runtime().OrtValue.ortvalue_from_numpy(array)
