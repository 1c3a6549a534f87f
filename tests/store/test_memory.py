"""Packing runs in bounded memory, whatever the size of a tensor."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

from tests.support.tiny_checkpoints import write_checkpoint

# The promise is 1 GB for a source of any size; a small source must stay well below.
LIMIT_BYTES = 300_000_000
VOCAB, HIDDEN = 250_000, 2304

_MEASURE = """
import sys
from pathlib import Path
from flashmoe.experts.memory import peak_resident
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.plan import PackOptions
pack_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), PackOptions.parse("q4", "q4", 64))
print(peak_resident())
"""


def write_big_embedding(path: Path) -> int:
    """Makes the checkpoint's weights a sparse file with a huge embedding; returns its bytes."""
    source = path / "model.safetensors"
    raw = source.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, shift = json.loads(raw[8 : 8 + length]), 0
    for name, entry in header.items():
        entry["data_offsets"] = [shift + offset for offset in entry["data_offsets"]]
        if name == "model.embed_tokens.weight":
            shift = 2 * VOCAB * HIDDEN - entry["data_offsets"][1]
            entry["shape"], entry["data_offsets"] = [VOCAB, HIDDEN], [0, 2 * VOCAB * HIDDEN]
    text = json.dumps(header).encode()
    end = max(entry["data_offsets"][1] for entry in header.values())
    with source.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return 2 * VOCAB * HIDDEN


def test_peak_memory_of_a_huge_embedding(tmp_path: Path) -> None:
    path = write_checkpoint(
        tmp_path / "s", "qwen3_moe", hidden_size=HIDDEN, tie_word_embeddings=True
    )
    config = (
        (path / "config.json").read_text().replace('"vocab_size": 100', f'"vocab_size": {VOCAB}')
    )
    (path / "config.json").write_text(config)
    assert write_big_embedding(path) > 3 * LIMIT_BYTES
    command = [sys.executable, "-c", _MEASURE, str(path), str(tmp_path / "p")]
    peak = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert peak < LIMIT_BYTES
