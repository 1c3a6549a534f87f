from pathlib import Path

import pytest

from flashmoe import demo
from flashmoe.errors import PackError


def test_the_package_holds_a_model() -> None:
    assert (demo.demo_model_path() / "tokenizer.json").is_file()


def test_a_package_without_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "demo.py"))
    with pytest.raises(PackError, match=r"demo_model: the embedded demo model is missing"):
        demo.demo_model_path()
