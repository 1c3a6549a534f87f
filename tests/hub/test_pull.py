"""Pulls from the stand-in: what arrives, what is kept on the disk, what every fault does."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from flashmoe.errors import HubAccessError, HubError, StorageError, UsageError
from flashmoe.hub import pull as pull_module
from flashmoe.hub.address import Address
from flashmoe.hub.fetch import Fetcher, fetch_all
from flashmoe.hub.partial_file import PartialFile
from flashmoe.hub.pull import Meter, Pull
from flashmoe.hub.repo import Hub
from flashmoe.hub.transport import Retry, Transport
from flashmoe.library import Origin, read_origin
from tests.hub.conftest import ADDRESS, make_pull
from tests.store.support import OPTIONS, contents
from tests.support.hub_server import COMMIT, REPO, Fault, StandIn

ORIGIN = Origin(REPO, "main", COMMIT, "q4")


def packed(pull: Pull, destination: Path, meter: Meter | None = None) -> dict[str, bytes]:
    origin = pull.packed(ADDRESS, destination, OPTIONS, "q4", meter)
    assert origin == ORIGIN
    return contents(destination)


def test_the_pack_is_that_of_the_downloaded_checkpoint(
    pull: Pull, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    assert packed(pull, tmp_path / "p") == expected
    assert read_origin(tmp_path / "p") == ORIGIN
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "p.origin.json"]


def test_the_checkpoint_is_what_was_published(pull: Pull, tmp_path: Path, published: Path) -> None:
    pull.checkpoint(ADDRESS, tmp_path / "c")
    assert contents(tmp_path / "c") == contents(published)
    assert not (tmp_path / "c.download").exists()


def test_files_by_pattern(pull: Pull, tmp_path: Path) -> None:
    pull.checkpoint(ADDRESS, tmp_path / "c", ["*-00002-of-*"])
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert {name for name in names if name.endswith(".safetensors")} == {
        "model-00002-of-00005.safetensors"
    }
    assert "config.json" in names


def test_the_token_stays_with_the_hub(
    stand_in: StandIn, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    stand_in.token = "hf_secret"
    assert packed(make_pull(stand_in, tmp_path, "hf_secret"), tmp_path / "p") == expected
    sent = {(host, had_token) for host, _, _, had_token in stand_in.requests}
    assert sent == {("hub", True), ("cdn", False)}


class Rooms(pull_module.Fetcher):
    """Remembers the room that it was given."""

    given: list[int | None] = []  # noqa: RUF012

    def __init__(self, hub: Any, listing: Any, folder: Path, room: int | None, *rest: Any) -> None:
        self.given.append(room)
        super().__init__(hub, listing, folder, room, *rest)


def test_shards_beside_the_pack_stay_within_the_stated_room(
    pull: Pull,
    tmp_path: Path,
    published: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looked at whenever bytes arrive; the room is two shards that an item needs, and one more."""
    monkeypatch.setattr(pull_module, "Fetcher", Rooms)
    folder, seen = tmp_path / "p.download" / "files", [0]

    def look(meter: Meter) -> None:
        sizes = []
        for path in folder.glob("*.safetensors*"):
            with contextlib.suppress(FileNotFoundError):  # renamed or deleted meanwhile
                sizes.append(path.stat().st_size)
        seen.append(sum(sizes))

    assert packed(pull, tmp_path / "p", Meter(look)) == expected
    room, whole = Rooms.given[-1], sum(path.stat().st_size for path in published.glob("*.saf*"))
    assert room is not None
    assert room < 0.8 * whole
    assert 0 < max(seen) <= room + 1000  # the records of chunks


def test_an_unknown_repository(stand_in: StandIn, pull: Pull, tmp_path: Path) -> None:
    with pytest.raises(HubAccessError, match=r"no such model, or it needs a token.*HF_TOKEN"):
        pull.packed(Address.parse("someone/else"), tmp_path / "p", OPTIONS, "")


def test_an_unknown_revision(pull: Pull, tmp_path: Path) -> None:
    with pytest.raises(HubAccessError, match=r"no such revision.*after @"):
        pull.packed(Address.parse(f"{REPO}@v9"), tmp_path / "p", OPTIONS, "")


