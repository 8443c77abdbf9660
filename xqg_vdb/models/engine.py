"""onnxruntime in one place: without telemetry, quiet, and with errors in our words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
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


def ort_value(array: NDArray[np.generic]) -> Any:
    """The array as a CPU OrtValue."""
    return runtime().OrtValue.ortvalue_from_numpy(array)
