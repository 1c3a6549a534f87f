"""The device of the CUDA tests: a GPU, or the CPU under Triton's interpreter, or a loud skip."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest


def card() -> Any:
    """torch.device; skips where nothing can run the kernels."""
    if find_spec("triton") is None or find_spec("torch") is None:
        pytest.skip("CUDA TESTS SKIPPED: torch or triton is not installed (make check-cuda)")
    import torch

    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("CUDA TESTS SKIPPED: no GPU (make check-cuda, or TRITON_INTERPRET=1)")
    return torch.device("cuda", torch.cuda.current_device())
