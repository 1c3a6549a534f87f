import subprocess
import sys

import pytest

import flashmoe
from flashmoe.errors import FlashMoeError
from flashmoe.stats import Stats


def test_import_is_light() -> None:
    code = (
        "import sys, flashmoe; print({'numpy', 'tokenizers', 'flashmoe._native'} & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_names_are_loaded_on_use() -> None:
    assert flashmoe.Stats is Stats
    assert flashmoe.FlashMoeError is FlashMoeError
    assert "load" in dir(flashmoe)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'bogus'"):
        flashmoe.bogus  # noqa: B018
