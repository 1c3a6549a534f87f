"""Evaluations from the path of a pack on: open it, measure it, close it before the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flashmoe
from flashmoe.evals.divergence import Reference, make_reference
from flashmoe.evals.measure import EvalOptions, measure
from flashmoe.evals.perplexity import Progress


def evaluate(
    path: Path,
    options: EvalOptions,
    progress: Progress,
    reference: Path | None = None,
    *,
    noise: bool = True,
) -> dict[str, Any]:
    """The figures of the pack at `path`, with a reference pack those beside it as well.

    The reference is closed before the model is opened: memory holds one of them. Raises UsageError
    where their tokenizers or texts do not fit, what flashmoe.load raises, StorageError.
    """
    with kept_in(options.directory) as directory:
        kept = None
        if reference is not None:
            kept = open_reference(reference, options, directory / "reference", progress, noise)
        return measured(path, options, progress, kept)


def measured(
    path: Path, options: EvalOptions, progress: Progress, reference: Reference | None
) -> dict[str, Any]:
    """One pack opened and measured; `model` and `lossy` say what it was."""
    progress(f"loading {path.name}")
    with flashmoe.load(path, **context_for(options), **options.engine) as model:
        figures = measure(model, options, lambda text: progress(f"{path.name}: {text}"), reference)
        return {"model": str(path), "lossy": model.stats.lossy} | figures


def open_reference(
    path: Path, options: EvalOptions, directory: Path, progress: Progress, noise: bool
) -> Reference:
    """The distributions of a pack for the text of `options`, kept in `directory`. Knobs of
    `options` do not apply to it."""
    knobs = ("routing", "experts_per_token", "trace")
    engine = {name: value for name, value in options.engine.items() if name not in knobs}
    progress(f"loading {path.name}")
    with flashmoe.load(path, **context_for(options), **engine) as model:
        told = f"reference {path.name}"
        return make_reference(
            model,
            options.cut(model),
            directory,
            lambda text: progress(f"{told}: {text}"),
            noise,
        )


def context_for(options: EvalOptions) -> dict[str, Any]:
    """A context as long as the windows, where that is more than the default."""
    from flashmoe.settings import DEFAULT_CONTEXT

    wanted = options.window_tokens
    return {"context_length": wanted} if wanted > DEFAULT_CONTEXT else {}


@contextmanager
def kept_in(directory: Path | None) -> Iterator[Path]:
    """The directory, or one that is gone afterwards."""
    if directory is not None:
        yield directory
        return
    with TemporaryDirectory(prefix="flashmoe-eval-") as scratch:
        yield Path(scratch)
