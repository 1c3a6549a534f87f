"""Replies without calls; reasoning between <think> and </think>, where the model has it."""

from __future__ import annotations

from flashmoe.parsers.machine import CallMachine, Markers

THINK = ("<think>", "</think>")


class PlainParser(CallMachine):
    """Reasoning and content."""

    def __init__(self, markers: Markers, opens_reasoning: bool) -> None:
        super().__init__(markers, opens_reasoning, THINK, None)
