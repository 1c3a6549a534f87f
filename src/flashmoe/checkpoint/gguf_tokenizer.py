"""Tokenizer, chat template and stop tokens out of the metadata of a GGUF file."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flashmoe.errors import CheckpointError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(letter: str, digits: str) -> str:
    """The pattern of GPT-4 and its heirs; letter: what letters are, digits: how many together."""
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letter}+|\p{{N}}{digits}"
        rf"| ?[^\s{letter.strip('[]')}\p{{N}}]+[\r\n]*|{_TAIL}"
    )


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_TAIL}",
)
# How text is cut before merging, by tokenizer.ggml.pre; each pattern cuts what the one before left.
PATTERNS: dict[str, tuple[str, ...]] = {
    "qwen2": (_words(r"\p{L}", ""),),
    "qwen35": (_words(r"[\p{L}\p{M}]", ""),),
    "llama-bpe": (_words(r"\p{L}", "{1,3}"),),
    "glm4": (_words(r"\p{L}", "{1,3}"),),
    "chatglm-bpe": (_words(r"\p{L}", "{1,3}"),),
    "gpt-4o": (_O200K,),
    "minimax-m2": (_O200K,),
    "gpt-2": (_GPT2,),
    "olmo": (_GPT2,),
    "deepseek-v3": _DEEPSEEK,
}
_NORMALISED = ("qwen2", "qwen35", "olmo")  # text is brought to NFC first
# The work to find the merges of a SentencePiece token grows with the square of its length.
MAX_TOKEN = 1024
# Token types of ggml.
CONTROL, USER = 3, 4
# Ends of an answer that eos_token_id may leave out.
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|return|>", "<|call|>", "<|eot_id|>", "[e~[")
_GLM_ENDS = ("<|user|>", "<|observation|>")


def text_files(metadata: Mapping[str, Any], where: object) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja.

    Those that the metadata say nothing about are left out. Raises CheckpointError for a tokenizer
    that is damaged or cannot be expressed.
    """
    files = {}
    if "tokenizer.ggml.model" in metadata:
        tokens = _strings(metadata, "tokens", where)
        files["tokenizer.json"] = _json(_tokenizer(metadata, tokens, where))
        files["tokenizer_config.json"] = _json(_tokenizer_config(metadata, tokens, where))
        files["generation_config.json"] = _json(_generation_config(metadata, tokens, where))
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        files["chat_template.jinja"] = template.encode()
    return files


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _tokenizer(metadata: Mapping[str, Any], tokens: Sequence[str], where: object) -> Any:
    kind = metadata["tokenizer.ggml.model"]
    makers = {"gpt2": _byte_level, "llama": _sentence_pieces}
    if not isinstance(kind, str) or kind not in makers:
        raise _bad(where, "model", " | ".join(makers), kind)
    if not tokens or max(map(len, tokens)) > MAX_TOKEN:
        raise _bad(where, "tokens", f"texts of up to {MAX_TOKEN} characters", "none or longer ones")
    if len(set(tokens)) != len(tokens):
        raise _bad(where, "tokens", "different texts", "a text twice")
    base: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "post_processor": None,
    }
    base["added_tokens"] = _added(metadata, tokens, where)
    return base | makers[kind](metadata, tokens, where)


def _bad(where: object, key: str, expected: object, got: object) -> CheckpointError:
    return CheckpointError(
        "tokenizer of a GGUF file is not supported",
        where=f"{where}: tokenizer.ggml.{key}",
        expected=expected,
        got=reprlib.repr(got),
        hint="Put the model's own tokenizer.json beside the file",
    )


def _strings(metadata: Mapping[str, Any], key: str, where: object) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _bad(where, key, "a list of strings", type(value).__name__)
    return value


def _numbers(metadata: Mapping[str, Any], key: str, count: int, where: object) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, np.ndarray) or len(value) != count:
        raise _bad(where, key, f"{count} numbers", type(value).__name__)
    numbers: list[Any] = value.tolist()
    return numbers


