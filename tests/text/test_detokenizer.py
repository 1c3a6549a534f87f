from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from flashmoe.demo import demo_model_path
from flashmoe.text.detokenizer import REPLACEMENT, Detokenizer
from flashmoe.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(demo_model_path())
any_id = st.integers(0, TOKENIZER.vocab_size - 1)
# Bytes 0x80 to 0xFF as tokens: most sequences of them are broken UTF-8.
byte_ids = [i for i in range(3, 259) if TOKENIZER.decode([i]) == REPLACEMENT]
unicode_text = st.text(st.characters(exclude_categories=["Cs"]))
tricky_text = st.text(st.sampled_from("a é€𝄞\u0301\ufffd👩‍🚀\n"))


def stream(detokenizer: Detokenizer, ids: Sequence[int], cuts: Sequence[int]) -> list[str]:
    bounds = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    pieces = [detokenizer.push(ids[a:b]) for a, b in pairwise(bounds)]
    return [*pieces, detokenizer.finish()]


def test_the_byte_tokens_are_there() -> None:
    assert len(byte_ids) > 100


@given(st.lists(any_id | st.sampled_from(byte_ids)), st.lists(st.integers(0, 100)))
def test_any_split_of_any_ids_gives_the_text_of_all(ids: list[int], cuts: list[int]) -> None:
    assert "".join(stream(TOKENIZER.detokenizer(), ids, cuts)) == TOKENIZER.decode(ids)


@given(unicode_text | tricky_text)
def test_token_by_token_shows_only_whole_characters(text: str) -> None:
    ids = TOKENIZER.encode_plain(text)
    pieces = stream(TOKENIZER.detokenizer(), ids, range(len(ids)))
    assert "".join(pieces) == text
    assert "".join(pieces).count(REPLACEMENT) == text.count(REPLACEMENT)


def test_a_character_comes_with_its_last_byte() -> None:
    ids = TOKENIZER.encode("𝄞")
    assert len(ids) > 1
    detokenizer = TOKENIZER.detokenizer()
    assert [detokenizer.push([id]) for id in ids] == [""] * (len(ids) - 1) + ["𝄞"]


def test_text_before_an_unfinished_character_is_not_delayed() -> None:
    detokenizer = TOKENIZER.detokenizer()
    assert detokenizer.push([67, *TOKENIZER.encode("𝄞")[:1]]) == "a"
    assert detokenizer.finish() == REPLACEMENT


def test_finish_starts_afresh() -> None:
    detokenizer = TOKENIZER.detokenizer()
    detokenizer.push(TOKENIZER.encode("𝄞")[:1])
    detokenizer.finish()
    assert detokenizer.push([67]) == "a"
    assert detokenizer.finish() == ""


def sentencepiece_decode() -> Detokenizer:
    words = ["<unk>", "▁Hello", "▁world", "▁", "s", *(f"<0x{b:02X}>" for b in range(256))]
    vocab = {word: index for index, word in enumerate(words)}
    backend = Backend(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>"])
    return Detokenizer(lambda ids: backend.decode(list(ids)))


def byte_tokens(text: str) -> list[int]:
    return [5 + byte for byte in text.encode()]


def test_blank_stripping_decoders_keep_inner_blanks() -> None:
    ids = [1, 2, 3, 4, 1]
    assert "".join(stream(sentencepiece_decode(), ids, range(6))) == "Hello world s Hello"


def test_a_skipped_token_does_not_hide_the_blank_after_it() -> None:
    special = 0
    assert stream(sentencepiece_decode(), [1, special, 2], range(4))[:4] == [
        "",
        "Hello",
        "",
        " world",
    ]


@given(st.lists(st.sampled_from([[1], [2], [4], byte_tokens("é"), byte_tokens("𝄞")]), min_size=1))
def test_byte_fallback_is_exact_for_valid_text(groups: list[list[int]]) -> None:
    ids = [id for group in groups for id in group]
    whole = "".join(stream(sentencepiece_decode(), ids, []))
    assert "".join(stream(sentencepiece_decode(), ids, range(len(ids)))) == whole
    assert REPLACEMENT not in whole
