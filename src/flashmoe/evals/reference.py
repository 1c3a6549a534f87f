"""Greedy answers against those of a reference: how many cases give the very same token ids.

python -m flashmoe.evals.reference PACK --reference reference-greedy.json --cases cases.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import flashmoe
from flashmoe.errors import UsageError
from flashmoe.evals.tool_calls import read_cases, score_tool_calls


def read_reference(path: Path) -> list[list[int]]:
    """A JSON list of {"output_ids": [...]} -> the ids of each case."""
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return [list(entry["output_ids"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot read reference ids: {error!r}", where=path) from error


def main() -> None:
    """Print the number of cases with the reference's ids."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--cases", type=Path, required=True)
    arguments = parser.parse_args()
    expected = read_reference(arguments.reference)
    with flashmoe.load(arguments.pack) as model:
        score = score_tool_calls(model, read_cases(arguments.cases))
    same = sum(got == want for got, want in zip(score.output_ids, expected, strict=True))
    print(f"{same} of {len(expected)} cases give the reference's ids")


if __name__ == "__main__":
    main()
