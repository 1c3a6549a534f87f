"""Tokenizers made of GGUF metadata equal those that the metadata were taken from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from flashmoe.checkpoint.gguf_tokenizer import PATTERNS, text_files
from flashmoe.demo import demo_model_path
from flashmoe.errors import CheckpointError

DEMO = demo_model_path()

TEXTS = [
    "Hello, world! It's 12345 o'clock.\n\n  Tabs\tand\r\nlines ",
    "Straße 東京 ümlaut — “quotes” 👩‍🚀 I'LL we've",
    "def f(x):\n    return x ** 2  # 3.14",
]


def byte_level() -> dict[str, Any]:
    """Metadata of the demo model's tokenizer."""
    raw = json.loads((DEMO / "tokenizer.json").read_text())
    added = {token["id"]: token for token in raw["added_tokens"]}
    vocab = {**raw["model"]["vocab"], **{t["content"]: id_ for id_, t in added.items()}}
    tokens = sorted(vocab, key=lambda text: vocab[text])
    assert [vocab[text] for text in tokens] == list(range(len(tokens)))
    kinds = [(3 if added[i]["special"] else 4) if i in added else 1 for i in range(len(tokens))]
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.chat_template": "{{ messages[0].content }}<|im_end|>",
    }


def test_a_byte_level_tokenizer_is_the_one_it_was(tmp_path: Path) -> None:
    files = text_files(byte_level(), tmp_path)
    made = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    original = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    for text in [*TEXTS, "<|im_start|>user\nHi<|im_end|>\n"]:
        ids = original.encode(text, add_special_tokens=False).ids
        assert made.encode(text, add_special_tokens=False).ids == ids
        assert made.decode(ids) == original.decode(ids)
    end = made.token_to_id("<|im_end|>")
    assert end in json.loads(files["generation_config.json"])["eos_token_id"]
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<|im_end|>"
    assert files["chat_template.jinja"] == b"{{ messages[0].content }}<|im_end|>"


@pytest.mark.parametrize("pre", sorted(PATTERNS))
def test_every_known_way_to_cut_text_keeps_the_text(pre: str, tmp_path: Path) -> None:
    files = text_files(byte_level() | {"tokenizer.ggml.pre": pre}, tmp_path)
    made = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in TEXTS:
        assert made.decode(made.encode(text, add_special_tokens=False).ids) == text


def test_sentence_pieces_merge_by_score_and_fall_back_to_bytes(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += ["▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab"]
    scores = [0.0] * 259 + [-9.0] * 4 + [-2.0, -1.0, -3.0, -4.0]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * 8, np.int32),
    }
    files = text_files(metadata, tmp_path)
    made = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    found = made.encode("abc ab é", add_special_tokens=False)
    assert found.tokens == ["▁a", "bc", "▁ab", "▁", "<0xC3>", "<0xA9>"]
    assert made.decode(found.ids) == "abc ab é"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "expected gpt2 | llama, got 'bert'"),
        ({"tokenizer.ggml.pre": "kimi-k2"}, "tokenizer.ggml.pre.*got 'kimi-k2'.*tokenizer.json"),
        ({"tokenizer.ggml.tokens": 3}, "a list of strings"),
        ({"tokenizer.ggml.merges": ["nosuch pair"]}, "two tokens that make a third"),
        ({"tokenizer.ggml.token_type": np.zeros(2, np.int32)}, "numbers"),
        ({"tokenizer.ggml.eos_token_id": 1 << 30}, "eos_token_id"),
    ],
)
def test_refusals(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        text_files(byte_level() | change, tmp_path)
