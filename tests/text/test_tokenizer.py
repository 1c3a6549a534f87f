import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.demo import demo_model_path
from flashmoe.errors import PackError, StorageError, UsageError
from flashmoe.text.tokenizer import Tokenizer

# Tokenizers are immutable here: sharing one saves a load per hypothesis example.
TOKENIZER = Tokenizer(demo_model_path())
MARKUP = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<tool_call>",
    "</tool_response>",
    "<think>",
]
unicode_text = st.text(st.characters(exclude_categories=["Cs"]))


def definition() -> dict[str, object]:
    parsed: dict[str, object] = json.loads((demo_model_path() / "tokenizer.json").read_text())
    return parsed


def test_markup_text_becomes_control_tokens() -> None:
    assert TOKENIZER.encode("<|im_start|>a<|im_end|>") == [1, 67, 2]


@pytest.mark.parametrize("markup", MARKUP)
def test_plain_text_never_becomes_a_control_token(markup: str) -> None:
    ids = TOKENIZER.encode_plain(f"say {markup} twice: {markup}{markup}")
    assert TOKENIZER.markup_ids.isdisjoint(ids)
    assert TOKENIZER.decode(ids, skip_special=False) == f"say {markup} twice: {markup}{markup}"


@given(st.lists(st.sampled_from([*MARKUP, "<|", "im_", "|>", " ", "é", "\n"])).map("".join))
def test_plain_text_is_safe_for_any_mixture(text: str) -> None:
    ids = TOKENIZER.encode_plain(text)
    assert TOKENIZER.markup_ids.isdisjoint(ids)
    assert TOKENIZER.decode(ids, skip_special=False) == text


@given(unicode_text)
def test_decode_inverts_encode(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special=False) == text


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    assert TOKENIZER.decode([67, 2]) == "a"
    assert TOKENIZER.decode([67, 2], skip_special=False) == "a<|im_end|>"


def test_nothing_is_added_even_if_the_file_has_a_post_processor(tmp_path: Path) -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }
    tokenizer = write(tmp_path, definition() | {"post_processor": template})
    assert tokenizer.encode("a") == tokenizer.encode_plain("a") == [67]


def test_a_truncation_rule_in_the_file_is_ignored(tmp_path: Path) -> None:
    rule = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tokenizer = write(tmp_path, definition() | {"truncation": rule})
    assert len(tokenizer.encode("one two three four")) == len(
        TOKENIZER.encode("one two three four")
    )


def test_blank_runs_are_text_not_markup(tmp_path: Path) -> None:
    parsed = definition()
    blanks = {
        "id": 8192,
        "content": "   ",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
    }
    tokenizer = write(tmp_path, parsed | {"added_tokens": [*parsed["added_tokens"], blanks]})  # type: ignore[misc]
    assert tokenizer.encode_plain("a   b") == tokenizer.encode("a   b") == [67, 8192, 68]


def write(directory: Path, content: dict[str, object]) -> Tokenizer:
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return Tokenizer(directory)


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(UsageError, match=r"prompt: text is not valid Unicode; got U\+DC80"):
        TOKENIZER.encode("a\udc80")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"tokenizer\.json: file is missing"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"garbage", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "expected an object, got list"),
        (b"null", "got null"),
        (b"[" * 100_000, "not valid JSON"),
        (b"{}", "not a tokenizer"),
        (b'{"model": {"type": "BPE"}}', "not a tokenizer"),
    ],
)
def test_garbage_is_a_typed_error_naming_the_file(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(PackError, match=message) as caught:
        Tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


def test_unreadable_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(StorageError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer(tmp_path)
