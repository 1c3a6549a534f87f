"""Runs texts through a model and keeps what its experts see: the input of `pack --calibration`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashmoe.errors import UsageError
from flashmoe.evals.leaks import passages
from flashmoe.evals.perplexity import read_text
from flashmoe.store.calibration import CalibrationWriter
from flashmoe.store.calibration_journal import CalibrationJournal
from flashmoe.store.packed import PackedModel
from flashmoe.text.prompting import chat_prompt
from flashmoe.text.shingles import sketch

if TYPE_CHECKING:
    from flashmoe.api import Model

WINDOW = 512
# Seconds of work that an interruption may cost.
SYNC_SECONDS = 10.0
Progress = Callable[[str], None]


def calibrate(
    model: Model,
    texts: Sequence[Path],
    output: Path,
    *,
    tokens: int = 65536,
    sample: int = 0,
    seed: int = 0,
    progress: Progress = lambda text: None,
    sync_seconds: float = SYNC_SECONDS,
) -> int:
    """Writes a calibration file -> tokens in it. Interrupted, the same call goes on.

    Args:
        texts: UTF-8 files, cut into windows of 512 tokens; of .jsonl files each line is a chat
            {"messages", "tools"?}.
        tokens: at most so many of the texts, evenly from the beginning of each.
        sample: tokens that the model writes itself (temperature 1), beside the texts.
        progress: told in words how far it is.
        sync_seconds: between two entries of the journal OUTPUT.journal.

    Raises UsageError (no text, a file that cannot be read, an unfinished calibration of other
    texts), StorageError, CheckpointError (a damaged journal).
    """
    windows = [w for path in texts for w in read_windows(model, path, tokens // len(texts))]
    if not windows and sample < 2:
        raise UsageError("nothing to calibrate on", where="calibrate", expected="texts or --sample")
    about = describe(texts, sample, seed)
    key = hashlib.sha256(f"{model.fingerprint} {tokens} {about}".encode()).hexdigest()
    with CalibrationJournal(output.with_name(output.name + ".journal"), key) as journal:
        windows += _documents(model, sample, seed, journal, progress)
        total = sum(map(len, windows))
        writer = _writer(model, output, total)
        shingles = sketch(text for w in windows for text in passages(model.tokenizer, w))
        head = {"text": f"{total} tokens: {about}", "shingles": shingles.encode()}
        writer.open(head, sum(map(len, windows[: journal.ran])))
        _run(model, windows, writer, journal, progress, sync_seconds)
        writer.finish()
        journal.finish()
    return total


def _documents(
    model: Model, sample: int, seed: int, journal: CalibrationJournal, progress: Progress
) -> list[list[int]]:
    """All that the model writes, each document in the journal as soon as it is there."""
    for ids in sampled_windows(model, sample, seed, list(journal.wrote)):
        journal.add_document(ids)
        progress(f"wrote {sum(map(len, journal.wrote))} of {sample} tokens")
    return journal.wrote


def _run(
    model: Model,
    windows: Sequence[Sequence[int]],
    writer: CalibrationWriter,
    journal: CalibrationJournal,
    progress: Progress,
    sync_seconds: float,
) -> None:
    """Runs the windows that no earlier run has left."""
    synced = time.monotonic()
    with model.watch_experts(writer.add):
        for number in range(journal.ran, len(windows)):
            model.session().feed(windows[number])
            progress(f"ran {number + 1} of {len(windows)} windows")
            if time.monotonic() - synced >= sync_seconds:
                writer.sync()
                journal.set_ran(number + 1)
                synced = time.monotonic()


def describe(texts: Sequence[Path], sample: int, seed: int) -> str:
    """Of what texts a file is, in one line. Raises StorageError."""
    names = [f"{p.name} sha256 {hashlib.sha256(p.read_bytes()).hexdigest()[:16]}" for p in texts]
    names += [f"{sample} tokens sampled from the model, seed {seed}"] if sample else []
    return ", ".join(names)


def read_windows(model: Model, path: Path, tokens: int) -> list[list[int]]:
    """The first tokens of a file, as runs of at most 512 from a text and of one chat each."""
    if path.suffix != ".jsonl":
        ids = [int(i) for i in model.tokenizer.encode(read_text(path))[:tokens]]
        return [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    windows, left = [], tokens
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip() and left > 0:
            windows.append(_chat(model, line, f"{path}, line {number}")[:left])
            left -= len(windows[-1])
    return windows


def _chat(model: Model, line: str, where: str) -> list[int]:
    try:
        chat: dict[str, Any] = json.loads(line)
        messages, tools = chat["messages"], chat.get("tools")
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError("not a chat", where=where, expected='{"messages"}') from error
    ids = chat_prompt(model.chat_template, model.tokenizer, messages, tools=tools).ids
    return [int(i) for i in ids]


def sampled_windows(
    model: Model, tokens: int, seed: int, written: Sequence[Sequence[int]] = ()
) -> Iterator[list[int]]:
    """Documents that the model writes: in turn from a random token and from the start of a chat.

    The start of a chat is its template's first line, so that the model makes up system text and
    tools, too. Those of `written`, which came before, are not written again.
    """
    left = tokens - sum(map(len, written))
    for number, start in enumerate(_starts(model, seed)):
        if left < 2:
            return
        if number >= len(written):
            pieces = model.generate(
                start, max_tokens=WINDOW - len(start), temperature=1.0, seed=seed + number, stop=[]
            )
            window = [*start, *(piece.token_id for piece in pieces)][:left]
            left -= len(window)
            yield window


def _starts(model: Model, seed: int) -> Iterator[list[int]]:
    rng = np.random.default_rng(seed)
    opening = model.chat_template.render([{"role": "user", "content": ""}]).partition("\n")
    chat = [int(i) for i in model.tokenizer.encode(opening[0] + opening[1])]
    while True:
        yield [int(rng.integers(model.config.vocab_size))]
        yield chat


def _writer(model: Model, output: Path, tokens: int) -> CalibrationWriter:
    manifest = PackedModel.open(model.path).manifest
    layers = [layer.layer for layer in manifest.layers]
    sizes = (tokens, manifest.experts.hidden_size, model.stats.experts_per_token)
    return CalibrationWriter(output, layers, sizes)
