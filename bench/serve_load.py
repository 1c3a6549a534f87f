#!/usr/bin/env python3
"""Many clients at one server: mixed requests, disconnects, malformed bodies; memory and answers.

    python bench/serve_load.py [--clients 64] [--requests 1000] [--record]

Starts `flashmoe serve` on the demo model. Every question has one answer (temperature 0), had alone
before the load: an answer that differs under load is a mix-up. Memory is the server's resident set,
measured after a tenth of the requests and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from flashmoe.bench.record import Measurement, append
from flashmoe.demo import demo_model_path

RESULTS = Path(__file__).parent / "results" / "serve.jsonl"
PORT = 8931
URL = f"http://127.0.0.1:{PORT}"
CITIES = ("Italy", "France", "Spain", "Japan", "Egypt", "Peru", "Norway", "Kenya")
_WRONG = dict.fromkeys(("messages", "prompt", "input"), 5)
_STRANGE = {"messages": [{"role": "x"}], "input": [{"role": "x"}], "prompt": [{"role": "x"}]}
MALFORMED = (b"", b"{", b"[[[[", b"\xff", *(json.dumps(b).encode() for b in (_WRONG, _STRANGE)))
"""Bodies that must get a 400."""


def question(number: int) -> tuple[str, dict[str, Any]]:
    """(path, body) of a question by its number; the same number is the same question."""
    text = f"What is the capital of {CITIES[number % len(CITIES)]}?"
    messages = [{"role": "user", "content": text}]
    tokens = 8 + number % 3 * 8
    return (
        ("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": tokens}),
        ("/v1/messages", {"messages": messages, "temperature": 0, "max_tokens": tokens}),
        ("/api/chat", {"messages": messages, "stream": False, "options": {"num_predict": tokens}}),
        ("/v1/completions", {"prompt": text, "temperature": 0, "max_tokens": tokens}),
        ("/v1/responses", {"input": text, "temperature": 0, "max_output_tokens": 16}),
    )[number % 5]


def text_of(body: dict[str, Any]) -> str:
    """The answer's text, whichever API gave it."""
    if "choices" in body:
        choice = body["choices"][0]
        return str(choice.get("text", choice.get("message", {}).get("content")))
    if "message" in body:
        return str(body["message"]["content"])
    parts = body["content"] if "content" in body else body["output"][0]["content"]
    return str(parts[0]["text"])


async def ask(client: httpx.AsyncClient, number: int) -> str:
    """The answer; waits and asks again where the queue is full."""
    path, body = question(number)
    while True:
        response = await client.post(path, json=body)
        if response.status_code != 503:
            response.raise_for_status()
            return text_of(response.json())
        await asyncio.sleep(0.05)


async def leave(client: httpx.AsyncClient, number: int, seconds: float) -> None:
    """Asks, streamed or not, and goes away."""
    path, body = question(number)
    body = body | {"stream": number % 2 == 0}
    with suppress(TimeoutError):
        await asyncio.wait_for(client.post(path, json=body), seconds)


async def one(client: httpx.AsyncClient, chance: random.Random, expected: dict[int, str]) -> str:
    """One request of the mix -> what became of it."""
    number, kind = chance.choice(list(expected)), chance.random()
    if kind < 0.15:
        await leave(client, number, chance.random() * 0.3)
        return "left"
    if kind < 0.3:
        response = await client.post(question(number)[0], content=chance.choice(MALFORMED))
        return "refused" if response.status_code == 400 else f"status {response.status_code}"
    return "right" if await ask(client, number) == expected[number] else "mixed up"


async def load(process: subprocess.Popen[bytes], clients: int, requests: int) -> dict[str, Any]:
    """Runs the mix -> counts, seconds, memory."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=URL, timeout=600, limits=limits) as client:
        expected = {number: await ask(client, number) for number in range(30)}
        chance, found, memory = random.Random(7), Counter[str](), []
        left = iter(range(requests))

        async def work() -> None:
            for done in left:
                found[await one(client, chance, expected)] += 1
                if done == requests // 10:
                    memory.append(resident(process.pid))

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        seconds = time.perf_counter() - start
        await asyncio.sleep(1)
        slots = (await client.get("/slots")).json()
    memory.append(resident(process.pid))
    return {
        "found": dict(found),
        "seconds": round(seconds, 1),
        "rss_bytes": memory,
        "rss_growth": round(memory[-1] / memory[0] - 1, 4),
        "left_running": len(slots),
    }


def resident(pid: int) -> int:
    """Resident set of a process in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("VmRSS:"))
    return 1024 * int(line.split()[1])


def started(parallel: int) -> subprocess.Popen[bytes]:
    """The server, ready."""
    options = ["--port", str(PORT), "--ctx", "512", "--parallel", str(parallel), "--queue", "256"]
    command = [sys.executable, "-c", "from flashmoe.cli import main; main()", "serve", *options]
    process = subprocess.Popen(command)
    while process.poll() is None:
        try:
            if httpx.get(URL + "/health").status_code == 200:
                return process
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    sys.exit("the server did not start")


def main() -> None:
    """Runs the load and judges it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--record", action="store_true", help=f"add a line to {RESULTS.name}")
    options = parser.parse_args()
    process = started(options.parallel)
    try:
        result = asyncio.run(load(process, options.clients, options.requests))
        result["alive"] = process.poll() is None
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    print(json.dumps(result, indent=2))
    if options.record:
        row = Measurement("serve_load", result, demo_model_path(), options=vars(options)).row()
        append(row, RESULTS)
    bad = {kind for kind in result["found"] if kind not in ("right", "left", "refused")}
    if bad or not result["alive"] or result["left_running"] or result["rss_growth"] > 0.05:
        sys.exit(f"not as it should be: {bad or result}")


if __name__ == "__main__":
    main()
