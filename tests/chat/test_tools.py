import sys
from pathlib import Path
from typing import Literal

import pytest

from flashmoe.chat.bash import run_command
from flashmoe.chat.functions import function_tool, tool_of
from flashmoe.chat.mcp import mcp_tools
from flashmoe.chat.reply import Call
from flashmoe.chat.tools import ToolBox, cut
from flashmoe.errors import ToolError, UsageError
from flashmoe.text.printable import visible
from tests.chat.conftest import Recorder

SERVER = """
from mcp.server.mcpserver import MCPServer

server = MCPServer("numbers")

@server.tool()
def add(a: int, b: int) -> str:
    "Add two numbers."
    return str(a + b)

server.run("stdio")
"""


def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> dict[str, int]:
    """What the weather
    will be.

    Args:
        city: where,
            exactly.
        days: how many.
    """
    return {city: days}


def test_a_function_as_a_tool() -> None:
    tool = tool_of(weather)
    assert tool.description == "What the weather will be."
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "where, exactly."},
            "days": {"type": "integer", "description": "how many."},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["city"],
    }
    assert tool.run({"city": "Rome"}) == '{"Rome": 1}'
    with pytest.raises(ToolError, match="weather: TypeError"):
        tool.run({"town": "Rome"})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("os", "expected module:function"),
        ("os:bogus", "has no function bogus"),
        ("no_such_module:f", "cannot be imported"),
        ("os:getenv", "no usable type"),
    ],
)
def test_functions_that_are_no_tools(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        function_tool(spec)


def test_bash_gives_back_output_and_exit_code() -> None:
    assert run_command({"command": "echo a; echo b >&2; exit 3"}, 10) == "a\nb\n[exit code 3]"


def test_bash_ends_in_time_with_all_it_started() -> None:
    assert run_command({"command": "sleep 30 & echo a; sleep 30"}, 0.3) == "a\n[killed after 0.3 s]"


def test_long_output_of_bash_is_cut() -> None:
    text = run_command(
        {"command": "echo begin; head -c 1000000 /dev/zero | tr '\\0' x; echo end"}, 10
    )
    assert text.startswith("begin")
    assert text.endswith("end\n[exit code 0]")
    assert "bytes left out" in text
    assert len(text) < 70_000
    assert cut("abcdefgh", 4) == "ab\n[... 4 characters left out ...]\ngh"


def test_what_goes_wrong_is_told_to_the_model() -> None:
    box = ToolBox([tool_of(weather)], trusted=True)
    assert box.carry_out(Call("1", "bogus", "{}"), Recorder()).text.startswith(
        "error: bogus: there is"
    )
    assert "not valid JSON" in box.carry_out(Call("1", "weather", "{"), Recorder()).text
    assert box.carry_out(Call("1", "weather", '{"city": "X"}'), Recorder()).ran


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two tools have the same name"):
        ToolBox([tool_of(weather), tool_of(weather)])


def test_what_is_to_be_allowed_shows_every_character() -> None:
    assert visible("rm\x1b[8m\u202e x\n") == "rm\\u001b[8m\\u202e x\n"


def test_an_mcp_server(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    with mcp_tools(f"{sys.executable} {tmp_path / 'server.py'}") as tools:
        (tool,) = tools
        assert tool.name == "add"
        assert tool.run({"a": 20, "b": 22}) == "42"
        with pytest.raises(ToolError):
            tool.run({"a": "x"})


def test_an_mcp_server_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="the server cannot be started"), mcp_tools("/no/such"):
        pass
