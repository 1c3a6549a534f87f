"""`flashmoe.pack`: a checkpoint directory to a packed model, from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.plan import PackOptions


def pack(
    source: str | Path,
    destination: str | Path,
    *,
    experts: str = "auto",
    dense: str = "auto",
    group: int = 64,
    experts_down: str | None = None,
    calibration: str | Path | None = None,
    experts_bits: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Pack `source`, a checkpoint directory or .gguf file, as the new directory `destination`.

    Args:
        experts, dense: weight formats of the routed experts and of the rest: bf16, q8, q4, mxfp4;
            auto: what is quantised stays exactly as it is, the rest becomes q4 and q8; same: all
            that a format holds exactly stays so, the rest becomes bf16.
        group: columns per group of q8, q4, q3 and q2: 32, 64 or 128.
        experts_down: format of the experts' down matrices, where another than `experts`.
        calibration: file of `flashmoe calibrate`: q2, q3 and q4 experts lose less with it.
        experts_bits: with a calibration: formats of each layer's experts, of q4, q3 and q2, that
            lose least at so many bits per weight.
        progress: called with (bytes written, bytes in all).

    Streams: peak memory stays under 1 GB. Interrupted, the same call resumes. The destination
    appears only when it is complete. Raises UsageError, CheckpointError (with ConfigError and
    NonFiniteError) or StorageError.
    """
    options = PackOptions.parse(experts, dense, group, experts_down, experts_bits)
    file = None if calibration is None else Path(calibration)
    pack_checkpoint(Path(source), Path(destination), options, progress, calibration=file)
