"""`python -m tests.support.scripted_cli ARGS`: the flashmoe command with a scripted model."""

from __future__ import annotations

import os

import flashmoe
from flashmoe.cli import main
from tests.support.scripted_model import Loader, ScriptedModel, sample_stats

if __name__ == "__main__":
    reply = os.environ.get("SCRIPTED_REPLY", "Good morning to you.")
    delay = float(os.environ.get("SCRIPTED_DELAY", "0"))
    model = ScriptedModel(reply, sample_stats(), delay)
    vars(flashmoe)["load"] = Loader(model)
    main()
