from typing import Any

import numpy as np
import pytest

from flashmoe.demo import demo_model_path
from flashmoe.errors import UsageError
from flashmoe.generate.prompt import prompt_ids
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.tokenizer import Tokenizer

TOKENIZER, TEMPLATE = Tokenizer(demo_model_path()), ChatTemplate(demo_model_path())
HELLO = [{"role": "user", "content": "Hello"}]


def ids(prompt: Any = None, **options: Any) -> list[int]:
    return prompt_ids(TOKENIZER, TEMPLATE, prompt, **options)


def test_text_is_taken_as_it_stands() -> None:
    assert ids("Hello") == TOKENIZER.encode("Hello")


def test_ids_are_taken_as_they_are() -> None:
    assert ids([5, 6]) == [5, 6]
    assert ids((5, 6)) == [5, 6]
    assert ids(np.array([5, 6])) == [5, 6]
    assert ids([]) == []


def test_messages_go_through_the_template() -> None:
    assert ids(messages=HELLO) == TOKENIZER.encode(TEMPLATE.render(HELLO))


@pytest.mark.parametrize("options", [{}, {"prompt": "a", "messages": HELLO}])
def test_exactly_one_kind_of_prompt(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="either a prompt or messages"):
        ids(**options)


def test_tools_need_messages() -> None:
    with pytest.raises(UsageError, match="tools need messages"):
        ids("a", tools=[{"name": "f"}])


@pytest.mark.parametrize("bad", [-1, 1.0, "x", None])
def test_a_bad_id_is_named(bad: object) -> None:
    with pytest.raises(UsageError, match=r"prompt\[1\]: not a token id"):
        ids([3, bad])
