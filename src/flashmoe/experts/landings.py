"""Experts of a checkpoint as the reader takes them: prepared when first read, then kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flashmoe import _native
from flashmoe.experts.policy import Key
from flashmoe.store.landing import Landing, Program


class Landings:
    """Native landings by expert. handles: of the reader, by file."""

    def __init__(self, handles: Mapping[Path, int]) -> None:
        self._handles = handles
        self._programs: dict[Program, _native.LandingProgram] = {}
        self._prepared: dict[Key, _native.Landing] = {}

    def of(self, key: Key, landing: Landing) -> _native.Landing:
        """What is to be submitted for an expert."""
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepared[key] = self._prepare(landing)
        return prepared

    def _prepare(self, landing: Landing) -> _native.Landing:
        pieces = [
            (
                self._handles[piece.path],
                piece.offset,
                piece.nbytes,
                piece.needed,
                [(part.move, part.first, part.count, part.start) for part in piece.slices],
            )
            for piece in landing.pieces()
        ]
        return _native.Landing(self._program(landing.program), pieces)

    def _program(self, program: Program) -> _native.LandingProgram:
        made = self._programs.get(program)
        if made is None:
            moves = [move.fields() for move in program.moves]
            made = _native.LandingProgram(
                program.record_bytes, moves, list(program.mxfp4), list(program.zeros)
            )
            self._programs[program] = made
        return made
