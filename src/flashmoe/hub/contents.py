"""Which files of a repository make up a model."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Literal

from flashmoe.checkpoint.directory import INDEX, SINGLE
from flashmoe.errors import HubError
from flashmoe.hub.repo import Listing, RemoteFile
from flashmoe.store.format import MANIFEST, SMALL_FILES

# Texts beside the weights: configuration, tokenizers of any kind, the licence.
_TEXTS = ("*.json", "*.txt", "*.jinja", "*.model", "*.md", "LICENSE*")
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")

Published = Literal["pack", "checkpoint"]


def published_as(listing: Listing) -> Published:
    """Whether the repository holds a packed model of ours. Raises HubError if it holds neither."""
    if MANIFEST in listing.files:
        return "pack"
    if INDEX in listing.files or SINGLE in listing.files:
        return "checkpoint"
    kinds = {end for name in listing.files for end in _WEIGHTS if name.endswith(end)}
    hint = "Take another repository of the model"
    if ".gguf" in kinds:
        hint = "Choose a file: --files '*Q4_0*.gguf'"
    raise HubError(
        "no weights in safetensors",
        where=listing.address,
        expected=f"{SINGLE} or {INDEX}",
        got=", ".join(sorted(kinds)) or "no weights at all",
        hint=hint,
    )


def shard_names(listing: Listing, weight_map: Mapping[str, str] | None) -> list[str]:
    """The weight files by name; weight_map: of the index, None where there is a single file."""
    if weight_map is None:
        return [SINGLE]
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if name not in listing.files]
    if missing:
        raise HubError("shard is missing", where=listing.address, got=", ".join(missing[:3]))
    return names


def small_files(listing: Listing) -> list[RemoteFile]:
    """What a pack copies, and the index."""
    names = (*SMALL_FILES, INDEX)
    return [listing.files[name] for name in names if name in listing.files]


def whole_model(listing: Listing, patterns: Iterable[str] = ()) -> list[RemoteFile]:
    """What `pull` downloads: texts and weights beside them, or the weights that match patterns.

    Raises HubError if nothing matches.
    """
    top = [file for file in listing.files.values() if "/" not in file.name]
    texts = [file for file in top if _matches(file.name, _TEXTS)]
    chosen = list(patterns)
    if not chosen:
        published_as(listing)
        weights = [file for file in top if file.name.endswith(".safetensors")]
        return [*texts, *weights]
    weights = [file for file in listing.files.values() if _matches(file.name, chosen)]
    if not weights:
        raise HubError("no file matches", where=listing.address, got=", ".join(chosen))
    return list({file.name: file for file in (*texts, *weights)}.values())


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
