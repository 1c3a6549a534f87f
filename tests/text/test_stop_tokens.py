import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flashmoe.demo import demo_model_path
from flashmoe.errors import PackError
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.stop_tokens import stop_ids
from flashmoe.text.tokenizer import Tokenizer


def ids_of(directory: Path, **files: Any) -> frozenset[int]:
    shutil.copy(demo_model_path() / "tokenizer.json", directory)
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return stop_ids(directory, Tokenizer(directory), ChatTemplate(directory))


def test_demo_model_stops_at_turn_and_document_end() -> None:
    directory = demo_model_path()
    assert stop_ids(directory, Tokenizer(directory), ChatTemplate(directory)) == {0, 2}


def test_every_source_counts(tmp_path: Path) -> None:
    found = ids_of(
        tmp_path,
        generation_config={"eos_token_id": [5, 6]},
        config={"eos_token_id": 7, "text_config": {"eos_token_id": 8}},
        tokenizer_config={"eos_token": {"content": "<|endoftext|>"}},
    )
    assert found == {0, 5, 6, 7, 8}


def test_the_chat_end_in_the_template_counts(tmp_path: Path) -> None:
    assert ids_of(tmp_path, tokenizer_config={"chat_template": "x<|im_end|>"}) == {2}


def test_a_chat_end_that_is_no_token_does_not_count(tmp_path: Path) -> None:
    assert ids_of(tmp_path, tokenizer_config={"chat_template": "x<|eot_id|>"}) == frozenset()


def test_harmony_stops_at_answers_and_tool_calls_not_at_messages(tmp_path: Path) -> None:
    names = ("<|endoftext|>", "<|return|>", "<|end|>", "<|call|>")
    vocabulary = json.loads((demo_model_path() / "tokenizer.json").read_text())
    first = 1 + max(token["id"] for token in vocabulary["added_tokens"])
    first = max(first, 1 + max(vocabulary["model"]["vocab"].values()))
    like = {**vocabulary["added_tokens"][0], "special": True}
    vocabulary["added_tokens"] += [
        {**like, "id": first + i, "content": name} for i, name in enumerate(names[1:])
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    # Early files of gpt-oss lack <|call|> here.
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [first, 0]}))
    template = {"chat_template": "<|start|>x<|end|> <|call|> <|return|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(template))
    found = stop_ids(tmp_path, Tokenizer(tmp_path), ChatTemplate(tmp_path))
    assert found == {0, first, first + 2}


@pytest.mark.parametrize("value", ["2", -1, [2, "3"], True, 2.0, {"id": 2}])
def test_a_bad_eos_names_its_file(tmp_path: Path, value: object) -> None:
    with pytest.raises(PackError, match=r"generation_config\.json: eos_token_id is neither"):
        ids_of(tmp_path, generation_config={"eos_token_id": value})


def test_garbage_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PackError, match=r"config\.json: not valid JSON"):
        ids_of(tmp_path)
