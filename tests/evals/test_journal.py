"""What a run that was broken off finds again."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.errors import UsageError
from flashmoe.evals.journal import Journal, digest, key_of


def test_rows_are_found_by_a_later_run(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    Journal(path).add("a", {"n": 1})
    Journal(path).add("a", {"n": 2})
    assert Journal(path).find("a") == {"n": 2}
    assert Journal(path).find("b") is None


def test_a_line_that_was_being_written_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Journal(path).add("a", {"n": 1})
    path.write_text(path.read_text() + '{"key": "b", "ro')
    journal = Journal(path)
    assert journal.find("b") is None
    journal.add("b", {"n": 2})
    assert Journal(path).find("b") == {"n": 2}


@pytest.mark.parametrize("line", ["[]", "{}", '{"key": "a", "row": 1}', "not JSON"])
def test_another_file_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UsageError, match="not a journal"):
        Journal(path)


def test_without_a_path_nothing_is_kept() -> None:
    journal = Journal(None)
    assert journal.add("a", {"n": 1}) == {"n": 1}
    assert journal.find("a") == {"n": 1}


def test_keys_and_digests_tell_inputs_apart(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    first = key_of(digest(path), {"windows": 3})
    assert first == key_of(digest(path), {"windows": 3})
    assert first != key_of(digest(path), {"windows": 4})
    path.write_text("2")
    assert first != key_of(digest(path), {"windows": 3})
    with pytest.raises(UsageError, match="cannot read"):
        digest(tmp_path / "none")
