"""`python -m tests.support.scripted_server STEP PREFILL PORT`: answers that last as long as wanted.

STEP: seconds per token; PREFILL: seconds for the prompt.
"""

from __future__ import annotations

import sys

import flashmoe
from flashmoe.cli import INTERRUPTED
from flashmoe.server.hosting import serve
from flashmoe.server.settings import ServerSettings
from tests.support.fake_worker import FakeWorker

if __name__ == "__main__":
    step, prefill, port = map(float, sys.argv[1:])
    worker = FakeWorker("word " * 1000, step=step, prefill=prefill)
    settings = ServerSettings(port=int(port))
    try:
        serve(settings, "scripted", lambda: (flashmoe.load(), worker), lambda served: None)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
