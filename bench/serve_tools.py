#!/usr/bin/env python3
"""Tool calls through the API: is every call that comes back valid, whatever the bits?

    python bench/serve_tools.py CASES PACK... [--record]

CASES: JSON lines as for `flashmoe eval --tool-calls`. Each PACK is served, and every case asked for
with tool_choice "auto" and "required", at temperature 0 and, with a seed, at 1. Counted for each:
calls (answers with one), valid_json (its arguments are a JSON object), right_tool, schema, exact;
cut (the answer met the limit of tokens; not a call). Fails if a call is not valid.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from flashmoe.bench.record import Measurement, append
from flashmoe.evals.tool_calls import follows_schema, read_cases

RESULTS = Path(__file__).parent / "results" / "serve_tools.jsonl"
PARALLEL = 4
MAX_TOKENS = 160


@contextmanager
def served(pack: Path) -> Iterator[str]:
    """The address of a server of the pack."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--ctx", "2048", "--parallel", str(PARALLEL)]
    command = [sys.executable, "-c", "from flashmoe.cli import main; main()", "serve", str(pack)]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None and not ready(url):
            time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def ready(url: str) -> bool:
    """Whether the model is loaded."""
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.TransportError:
        return False


def measured(url: str, cases: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Counts by setting."""
    with httpx.Client(base_url=url, timeout=600) as client, ThreadPoolExecutor(PARALLEL) as pool:
        return {
            f"{choice}, temperature {temperature}": dict(
                sum(pool.map(partial(outcome, client, choice, temperature), cases), Counter())
            )
            for choice in ("auto", "required")
            for temperature in (0, 1)
        }


def outcome(
    client: httpx.Client, choice: str, temperature: int, case: dict[str, Any]
) -> Counter[str]:
    """What came back for one case."""
    asked = {name: case[name] for name in ("messages", "tools")}
    sampling = {"temperature": temperature, "seed": 0, "max_tokens": MAX_TOKENS}
    body = asked | sampling | {"tool_choice": choice}
    answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]
    found = Counter(cases=1, cut=answer["finish_reason"] == "length")
    for given in answer["message"].get("tool_calls", ())[:1]:
        function = given["function"]
        if answer["finish_reason"] == "length":
            continue  # its arguments end where max_tokens ended them
        try:
            call = {"name": function["name"], "arguments": json.loads(function["arguments"])}
        except ValueError:
            found.update(calls=1)
            continue
        found.update(
            calls=1,
            valid_json=isinstance(call["arguments"], dict),
            right_tool=call["name"] == case["expected"]["name"],
            schema=follows_schema(call, case["tools"]),
            exact=call == case["expected"],
        )
    return found


def main() -> None:
    """Serves each pack, prints and judges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path)
    parser.add_argument("packs", type=Path, nargs="+")
    parser.add_argument("--record", action="store_true", help=f"add lines to {RESULTS.name}")
    options = parser.parse_args()
    cases, wrong = read_cases(options.cases), []
    for pack in options.packs:
        with served(pack) as url:
            figures = measured(url, cases)
        print(json.dumps({pack.name: figures}), flush=True)
        wrong += [n for n in figures.values() if n["calls"] != n.get("valid_json", 0)]
        if options.record:
            row = Measurement("serve_tools", figures, pack, options={"pack": pack.name}).row()
            append(row, RESULTS)
    if wrong:
        sys.exit(f"calls that are not valid: {wrong}")


if __name__ == "__main__":
    main()
