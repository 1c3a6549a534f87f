"""Canonical weight names ("model.layers.0...", "lm_head.weight") under the prefixes in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flashmoe.checkpoint.quantization import Quantization
from flashmoe.checkpoint.safetensors import Tensor
from flashmoe.errors import CheckpointError

CANONICAL = "model."
# Text models; multimodal models of transformers; multimodal models with the text model outermost.
PREFIXES = ("model.", "model.language_model.", "language_model.model.")
OUTER_PREFIXES = ("", "model.language_model.", "language_model.")
PROBE = "embed_tokens.weight"
# Published DeepSeek-V4: no prefix at all.
BARE_PROBE = "embed.weight"


class Names:
    """Looks canonical names up and remembers which tensors were used.

    spellings: (canonical part, part in its place) of names that may also be spelt otherwise: all of
        them, or, as MLX does it, the first alone.
    quantization: of the checkpoint, as its config says.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        where: object,
        spellings: Sequence[tuple[str, str]] = (),
        quantization: Quantization | None = None,
    ) -> None:
        self.quantization = quantization
        self._tensors, self._where, self._spellings = tensors, where, spellings
        self._used: set[str] = set()
        found = [prefix for prefix in PREFIXES if prefix + PROBE in tensors]
        found += [""] if BARE_PROBE in tensors else []
        if not found:
            expected = " | ".join(prefix + PROBE for prefix in PREFIXES)
            raise CheckpointError("tensor is missing", where=where, expected=expected)
        self._prefix = found[0]

    def has(self, name: str) -> bool:
        """Whether there is a tensor of a canonical name."""
        return any(candidate in self._tensors for candidate in self._candidates(name))

    def find(self, name: str) -> Tensor | None:
        """The tensor of a canonical name, marked as used, or None."""
        for candidate in self._candidates(name):
            if candidate in self._tensors:
                self._used.add(candidate)
                return self._tensors[candidate]
        return None

    def take(self, name: str) -> Tensor:
        """The tensor of a canonical name, marked as used."""
        tensor = self.find(name)
        if tensor is None:
            raise CheckpointError(
                "tensor is missing", where=self._where, expected=self._candidates(name)[0]
            )
        return tensor

    def finish(self, ignored: tuple[str, ...]) -> None:
        """Every tensor was used or has an ignored prefix."""
        rest = [n for n in self._tensors if n not in self._used and not n.startswith(ignored)]
        if rest:
            more = f" and {len(rest) - 3} more" if len(rest) > 3 else ""
            raise CheckpointError(
                "tensors that this model family does not have",
                where=self._where,
                got=", ".join(sorted(rest)[:3]) + more,
            )

    def _candidates(self, name: str) -> list[str]:
        if name.startswith(CANONICAL):
            known = self._prefix + name.removeprefix(CANONICAL)
            mixed = [known.replace(*spelling) for spelling in self._spellings[:1]]
            return list(dict.fromkeys([self._spelt(known), known, *mixed]))
        names = dict.fromkeys([name, self._spelt(name)])
        return [prefix + spelt for spelt in names for prefix in OUTER_PREFIXES]

    def _spelt(self, name: str) -> str:
        for part, replacement in self._spellings:
            name = name.replace(part, replacement)
        return name