def _added(metadata: Mapping[str, Any], tokens: Sequence[str], where: object) -> list[Any]:
    """Control tokens, and tokens that are never cut."""
    kinds = _numbers(metadata, "token_type", len(tokens), where)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": id_, "content": tokens[id_], "special": kind == CONTROL, **flags}
        for id_, kind in enumerate(kinds)
        if kind in (CONTROL, USER)
    ]


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], where: object) -> Any:
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in PATTERNS:
        raise _bad(where, "pre", " | ".join(PATTERNS), pre)
    vocab = {text: id_ for id_, text in enumerate(tokens)}
    merges = [merge.split(" ") for merge in _strings(metadata, "merges", where)]
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocab.keys():
            raise _bad(where, "merges", "two tokens that make a third", " ".join(merge))
    cuts = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in PATTERNS[pre]
    ]
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {
        "normalizer": {"type": "NFC"} if pre in _NORMALISED else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*cuts, {**bytes_, "use_regex": False}],
        },
        "decoder": {**bytes_, "use_regex": True},
        "model": _bpe(vocab, merges, ignore_merges=pre == "llama-bpe"),
    }


def _bpe(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], **more: object) -> Any:
    plain: dict[str, Any] = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    plain |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    return {"type": "BPE", **plain, "vocab": vocab, "merges": merges, **more}


def _sentence_pieces(metadata: Mapping[str, Any], tokens: Sequence[str], where: object) -> Any:
    """SentencePiece BPE: blanks are U+2581, a merge makes the token with the best score first."""
    scores = _numbers(metadata, "scores", len(tokens), where)
    vocab = {text: id_ for id_, text in enumerate(tokens)}
    merges = [
        (-scores[id_], vocab[text[:cut]], vocab[text[cut:]], (text[:cut], text[cut:]))
        for id_, text in enumerate(tokens)
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    blank = {"pattern": {"String": " "}, "content": "▁", "type": "Replace"}
    unblank = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    steps = [unblank, {"type": "ByteFallback"}, {"type": "Fuse"}]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    prefix = [{"type": "Prepend", "prepend": "▁"}]
    spaced = _flag(metadata, "add_space_prefix", True, where)
    unknown = tokens[_named(metadata, "unknown", tokens, where) or 0]
    pairs = [pair for *_, pair in sorted(merges)]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*(prefix if spaced else []), blank]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*steps, *([strip] if spaced else [])]},
        "model": _bpe(vocab, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }


def _named(metadata: Mapping[str, Any], key: str, tokens: Sequence[str], where: object) -> Any:
    """The id under a key, or None."""
    id_ = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if id_ is not None and (type(id_) is not int or not 0 <= id_ < len(tokens)):
        raise _bad(where, f"{key}_token_id", f"0 to {len(tokens) - 1}", id_)
    return id_


def _flag(metadata: Mapping[str, Any], key: str, default: bool, where: object) -> bool:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise _bad(where, key, "true or false", value)
    return value


def _tokenizer_config(metadata: Mapping[str, Any], tokens: Sequence[str], where: object) -> Any:
    ids = {key: _named(metadata, key, tokens, where) for key in ("bos", "eos")}
    config = {f"{key}_token": tokens[id_] for key, id_ in ids.items() if id_ is not None}
    return {**config, "add_bos_token": _flag(metadata, "add_bos_token", False, where)}


def _generation_config(metadata: Mapping[str, Any], tokens: Sequence[str], where: object) -> Any:
    """All ids that end an answer: those of the metadata, and those whose text says so."""
    known = {_named(metadata, key, tokens, where) for key in ("eos", "eot")} - {None}
    pre = metadata.get("tokenizer.ggml.pre")
    glm = isinstance(pre, str) and pre in ("glm4", "chatglm-bpe")
    ends = {*_ENDS, *(_GLM_ENDS if glm else ())}
    kinds = _numbers(metadata, "token_type", len(tokens), where)
    named = {i for i, text in enumerate(tokens) if kinds[i] == CONTROL and text in ends}
    return {"eos_token_id": sorted(known | named)}
