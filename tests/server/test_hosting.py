"""From a model to a running server, and what happens when it does not come so far."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from flashmoe.errors import PackError, StorageError
from flashmoe.server.hosting import sampling_defaults, serve
from flashmoe.server.settings import ServerSettings


def test_a_model_that_does_not_load_ends_the_server() -> None:
    def load() -> Any:
        raise PackError("no such model", where="here")

    with pytest.raises(PackError, match="no such model"):
        serve(ServerSettings(port=0), "x", load, lambda served: None)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = ServerSettings(port=taken.getsockname()[1])

        def load() -> Any:
            raise AssertionError("not reached")

        with pytest.raises(StorageError, match="cannot listen"):
            serve(settings, "x", load, lambda served: None)


@pytest.mark.parametrize(
    ("advised", "defaults"),
    [
        ({}, {"temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"temperature": 0.7, "top_k": 20, "other": 1}, {"temperature": 0.7, "top_k": 20}),
    ],
)
def test_defaults_are_what_the_authors_advise(
    tmp_path: Path, advised: dict[str, Any], defaults: dict[str, Any]
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(advised))
    assert sampling_defaults(tmp_path) == defaults
