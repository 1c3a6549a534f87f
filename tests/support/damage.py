"""Ways to harm a pack. Those that fix the checksum up make bytes that were written wrongly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flashmoe._native import crc32c
from flashmoe.store.format import MANIFEST, RESIDENT, Vector
from flashmoe.store.packed import PackedModel

NAN_F32, NAN_BF16 = b"\x00\x00\xc0\x7f", b"\xc0\x7f"


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Change bytes of a file in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip_bit(path: Path, offset: int) -> None:
    """Change one bit of a file in place."""
    with path.open("rb") as file:
        file.seek(offset)
        old = file.read(1)[0]
    overwrite(path, offset, bytes([old ^ 0x10]))


def change_manifest(pack: Path, change: Callable[[Any], None]) -> None:
    """Edit flashmoe.json as parsed."""
    path = pack / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_text(pack: Path, name: str, text: str) -> None:
    """Another text file, with the size and checksum of the manifest to match."""
    data = text.encode()
    (pack / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change_manifest(pack, lambda manifest: manifest["files"].update({name: entry}))


def change_config(pack: Path, **values: Any) -> None:
    """Other values in config.json, checksum fixed up."""
    config = json.loads((pack / "config.json").read_text())
    replace_text(pack, "config.json", json.dumps({**config, **values}))


def poison_tensor(pack: Path, name: str) -> None:
    """The first weight (or scale) of a resident tensor becomes NaN, checksum fixed up."""
    manifest = PackedModel.open(pack).manifest
    tensor = manifest.tensors[name]
    start = len(manifest.resident_header()) + manifest.tensor_offsets()[name]
    if isinstance(tensor, Vector):
        overwrite(pack / RESIDENT, start, NAN_F32)
    else:
        _poison_block(pack / RESIDENT, start, tensor.format.name, tensor.format.group)
    crc = _crc_of(pack / RESIDENT, start, tensor.stored_bytes)
    change_manifest(pack, lambda manifest: manifest["tensors"][name].update(crc32c=crc))


def poison_expert(pack: Path, layer: int, expert: int) -> None:
    """The first weight (or scale) of an expert becomes NaN, checksum fixed up."""
    packed = PackedModel.open(pack)
    extent, fmt = packed.extent(layer, expert), packed.manifest.experts.gate_up
    _poison_block(extent.path, extent.offset, fmt.name, fmt.group)
    crc = _crc_of(extent.path, extent.offset, extent.nbytes)

    def change(manifest: Any) -> None:
        layers = {entry.layer: i for i, entry in enumerate(packed.manifest.layers)}
        manifest["experts"]["layers"][layers[layer]]["crc32c"][expert] = crc

    change_manifest(pack, change)


def _poison_block(path: Path, start: int, fmt: str, group: int) -> None:
    """Row 0 of the first block: its first weight (bf16), or its first scale, after the codes."""
    codes = {"bf16": 0, "q8": 8 * group, "q4": 4 * group}[fmt]
    overwrite(path, start + codes, NAN_F32 if fmt == "q8" else NAN_BF16)


def _crc_of(path: Path, offset: int, nbytes: int) -> int:
    return crc32c(path.read_bytes()[offset : offset + nbytes])
