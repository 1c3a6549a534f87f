"""Settings from the environment, where it does not say what it should."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from flashmoe.errors import UsageError
from flashmoe.settings import data_directory, state_directory


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom no list of users names, as in a container."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "FLASHMOE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_the_error_says_what_to_set() -> None:
    for directory in (data_directory, state_directory):
        with pytest.raises(
            UsageError, match=r"HOME: there is no home directory\. Set HOME, or FLASHMOE"
        ):
            directory()


@pytest.mark.usefixtures("homeless")
def test_without_a_home_named_directories_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert (data_directory(), state_directory()) == (tmp_path, Path("/state/flashmoe"))
