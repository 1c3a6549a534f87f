"""A text of our own for the embedded model, and short ways to measure it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from flashmoe.demo import demo_model_path
from flashmoe.evals.measure import EvalOptions
from flashmoe.store import format as fmt
from flashmoe.store.calibration import SHINGLES
from flashmoe.store.manifest import to_json
from flashmoe.store.packed import PackedModel
from flashmoe.text.shingles import sketch

_WORDS = ["a", "river", "stone", "went", "slowly", "under", "grey", "and", "nobody", "saw", "how"]


def prose(seed: int, count: int = 400) -> str:
    """Words without sense, with a full stop after every ninth."""
    chosen = np.random.default_rng(seed).choice(_WORDS, count)
    return " ".join(w + "." * (n % 9 == 8) for n, w in enumerate(chosen.tolist()))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(prose(0), encoding="utf-8")
    return path


@pytest.fixture
def options(text_file: Path, tmp_path: Path) -> EvalOptions:
    """Three windows of 16 tokens, and a place to go on from."""
    return EvalOptions(text_file, 3, 16, directory=tmp_path / "journal")


def demo_calibrated_on(text: str, destination: Path) -> Path:
    """A copy of the embedded pack whose manifest says that it was calibrated on a text."""
    copytree(demo_model_path(), destination)
    record = f"a text; sha256 00{SHINGLES}{sketch([text]).encode()}"
    manifest = replace(PackedModel.open(destination).manifest, calibration=record)
    (destination / fmt.MANIFEST).write_bytes(to_json(manifest).encode())
    return destination
