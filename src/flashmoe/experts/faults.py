"""What went wrong with a read, as an error that names the file and the expert."""

from __future__ import annotations

import os

from flashmoe.errors import ChecksumError, FlashMoeError, NonFiniteError, StorageError
from flashmoe.experts.policy import Key
from flashmoe.experts.source import BAD_CHECKSUM, CANCELLED, FILE_CHANGED, NOT_FINITE, SHORT_READ
from flashmoe.store.extent import Extent
from flashmoe.store.inplace import changed
from flashmoe.store.landing import Landing


def read_error(key: Key, extent: Extent, status: int, detail: int) -> FlashMoeError:
    """The error of the read of an expert; status and detail as of Reader.wait, not READ_OK."""
    where = f"{extent.path}: layer {key[0]}, expert {key[1]}, offset {extent.offset}"
    if status == SHORT_READ:
        return StorageError(
            "the file ends inside an expert",
            where=where,
            expected=f"{extent.nbytes} bytes",
            got=f"{detail} bytes",
            hint="The file was cut short after it was packed: pack or copy the model again",
        )
    if status == BAD_CHECKSUM:
        assert extent.crc32c is not None
        return ChecksumError(
            "an expert is damaged",
            where=where,
            expected=f"crc32c {extent.crc32c:08x}",
            got=f"{detail:08x}",
            hint="Run `flashmoe verify`; if it agrees, pack or copy the model again",
        )
    reason = os.strerror(status) if status > 0 else "cancelled"
    return StorageError(
        f"an expert could not be read: {reason}",
        where=where,
        expected=f"{extent.nbytes} bytes",
        got=f"{detail} bytes",
    )


def landing_error(key: Key, landing: Landing, status: int, detail: int) -> FlashMoeError:
    """The same for an expert of a checkpoint."""
    whose = f"layer {key[0]}, expert {key[1]}"
    if status == NOT_FINITE:
        origin = landing.tensor_at(detail)
        where = f"{origin.path}: {origin.tensor} ({whose})"
        return NonFiniteError("weight is not finite or too large", where=where)
    pieces = landing.pieces()
    piece = pieces[detail if status != CANCELLED else 0]
    if status == FILE_CHANGED:
        return changed(piece.path)
    where = f"{piece.path}: {whose}, offset {piece.offset}"
    if status == SHORT_READ:
        return StorageError(
            "the file ends inside an expert",
            where=where,
            expected=f"{piece.needed} bytes",
            hint="The file was cut short: copy or download it again",
        )
    reason = os.strerror(status) if status > 0 else "cancelled"
    return StorageError(f"an expert could not be read: {reason}", where=where)
