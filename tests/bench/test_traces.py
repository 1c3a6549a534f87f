from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.bench.traces import Visit, read_trace
from flashmoe.errors import StorageError, UsageError

JSON_LINES = """{"tok": 1, "layers": [[3, 1], [0, 2]]}
{"tok": 2, "layers": [[1, 1], [2, 5]]}
"""

CSV = """# route_trace v1
# model=some.gguf arch=qwen3moe n_layer=2 n_expert=8 n_expert_used=2
# layer=0 expert_bytes=100 dense_bytes=5
# layer=1 expert_bytes=200 dense_bytes=5
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
0,0,0,0,0,7,0.6,0,100
0,0,0,0,1,3,0.4,0,100
0,0,0,1,0,2,0.6,0,200
0,0,0,1,1,6,0.4,0,200
0,1,1,0,0,3,0.6,1,0
0,1,1,0,1,4,0.4,0,100
0,1,1,1,0,6,0.6,1,0
0,1,1,1,1,0,0.4,0,200
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_json_lines(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, JSON_LINES))
    assert trace.visits == (
        Visit(0, (1, 3), decode=True),
        Visit(1, (0, 2), decode=True),
        Visit(0, (1,), decode=True),
        Visit(1, (2, 5), decode=True),
    )
    assert (trace.tokens, trace.num_experts, trace.total_experts, trace.widest) == (2, 6, 12, 2)
    assert trace.expert_bytes == {}


def test_csv(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, CSV))
    assert trace.visits == (
        Visit(0, (3, 7), decode=False),
        Visit(1, (2, 6), decode=False),
        Visit(0, (3, 4), decode=True),
        Visit(1, (0, 6), decode=True),
    )
    assert (trace.tokens, trace.num_experts, trace.total_experts) == (1, 8, 16)
    assert trace.expert_bytes == {0: 100, 1: 200}


def test_the_user_may_say_how_many_experts_there_are(tmp_path: Path) -> None:
    assert read_trace(write(tmp_path, JSON_LINES), num_experts=64).total_experts == 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the trace is empty"),
        ('{"tok": 1}\n', "line 1 is no part of a trace"),
        ("not json\n", "line 1 is no part of a trace"),
        ('{"layers": [[1], []]}\n', "line 1 is no part of a trace"),
        ('{"layers": [["x"]]}\n', "line 1 is no part of a trace"),
        ('{"layers": [[-1]]}\n', "expert id out of range in layer 0"),
        (CSV.replace("expert,weight", "export,weight"), "line 2 is no part of a trace"),
        (CSV.replace("0,1,1,0,1,4", "0,1,1,0,1,four"), "line 7 is no part of a trace"),
        (CSV.replace("0,1,1,0,1,4", "0,1,1,0,1,8"), "expert id out of range in layer 0"),
        (CSV.replace("n_expert=8", "n_expert=many"), "line 1 is no part of a trace"),
        ("# route_trace v1\n", "the trace is empty"),
    ],
)
def test_damaged_traces(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_trace(write(tmp_path, text))


def test_a_missing_trace(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        read_trace(tmp_path / "absent")


def test_ids_beyond_what_the_user_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 to 4"):
        read_trace(write(tmp_path, JSON_LINES), num_experts=5)
