"""What a name stands for: a pack, a checkpoint, a repository. Only headers are read."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flashmoe.errors import CheckpointError, UsageError
from flashmoe.files import storage_errors
from flashmoe.hub.address import Address, is_repo
from flashmoe.library import find_model
from flashmoe.store.format import MANIFEST
from flashmoe.store.inplace import InPlaceModel
from flashmoe.store.model import is_checkpoint
from flashmoe.store.opening import open_checkpoint
from flashmoe.store.pack import Described, plan_pack
from flashmoe.store.packed import PackedModel
from flashmoe.store.plan import PackOptions

Kind = Literal["pack", "checkpoint", "hub"]


@dataclass(frozen=True)
class PlannedModel(PackedModel):
    """A pack that is not written yet: its manifest without checksums, its config."""

    raw_config: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return self.raw_config


@dataclass(frozen=True)
class Candidate:
    """pack: as it is, or as `pack` would write it.

    in_place: the same model without packing; None of a pack, and of a checkpoint that has to be
    packed to run: then `obstacle` says why.
    """

    kind: Kind
    pack: PackedModel
    in_place: InPlaceModel | None = None
    obstacle: str = ""


def read_candidate(given: str, options: PackOptions) -> Candidate:
    """Raises UsageError, CheckpointError, PackError, HubError, StorageError."""
    path = find_model(given)
    with storage_errors("cannot be read", path):
        is_pack = (path / MANIFEST).exists()
    if is_pack:
        return Candidate("pack", PackedModel.open(path))
    if is_checkpoint(path):
        with open_checkpoint(path) as checkpoint:
            return _candidate("checkpoint", checkpoint, options)
    if not is_repo(given):
        expected = "a pack, a checkpoint, or OWNER/NAME on the hub"
        raise UsageError("no such model", expected=expected, got=repr(given))
    return _from_hub(Address.parse(given), options)


def _from_hub(address: Address, options: PackOptions) -> Candidate:
    from flashmoe.hub.repo import Hub

    hub = Hub.from_environment()
    from flashmoe.hub.headers import HubHeaders

    try:
        with tempfile.TemporaryDirectory(prefix="flashmoe-plan-") as folder:
            headers = HubHeaders(hub, hub.listing(address), Path(folder))
            return _candidate("hub", headers, options)
    finally:
        hub.close()


def _candidate(kind: Kind, checkpoint: Described, options: PackOptions) -> Candidate:
    manifest = plan_pack(checkpoint, options).manifest
    pack = PlannedModel(checkpoint.path, manifest, checkpoint.config)
    try:
        return Candidate(kind, pack, InPlaceModel.described(checkpoint))
    except CheckpointError as error:
        return Candidate(kind, pack, obstacle=error.what)
