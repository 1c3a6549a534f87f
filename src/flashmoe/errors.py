"""Every error that flashmoe raises on purpose.

    FlashMoeError
    ├── UsageError              an option or argument is wrong               (exit code 2)
    │   └── ContextLengthError  prompt and answer do not fit the context
    ├── CheckpointError         a source checkpoint is damaged or incomplete
    │   ├── ConfigError         its config is unknown, unsupported or contradicts the tensors
    │   └── NonFiniteError      a weight is NaN or infinite
    ├── PackError               a packed model is damaged or incomplete
    │   └── ChecksumError       its bytes are not those that were written
    ├── StorageError            the system failed to read or write (EIO, short read, disk full)
    ├── MemoryBudgetError       the model does not fit the memory limit
    ├── NumericError            the computation gave NaN or infinity
    └── ToolError               a tool of a chat did not do its work

Asserts are for our own bugs; whatever a user or a disk can cause is one of these.
"""

from __future__ import annotations


class FlashMoeError(Exception):
    """Base of all: what went wrong, where, what was expected, what was found, what to do.

    Args:
        what: one sentence without a full stop.
        where: the file, tensor or option concerned.
        expected, got: the two sides of a mismatch.
        hint: what the user can do about it.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.where = what, where
        self.expected, self.got, self.hint = expected, got, hint
        super().__init__(self._message())

    def _message(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.got is not None:
            text += f"{',' if self.expected is not None else ';'} got {self.got}"
        return text if self.hint is None else f"{text}. {self.hint}"


class UsageError(FlashMoeError):
    """An option or argument is wrong."""

    exit_code = 2


class ContextLengthError(UsageError):
    """Prompt and answer do not fit the context."""


class CheckpointError(FlashMoeError):
    """A source checkpoint is damaged or incomplete."""


class ConfigError(CheckpointError):
    """A model config is unknown, unsupported or contradicts the tensors."""


class NonFiniteError(CheckpointError):
    """A weight is NaN or infinite."""


class PackError(FlashMoeError):
    """A packed model is damaged or incomplete."""


class ChecksumError(PackError):
    """Bytes of a packed model are not those that were written."""


class StorageError(FlashMoeError):
    """The system failed to read or write."""


class MemoryBudgetError(FlashMoeError):
    """The model does not fit the memory limit."""


class NumericError(FlashMoeError):
    """The computation gave NaN or infinity."""


class ToolError(FlashMoeError):
    """A tool of a chat did not do its work; the model is told."""
