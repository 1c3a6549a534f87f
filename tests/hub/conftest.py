"""A tiny checkpoint of several shards on a stand-in of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashmoe.checkpoint.safetensors import TensorFile
from flashmoe.hub.address import Address
from flashmoe.hub.pull import Pull
from flashmoe.hub.repo import Hub
from flashmoe.hub.transport import Retry, Transport
from flashmoe.store.pack import pack_checkpoint
from tests.store.support import OPTIONS, contents
from tests.support.hub_server import REPO, StandIn, running_hub
from tests.support.tiny_checkpoints import write_checkpoint, write_safetensors

ADDRESS = Address.parse(REPO)
FAST = Retry(failures=4, first_wait=0.01, longest_wait=5.0)
SHARDS = 5


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint; its folder is called as its repository, and so is the source of its pack."""
    folder = tmp_path_factory.mktemp("published") / ADDRESS.name
    write_checkpoint(folder, "qwen3_moe", num_hidden_layers=8, vocab_size=64)
    return in_shards(folder)


def in_shards(folder: Path) -> Path:
    """One file to SHARDS of as many tensors each, layer by layer as published models have them."""
    single = folder / "model.safetensors"
    source, weight_map = TensorFile(single), {}
    tensors = sorted(source.tensors.values(), key=lambda tensor: tensor.offset)
    for number in range(SHARDS):
        part = tensors[number * len(tensors) // SHARDS : (number + 1) * len(tensors) // SHARDS]
        name = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        blobs = {
            one.name: source.read(one.offset, one.nbytes).view("<u2").reshape(one.shape)
            for one in part
        }
        floats = {key: (blob.astype("u4") << 16).view("f4") for key, blob in blobs.items()}
        write_safetensors(folder / name, floats)
        weight_map |= {one.name: name for one in part}
    source.close()
    single.unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def expected(published: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The pack of the checkpoint as `flashmoe pack` makes it."""
    path = tmp_path_factory.mktemp("expected") / "pack"
    pack_checkpoint(published, path, OPTIONS)
    return contents(path)


_MADE: list[Hub] = []


@pytest.fixture(autouse=True)
def closed_hubs() -> Iterator[None]:
    yield
    while _MADE:
        _MADE.pop().close()


@pytest.fixture
def stand_in(published: Path) -> Iterator[StandIn]:
    with running_hub(published) as hub:
        yield hub


@pytest.fixture
def pull(stand_in: StandIn, tmp_path: Path) -> Pull:
    return make_pull(stand_in, tmp_path / "cache")


def make_pull(stand_in: StandIn, cache: Path, token: str | None = None) -> Pull:
    """Chunks of a few hundred to a shard; nothing waits long."""
    hub = Hub(Transport(stand_in.endpoint, token, FAST), cache)
    _MADE.append(hub)
    return Pull(hub, connections=3, chunk_bytes=20_000, sync_bytes=50_000)
