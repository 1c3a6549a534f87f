"""A tiny checkpoint of several shards on a stand-in of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flashmoe.hub.address import Address
from flashmoe.hub.pull import Pull
from flashmoe.hub.repo import Hub
from flashmoe.hub.transport import Retry, Transport
from flashmoe.store.pack import pack_checkpoint
from tests.store.support import OPTIONS, contents
from tests.support.hub_server import REPO, StandIn, running_hub
from tests.support.tiny_checkpoints import Layout, write_checkpoint

ADDRESS = Address.parse(REPO)
FAST = Retry(failures=4, first_wait=0.01, longest_wait=5.0)
SHARDS = 5


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint; its folder is called as its repository, and so is the source of its pack."""
    folder = tmp_path_factory.mktemp("published") / ADDRESS.name
    return write_checkpoint(folder, "qwen3_moe", Layout(shards=SHARDS), num_hidden_layers=4)


@pytest.fixture(scope="session")
def expected(published: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The pack of the checkpoint as `flashmoe pack` makes it."""
    path = tmp_path_factory.mktemp("expected") / "pack"
    pack_checkpoint(published, path, OPTIONS)
    return contents(path)


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
    return Pull(hub, connections=3, chunk_bytes=20_000, sync_bytes=50_000)
