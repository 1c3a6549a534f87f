"""Every error that flashmoe raises on purpose.

    FlashMoeError
    ├── UsageError              an option or argument is wrong               (exit code 2)
    │   └── ContextLengthError  prompt and answer do not fit the context
    ├── CheckpointError         a source checkpoint is damaged or incomplete
    │   ├── ConfigError         its config is unknown, unsupported or contradicts the tensors
    │   └── NonFiniteError      a weight is NaN or infinite
    ├── PackError               a packed model is damaged or incomplete
    │   └── ChecksumError       its bytes are not those that were written
    ├── HubError                the hub of models, or the way to it, failed
    │   └── HubAccessError      it does not let us have the files
    ├── StorageError            the system failed to read or write (EIO, short read, disk full)
    ├── MemoryBudgetError       the model does not fit the memory limit
    ├── QueueFullError          too many requests wait already
    ├── RequestError            an HTTP request is refused; carries its status
    ├── NumericError            the computation gave NaN or infinity
    └── ToolError               a tool of a chat did not do its work

Asserts are for our own bugs; whatever a user or a disk can cause is one of these.
"""

from __future__ import annotations

from collections.abc import Mapping


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


class HubError(FlashMoeError):
    """The hub of models, or the way to it, failed."""


class HubAccessError(HubError):
    """The hub does not let us have the files: unknown, private or gated."""


class StorageError(FlashMoeError):
    """The system failed to read or write."""


class MemoryBudgetError(FlashMoeError):
    """The model does not fit the memory limit."""


class NumericError(FlashMoeError):
    """The computation gave NaN or infinity."""


class QueueFullError(FlashMoeError):
    """Too many requests wait already.

    Args:
        waiting: how many.
        retry_after: seconds until it is worth trying again, an estimate.
    """

    def __init__(self, waiting: int, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(
            "too many requests wait already",
            where="queue",
            got=f"{waiting} requests",
            hint=f"Try again in {retry_after:.0f} s",
        )


class RequestError(FlashMoeError):
    """An HTTP request is refused.

    Args:
        what: what the client is told, one sentence without a full stop.
        status: the HTTP status.
        code: a word for programs, as "context_length_exceeded".
        param: the field of the body concerned.
        extra: further fields of the error object.
        retry_after: seconds until it is worth trying again.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        extra: Mapping[str, object] | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.status, self.code, self.param = status, code, param
        self.extra, self.retry_after = dict(extra or {}), retry_after
        super().__init__(what)


class ToolError(FlashMoeError):
    """A tool of a chat did not do its work; the model is told."""