def test_a_private_model_without_the_token(stand_in: StandIn, pull: Pull, tmp_path: Path) -> None:
    stand_in.token = "hf_secret"
    with pytest.raises(HubAccessError, match=r"401.*HF_TOKEN"):
        packed(pull, tmp_path / "p")


def test_a_gated_model(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.token, stand_in.gated = "hf_secret", True
    with pytest.raises(HubAccessError, match=r"must be granted.*403.*model's page"):
        packed(make_pull(stand_in, tmp_path, "hf_secret"), tmp_path / "p")


PASSING = [
    Fault("00002-of-00005.safetensors", 429, 2, {"Retry-After": "0"}),
    Fault("00002-of-00005.safetensors", 503, 3),
    Fault("00003-of-00005.safetensors", 500, 3, on_cdn=False),
    Fault("revision/main", 502, 2, on_cdn=False),
    Fault("config.json", 504, 1, on_cdn=False),
    Fault("00001-of-00005.safetensors", cut_after=100, times=5),
    Fault("00004-of-00005.safetensors", 403, 1),  # a signed address that expired
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.path[:6]}-{fault.status}")
def test_what_passes_is_waited_out(
    stand_in: StandIn, pull: Pull, tmp_path: Path, expected: dict[str, bytes], fault: Fault
) -> None:
    if fault.status == 403:  # only then is the address one that was good before
        listing = pull.hub.listing(ADDRESS)
        pull.hub.read(listing, "model-00004-of-00005.safetensors", 0, 8)
    stand_in.faults = [dataclasses.replace(fault)]
    assert packed(pull, tmp_path / "p") == expected
    assert stand_in.faults[0].times == 0


def test_an_outage_ends_with_what_to_do(stand_in: StandIn, pull: Pull, tmp_path: Path) -> None:
    stand_in.faults = [Fault("00002-of-00005.safetensors", 503, 99)]
    with pytest.raises(HubError, match=r"does not answer.*status 503.*goes on where it was"):
        packed(pull, tmp_path / "p")


def test_a_long_retry_after_is_reported(stand_in: StandIn, pull: Pull, tmp_path: Path) -> None:
    stand_in.faults = [Fault("revision/main", 429, 9, {"Retry-After": "3600"}, on_cdn=False)]
    with pytest.raises(HubError, match="again in 3600 s"):
        packed(pull, tmp_path / "p")


def test_a_redirect_to_no_address(stand_in: StandIn, pull: Pull, tmp_path: Path) -> None:
    fault = Fault("00002-of-00005.safetensors", 302, 9, {"Location": "http://["}, on_cdn=False)
    stand_in.faults = [fault]
    with pytest.raises(HubError, match=r"redirected to no address; got 'http://\['"):
        packed(pull, tmp_path / "p")


@pytest.mark.parametrize("endpoint", ["huggingface.co", "http://a b\n", "ftp://hub"])
def test_an_endpoint_that_is_no_address_is_refused_at_once(endpoint: str, tmp_path: Path) -> None:
    hub = Hub(Transport(endpoint, None, Retry(failures=9, first_wait=60.0)), tmp_path)
    with pytest.raises(HubError, match=r"not an address; expected .*HF_ENDPOINT"):
        hub.listing(ADDRESS)
    hub.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_ends_the_download(
    pull: Pull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PartialFile, "missing", lambda partial: 1 / 0)
    listing = pull.hub.listing(ADDRESS)
    fetcher, files = Fetcher(pull.hub, listing, tmp_path), list(listing.files.values())
    with pytest.raises(HubError, match="a thread of the download died"):
        fetch_all(fetcher, files)


def test_chunks_that_cannot_be_read_are_a_typed_error(pull: Pull, tmp_path: Path) -> None:
    file = next(iter(pull.hub.listing(ADDRESS).files.values()))
    (tmp_path / f"{file.name}.incomplete").write_bytes(bytes(file.size))
    (tmp_path / f"{file.name}.chunks").mkdir()
    with pytest.raises(StorageError, match="chunks: cannot read; got Is a directory"):
        PartialFile(tmp_path, file).written_bytes()


def test_a_damaged_transfer_is_fetched_again(
    stand_in: StandIn, pull: Pull, tmp_path: Path, published: Path
) -> None:
    stand_in.faults = [Fault("00003-of-00005.safetensors", damaged=True)]
    pull.checkpoint(ADDRESS, tmp_path / "c")
    assert contents(tmp_path / "c") == contents(published)


def test_a_wrong_checksum_is_an_error(stand_in: StandIn, pull: Pull, tmp_path: Path) -> None:
    stand_in.wrong_sha = "model-00003-of-00005.safetensors"
    with pytest.raises(HubError, match=r"00003-of-00005.*checksum does not match; expected 0000"):
        packed(pull, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_missing_shard(stand_in: StandIn, pull: Pull, tmp_path: Path) -> None:
    stand_in.folder = shutil.copytree(stand_in.folder, tmp_path / "less")
    (tmp_path / "less" / "model-00003-of-00005.safetensors").unlink()
    with pytest.raises(HubError, match=r"shard is missing.*00003"):
        packed(pull, tmp_path / "p")


def test_a_repository_without_weights(stand_in: StandIn, pull: Pull, tmp_path: Path) -> None:
    stand_in.folder = tmp_path / "gguf"
    stand_in.folder.mkdir()
    (stand_in.folder / "model-Q4_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(HubError, match=r"no weights in safetensors.*got \.gguf.*--files"):
        pull.checkpoint(ADDRESS, tmp_path / "c")


def test_a_server_without_ranges(stand_in: StandIn, pull: Pull, tmp_path: Path) -> None:
    stand_in.ranges = False
    with pytest.raises(HubError, match="does not give parts of files"):
        pull.checkpoint(ADDRESS, tmp_path / "c")


def test_goes_on_with_the_commit_that_it_began_with(
    stand_in: StandIn, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """Neither the listing nor the small files are asked for again."""
    stand_in.faults = [Fault("00004-of-00005.safetensors", 503, 99)]
    with pytest.raises(HubError):
        packed(make_pull(stand_in, tmp_path / "cache"), tmp_path / "p")
    asked = len(stand_in.requests)
    stand_in.faults = [Fault("revision/main", 404, 99, on_cdn=False)]
    assert packed(make_pull(stand_in, tmp_path / "cache"), tmp_path / "p") == expected
    again = {path for _, path, _, _ in stand_in.requests[asked:]}
    assert not any(path.endswith(".json") for path in again)


def test_another_model_is_not_mixed_in(stand_in: StandIn, pull: Pull, tmp_path: Path) -> None:
    stand_in.faults = [Fault("00004-of-00005.safetensors", 503, 99)]
    with pytest.raises(HubError):
        packed(pull, tmp_path / "p")
    with pytest.raises(UsageError, match="unfinished pull of another model"):
        make_pull(stand_in, tmp_path).checkpoint(Address.parse("a/b"), tmp_path / "p")


def test_two_pulls_at_once(pull: Pull, tmp_path: Path) -> None:
    (tmp_path / "p.download").mkdir()
    fd = os.open(tmp_path / "p.download", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="another pull is running"):
        packed(pull, tmp_path / "p")
    os.close(fd)


def test_disk_space_is_checked_first(
    pull: Pull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: StandIn
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"not enough disk space.*pull with --pack"):
        pull.checkpoint(ADDRESS, tmp_path / "c")
    with pytest.raises(StorageError, match="not enough disk space"):
        packed(make_pull(stand_in, tmp_path), tmp_path / "p")


def test_the_cache_of_huggingface_hub_serves_offline(
    published: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    repo = tmp_path / "cache" / f"models--{REPO.replace('/', '--')}"
    shutil.copytree(published, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    offline = Pull(Hub(None, tmp_path / "cache"), sync_bytes=50_000)
    assert packed(offline, tmp_path / "p") == expected
    shutil.rmtree(repo / "snapshots")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        packed(offline, tmp_path / "q")
