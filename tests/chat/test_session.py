from pathlib import Path

import pytest

import flashmoe
from flashmoe.chat.bash import bash_tool
from flashmoe.chat.commands import Commands
from flashmoe.chat.options import Options
from flashmoe.chat.saved import load, save
from flashmoe.chat.session import Chat
from flashmoe.chat.tools import ToolBox
from flashmoe.errors import UsageError
from tests.chat.conftest import Make, Recorder

CALL = '<tool_call>\n{"name": "bash", "arguments": {"command": "echo $((6*7))"}}\n</tool_call>'
QUESTIONS = ["What is the capital of Italy?", "What is 3 plus 4?"]


def test_the_second_turn_feeds_only_what_is_new(make: Make, view: Recorder) -> None:
    chat = make("Good morning.", "Good night.")
    chat.ask("Hello")
    first = len(chat.scripted.fed[0])
    chat.ask("And now?")
    said = len(chat._model.tokenizer.encode("Good morning."))
    assert chat.figures.reused == first + said
    assert len(chat.scripted.fed[1]) == chat.figures.prompt_tokens - first - said
    assert view.said == "Good morning.Good night."


@pytest.mark.parametrize("forgets", [False, True])
def test_retry_goes_back_where_the_state_can(make: Make, forgets: bool) -> None:
    chat = make("One.", "Two.", forgets=forgets)
    chat.ask("Say a number")
    chat.retry()
    assert chat.messages[-1]["content"] == "Two."
    assert len(chat.messages) == 2
    prompt = len(chat.scripted.fed[0])
    assert len(chat.scripted.fed[1]) == (prompt if forgets else 1)


def test_the_demo_model_says_the_same_with_and_without_reuse(view: Recorder) -> None:
    answers: list[list[str]] = []
    with flashmoe.load() as model:
        for fresh in (False, True):
            chat, said = Chat(model, view, ToolBox([]), Options()), []
            for question in QUESTIONS:
                if fresh:
                    chat._sequence.ids = chat._sequence.ids[: chat._sequence._session.rewind(0)]
                chat.ask(question)
                said.append(chat.messages[-1]["content"])
            answers.append(said)
            assert chat.figures is not None
            assert (chat.figures.reused == 0) == fresh
    assert answers[0] == answers[1] == ["The capital of Italy is Rome.", "3 plus 4 is 7."]


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(make: Make, view: Recorder) -> None:
    chat = make("Good morning to you.", interrupted=lambda: len(view.said) > 4)
    chat.ask("Hello")
    assert view.remarks == ["stopped"]
    assert "Good".startswith(chat.messages[-1]["content"][:4])
    assert len(chat.messages[-1]["content"]) < len("Good morning to you.")


def test_after_an_error_the_chat_is_as_before(make: Make) -> None:
    chat = make("Hi.")
    with pytest.raises(UsageError, match="too long for the context"):
        chat.ask("word " * 5000)
    assert chat.messages == []


def test_a_call_is_run_when_allowed_and_its_result_is_answered(make: Make, view: Recorder) -> None:
    view.decisions = [("yes", None)]
    chat = make(CALL, "It is 42.", tools=[bash_tool()])
    chat.ask("What is 6 times 7?")
    assert view.asked == [("bash", "echo $((6*7))")]
    assert view.results == ["42\n[exit code 0]"]
    assert [m["role"] for m in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert view.said.endswith("It is 42.")


def test_a_refused_call_is_told_to_the_model(make: Make, view: Recorder, tmp_path: Path) -> None:
    view.decisions = [("no", None)]
    chat = make(CALL, "Well.", tools=[bash_tool()])
    chat.ask("What is 6 times 7?")
    assert view.results == ["The user did not allow this call."]


def test_an_edited_command_is_what_runs(make: Make, view: Recorder) -> None:
    view.decisions = [("yes", "echo other")]
    chat = make(CALL, "Well.", tools=[bash_tool()])
    chat.ask("What?")
    assert view.results == ["other\n[exit code 0]"]


def test_always_asks_once(make: Make, view: Recorder) -> None:
    view.decisions = [("always", None)]
    chat = make(CALL, CALL, "Well.", tools=[bash_tool()])
    chat.ask("What?")
    assert len(view.asked) == 1
    assert len(view.results) == 2


def test_rounds_of_calls_have_a_limit(make: Make, view: Recorder) -> None:
    view.decisions = [("always", None)]
    chat = make(CALL, CALL, CALL, tools=[bash_tool()], rounds=2)
    chat.ask("What?")
    assert len(view.results) == 2
    assert view.notes == ["stopped after 2 rounds of tool calls (--rounds)"]


def test_a_cut_call_is_not_run(make: Make, view: Recorder) -> None:
    options = Options().changed("max_tokens", "12")
    chat = make(CALL, tools=[bash_tool()], options=options)
    chat.ask("What?")
    assert view.asked == []
    assert "tool_calls" not in chat.messages[-1]


def test_commands(make: Make, view: Recorder, tmp_path: Path) -> None:
    chat = make("Hi.")
    commands = Commands(chat, view)
    assert commands.run("/system Be brief.")
    chat.ask("Hello")
    commands.run("/set temperature 0.5")
    commands.run(f"/save {tmp_path / 'a.json'}")
    commands.run("/clear")
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    chat.options = Options()
    commands.run(f"/load {tmp_path / 'a.json'}")
    assert len(chat.messages) == 3
    assert chat.options.sampling.temperature == 0.5
    assert not commands.run("/quit")
    with pytest.raises(UsageError, match="unknown command"):
        commands.run("/bogus")
    with pytest.raises(UsageError, match="temperature: wrong value"):
        commands.run("/set temperature -1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"version": 1', '"version": 2'), "version: bad field"),
        (('"role": "user"', '"role": "root"'), r"messages\[0\]: role: bad field"),
        (('"content": "Hi"', '"content": 3'), r"messages\[0\]: content: bad field"),
        (('"content": "Hi"', '"content": "Hi", "x": 1'), "unknown key; got x"),
        (('"top_k": "0"', '"top_k": "many"'), "top_k: not a number"),
        (("{", "[", 1), "is not valid JSON"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "chat.json"
    save(path, [{"role": "user", "content": "Hi"}], Options())
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(UsageError, match=message):
        load(path)
