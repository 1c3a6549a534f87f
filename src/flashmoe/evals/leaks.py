"""Whether a pack was calibrated on what it is measured on.

A calibrated pack's manifest has a sketch of the passages of its calibration text
(text/shingles.py); those of the text that is scored, and of tool-call cases, are looked up in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Literal

from flashmoe.evals.windows import Windows
from flashmoe.store.calibration import SHINGLES
from flashmoe.store.format import Manifest
from flashmoe.text.prompting import chat_prompt
from flashmoe.text.shingles import Sketch, overlap, shingles, sketch
from flashmoe.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from flashmoe.api import Model

Verdict = Literal["not calibrated", "disjoint", "overlaps", "unknown"]
# Distinct texts share a phrase of 13 words now and then.
LEAST_SHARE: Final = 0.001
_OWN: Final = {"bf16", "q8", "q4", "q3", "q2"}


@dataclass(frozen=True)
class Leak:
    """What is known of one evaluation text and a pack's calibration. shared of looked_at shingles
    are in both; one in `sampling` of the calibration's shingles is kept, hence was looked at."""

    verdict: Verdict
    looked_at: int = 0
    shared: int = 0
    sampling: float = 1.0


def passages(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Text of token ids, cut where control tokens stand: turns of a chat, calls, plain text."""
    runs = groupby(ids, key=lambda id: id in tokenizer.markup_ids)
    return [tokenizer.decode(list(run)) for markup, run in runs if not markup]


def text_sketch(model: Model, windows: Windows) -> Sketch:
    """All shingles of the windows of a text."""
    rows = (passages(model.tokenizer, ids.tolist()) for ids in windows.ids)
    return sketch((text for row in rows for text in row), kept=None)


def case_sketch(model: Model, cases: Sequence[Mapping[str, Any]]) -> Sketch:
    """All shingles of tool-call cases but those that several cases have: a template's, tools'."""
    found = [[*_case_texts(model, case)] for case in cases]
    count = Counter(one for texts in found for one in {s for text in texts for s in shingles(text)})
    own = (one for one, cases_with in count.items() if cases_with == 1)
    return sketch(own, kept=None)


def check(manifest: Manifest, text: Sketch) -> Leak:
    """Whether a pack's calibration text has passages of another text. Raises PackError."""
    if not manifest.calibration:
        return Leak("not calibrated" if _rounded_here(manifest) else "unknown")
    _, found, encoded = manifest.calibration.partition(SHINGLES)
    if not found or not text.total:
        return Leak("unknown")
    result = overlap(text, Sketch.decode(encoded, "flashmoe.json: calibration"))
    if not result.looked_at:
        return Leak("unknown")
    verdict: Verdict = "overlaps" if result.share >= LEAST_SHARE else "disjoint"
    return Leak(verdict, result.looked_at, result.shared, result.sampling)


def record_text(manifest: Manifest) -> str:
    """What the manifest says of the calibration text, without the sketch."""
    return manifest.calibration.partition(SHINGLES)[0]


def _rounded_here(manifest: Manifest) -> bool:
    """Whether our own rounding made the formats; others may have calibrated theirs."""
    layout = manifest.experts
    return {layout.gate_up.name, layout.down.name} <= _OWN


def _case_texts(model: Model, case: Mapping[str, Any]) -> Iterator[str]:
    prompt = chat_prompt(model.chat_template, model.tokenizer, case["messages"])
    yield from passages(model.tokenizer, prompt.ids)
    yield json.dumps(case["expected"])
