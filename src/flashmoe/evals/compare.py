"""Several packs measured alike and beside each other: what `flashmoe eval compare` finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import flashmoe
from flashmoe.errors import UsageError
from flashmoe.evals.divergence import Reference
from flashmoe.evals.journal import Journal, digest, key_of
from flashmoe.evals.leaks import Leak, case_sketch, check, record_text, text_sketch
from flashmoe.evals.measure import EvalOptions
from flashmoe.evals.paired import paired_difference
from flashmoe.evals.perplexity import Progress
from flashmoe.evals.runs import context_for, kept_in, measured, open_reference
from flashmoe.evals.tool_calls import read_cases
from flashmoe.library import find_model
from flashmoe.models.registry import load_family
from flashmoe.store.info import pack_info
from flashmoe.store.model import open_model
from flashmoe.text.shingles import Sketch

Row = dict[str, Any]
_FACTS = (
    "source",
    "family",
    "experts_format",
    "dense_format",
    "bits_per_weight",
    "expert_bits_per_weight",
    "bytes_per_token",
    "total_bytes",
)


def compare(
    models: Sequence[Path],
    options: EvalOptions,
    progress: Progress,
    reference: Path | None = None,
    *,
    noise: bool = True,
) -> dict[str, Any]:
    """All figures for a report: `inputs`, `reference`, `models`, `pairs`, `warnings`.

    Models are opened one after the other. What options.directory has of an earlier run over the
    same packs, texts and settings is not measured again. Raises UsageError for a reference without
    a text, and what `evaluate` raises.
    """
    if reference is not None and options.text is None:
        raise UsageError("a reference needs a text", where="--reference", expected="--text")
    paths, journal = [find_model(path) for path in models], _journal(options)
    with kept_in(options.directory) as directory:
        run = _Comparison(options, progress, directory, journal, noise)
        if reference is not None:
            run.open_reference(find_model(reference))
        rows = [run.row(name.name, path) for name, path in zip(models, paths, strict=True)]
        inputs, sketches = run.inputs(paths[0])
    for row, path in zip(rows, paths, strict=True):
        row["calibration"] = _calibration(path, sketches)
    return {
        "inputs": inputs,
        "reference": run.reference_row,
        "models": rows,
        "pairs": [*pairs(rows)],
        "warnings": [*leak_warnings(rows)],
    }


def _journal(options: EvalOptions) -> Journal:
    return Journal(options.directory and options.directory / "compare.jsonl")


@dataclass
class _Comparison:
    options: EvalOptions
    progress: Progress
    directory: Path
    journal: Journal
    noise: bool
    reference: Reference | None = None
    reference_row: Row | None = None

    def open_reference(self, path: Path) -> None:
        """Measure the reference, or find what an earlier run has kept of it."""
        self.reference_row = {"model": str(path), "identity": open_model(path).identity}
        key, folder = self._key(path, "reference"), self.directory / "reference"
        self.reference = Reference.saved(folder, key)
        if self.reference is None:
            only_text = replace(self.options, tool_calls=None)
            found = open_reference(path, only_text, folder, self.progress, self.noise)
            found.save(folder, key)
            self.reference = found
        self.reference_row |= {"nll": self.reference.score.nll, "noise": self.reference.noise}

    def row(self, name: str, path: Path) -> Row:
        """Facts and figures of one pack."""
        row: Row = {"name": name, "model": str(path)} | facts(path)
        if self.options.text is not None:
            row |= self._once(path, "text", replace(self.options, tool_calls=None))
        if self.options.tool_calls is not None:
            row |= self._once(path, "calls", replace(self.options, text=None))
        return row

    def _once(self, path: Path, what: str, options: EvalOptions) -> Row:
        key = self._key(path, what)
        found = self.journal.find(key)
        if found is None:
            reference = self.reference if what == "text" else None
            found = self.journal.add(key, measured(path, options, self.progress, reference))
        return found

    def _key(self, path: Path, what: str) -> str:
        options = self.options
        beside = (self.reference_row or {}).get("identity", "")
        rules: list[object] = [options.windows, options.window_tokens, options.stride, self.noise]
        file = options.text
        if what == "calls":
            rules, file, beside = [options.held_to], options.tool_calls, ""
        identity = open_model(path).identity
        return key_of(identity, what, digest(file), rules, options.engine, beside)

    def inputs(self, path: Path) -> tuple[dict[str, Row], dict[str, Sketch]]:
        """What was scored, and sketches of it; a model's tokenizer cuts the text."""
        options, found, sketches = self.options, {}, {}
        self.progress("passages of text and cases")
        with flashmoe.load(path, **context_for(options), **options.engine) as model:
            if options.text is not None:
                windows = options.cut(model)
                sketches["text"] = text_sketch(model, windows)
                found["text"] = _file(options.text) | {
                    "windows": len(windows.ids),
                    "window_tokens": windows.tokens,
                    "stride": windows.stride,
                    "scored_tokens": windows.scored,
                }
            if options.tool_calls is not None:
                cases = read_cases(options.tool_calls)
                sketches["tool_calls"] = case_sketch(model, cases)
                about = {"cases": len(cases), "held_to": options.held_to}
                found["tool_calls"] = _file(options.tool_calls) | about
        return found, sketches


def facts(path: Path) -> Row:
    """Formats and sizes of a pack; bytes_per_token: of experts, if none is cached."""
    pack = open_model(path)
    config = load_family(pack.manifest.family).read_config(pack.config)
    info = pack_info(pack, config.num_experts_per_tok)
    return {name: getattr(info, name) for name in _FACTS}


def pairs(rows: Sequence[Row]) -> Iterator[Row]:
    """Differences of every two models, second - first, with paired intervals (evals/paired)."""
    for first, second in combinations(rows, 2):
        pair: Row = {"first": first["name"], "second": second["name"]}
        if "window_nll" in first:
            scored = first["window_scored"]
            pair["delta_nll"] = paired_difference(first["window_nll"], second["window_nll"], scored)
        if "tool_calls" in first:
            exact = [row["tool_calls"]["exact_cases"] for row in (first, second)]
            pair["delta_exact"] = paired_difference(*exact, [1.0] * len(exact[0]))
        yield pair


def leak_warnings(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence for each model and input that its calibration text shares passages with."""
    for row in rows:
        for name, leak in row["calibration"]["leaks"].items():
            if leak["verdict"] == "overlaps":
                share = leak["shared"] / leak["looked_at"]
                what = "the text" if name == "text" else "the tool calls"
                yield (
                    f"{row['name']} was calibrated on passages of {what} that it is measured on"
                    f" ({share:.1%} of them): its figures say nothing"
                )


def _calibration(path: Path, sketches: dict[str, Sketch]) -> Row:
    manifest = open_model(path).manifest
    leaks: dict[str, Leak] = {name: check(manifest, one) for name, one in sketches.items()}
    return {
        "record": record_text(manifest),
        "leaks": {name: asdict(leak) for name, leak in leaks.items()},
    }


def _file(path: Path) -> Row:
    return {"file": path.name, "sha256": digest(path)}
