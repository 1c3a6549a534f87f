"""What users call a repository: OWNER/NAME@REVISION."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flashmoe.errors import UsageError

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
MAIN = "main"


@dataclass(frozen=True)
class Address:
    """A repository and a revision of it: a branch, a tag or a commit."""

    repo: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """From "owner/name" or "owner/name@revision". Raises UsageError."""
        repo, _, revision = text.removeprefix("hf://").partition("@")
        if not is_repo(text) or ".." in revision:
            expected = "OWNER/NAME or OWNER/NAME@REVISION"
            raise UsageError("not a repository of the hub", expected=expected, got=repr(text))
        return cls(repo, revision or MAIN)

    @property
    def name(self) -> str:
        """The last part of the repository's name: what the model is called here."""
        return self.repo.partition("/")[2]

    def __str__(self) -> str:
        return self.repo if self.revision == MAIN else f"{self.repo}@{self.revision}"


def is_repo(text: str) -> bool:
    """Whether a text may name a repository."""
    repo, at, revision = text.removeprefix("hf://").partition("@")
    return bool(_REPO.fullmatch(repo)) and (not at or bool(_REVISION.fullmatch(revision)))
