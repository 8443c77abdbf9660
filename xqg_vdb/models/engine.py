"""onnxruntime and tokenizers in one place: without telemetry, quiet, and with errors in our words."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.errors import ModelError

CPU = "CPUExecutionProvider"


def runtime() -> Any:
    """The module onnxruntime. Since 1.32 it keeps a device id and events and looks up a host, unless told not to."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at the import; `disable_telemetry_events()` comes too late
    import onnxruntime

    return onnxruntime


def open_session(path: Path, *, threads: int, provider: str = CPU) -> Any:
    """An `InferenceSession`; threads: inside one operator. Raises ModelError without that provider or for no graph."""
    ort = runtime()
    if provider not in (available := ort.get_available_providers()):
        raise ModelError(f"onnxruntime has no {provider} here; available: {', '.join(available)}.")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime raises its own classes, all plain Exceptions
        raise ModelError(f"onnxruntime cannot load {path}: {str(error)[:200]}; export the model again.") from error


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
    own = len(str(step.get("content", step.get("prepend", ""))))
    return math.prod(map(_growth, inner), start=float(max(1, own)))


def ort_value(array: NDArray[np.generic]) -> Any:
    """The array as a CPU OrtValue."""
    return runtime().OrtValue.ortvalue_from_numpy(array)
