"""DeepSeek-V4: its config in both forms, published checkpoints, and what its state promises."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flashmoe
from flashmoe.checkpoint.directory import Checkpoint
from flashmoe.errors import CheckpointError, ConfigError
from flashmoe.models import deepseek_v4
from flashmoe.models.decoder import Weights
from flashmoe.models.deepseek_v4_config import HASH, HEAVY, SCORED, SLIDING, SPARSE
from flashmoe.store.packed import PackedModel
from tests.store.support import read_record
from tests.support import oracle, tiny_v4
from tests.support.oracle import assert_close_and_same_choice
from tests.support.packs import assert_same_bits, transcript
from tests.support.tiny_v4 import CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compress_ratios": None}, "compress_ratios: .*the kind of each layer"),
        ({"compress_ratios": [0, 8, 128]}, r"compress_ratios: .*0 \| 4 \| 128, got 8"),
        ({"compress_ratios": [0, 4]}, "compress_ratios: .*at least 3"),
        ({"layer_types": [SLIDING, HEAVY, SPARSE]}, "layer_types: .*as compress_ratios says"),
        ({"compress_rope_theta": None}, "compress_rope_theta: key is missing"),
        ({"hc_mult": None}, "hc_mult: key is missing"),
        ({"index_head_dim": 8}, "index_head_dim: .*at least 16, got 8"),
        ({"num_key_value_heads": 2}, "num_key_value_heads: unsupported value"),
        ({"n_shared_experts": 2}, "n_shared_experts: unsupported value"),
        ({"num_hash_layers": None}, "num_hash_layers: key is missing"),
        ({"o_groups": 3}, "o_groups: .*a divisor of 4"),
        ({"qk_rope_head_dim": 15}, "qk_rope_head_dim: .*even"),
        ({"qk_rope_head_dim": 16, "partial_rotary_factor": 0.5}, "qk_rope_head_dim: .*32, got 16"),
        ({"compress_rope_theta": 1.0}, "compress_rope_theta: .*more than 1"),
        ({"scoring_func": "sigmoid"}, "scoring_func: unsupported value"),
        ({"swiglu_limit": 7.0}, "swiglu_limit: unsupported value"),
    ],
)
def test_unsupported_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deepseek_v4.read_config({**CONFIG, **change})


def test_published_keys_and_those_of_transformers_say_the_same() -> None:
    newer = ("compress_ratios", "num_hash_layers", "rope_scaling", "qk_rope_head_dim")
    shared = {"factor": 16, "beta_fast": 32, "beta_slow": 1, "partial_rotary_factor": 0.25}
    raw = {key: value for key, value in CONFIG.items() if key not in newer}
    raw |= {
        "layer_types": [SLIDING, SPARSE, HEAVY],
        "mlp_layer_types": [HASH, SCORED, SCORED],
        "compress_rates": {SPARSE: 4, HEAVY: 128},
        "partial_rotary_factor": 0.25,
        "rope_parameters": {
            "main": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
            "compress": {
                **shared,
                "attention_factor": 1.0,
                "original_max_position_embeddings": 65536,
                "rope_type": "yarn",
                "rope_theta": 1.6e5,
            },
        },
    }
    assert deepseek_v4.read_config(raw) == deepseek_v4.read_config(CONFIG)


@given(data=st.data())
def test_a_damaged_config_is_a_typed_error(data: st.DataObject) -> None:
    """Any key gone, or of any other value."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
        max_leaves=4,
    )
    raw = {**CONFIG, data.draw(st.sampled_from(sorted(CONFIG))): data.draw(values)}
    with contextlib.suppress(ConfigError):
        deepseek_v4.read_config(raw)


def test_bytes_of_the_state() -> None:
    """Per layer a ring of 576 rows; per entry kind its rows and 32-bit parts under way."""
    config = deepseek_v4.read_config(CONFIG)
    rings = 3 * 576 * 64 * 2
    sparse = 250 * (64 + 64) * 2 + 2 * (8 * 4 * 64 * 4)
    heavy = 7 * 64 * 2 + 128 * 2 * 64 * 4
    assert deepseek_v4.state_bytes(config, 1000, 2) == rings + sparse + heavy


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_v4.write_pair(tmp_path_factory.mktemp("v4"))


IDS = list(range(3, 203))


@pytest.mark.oracle
def test_a_published_checkpoint_is_what_its_codes_mean(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    bits = []
    for source in pair:
        flashmoe.pack(source, tmp_path / source.name, experts="bf16", dense="bf16")
        with flashmoe.load(tmp_path / source.name) as model:
            bits.append(transcript(model, IDS, steps=4))
    assert_same_bits(*bits)


@pytest.mark.oracle
def test_fp4_experts_stay_as_they_are(pair: tuple[Path, Path], tmp_path: Path) -> None:
    published, plain = pair
    flashmoe.pack(published, tmp_path / "pack", experts="same", dense="bf16")
    pack = PackedModel.open(tmp_path / "pack")
    layout = pack.manifest.experts
    assert (layout.gate_up.name, layout.down.name) == ("mxfp4", "mxfp4")
    with Checkpoint(plain) as checkpoint:
        raw = checkpoint.read(
            checkpoint.tensors["model.layers.1.ffn.experts.5.w2.weight"], 0, 2**14
        )
    down = read_record(pack, 1, 5)[layout.down_offset :][: layout.down.nbytes(128, 64)]
    expected = (raw.view("<u2").astype("<u4") << 16).view("<f4").reshape(128, 64)
    np.testing.assert_array_equal(layout.down.decode(down, 128, 64), expected)


@pytest.mark.oracle
def test_a_published_checkpoint_runs_in_place(pair: tuple[Path, Path], tmp_path: Path) -> None:
    flashmoe.pack(pair[0], tmp_path / "pack", experts="same", dense="same")
    with flashmoe.load(tmp_path / "pack") as model:
        expected = transcript(model, IDS, steps=4)
    with flashmoe.load(pair[0], cache="0") as model:
        assert_same_bits(transcript(model, IDS, steps=4), expected)


@pytest.mark.oracle
def test_missing_scales_are_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    raw = (pair[0] / "model.safetensors").read_bytes()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_bytes((pair[0] / "config.json").read_bytes())
    for name in (b"layers.0.ffn.experts.3.w1.scale", b"layers.0.attn.wq_b.scale"):
        (damaged / "model.safetensors").write_bytes(raw.replace(name, name[:-1] + b"a"))
        with pytest.raises(CheckpointError, match=r"tensor is missing"):
            flashmoe.pack(damaged, tmp_path / "pack")


@pytest.fixture(scope="module")
def tiny() -> Any:
    return oracle.tiny_model("deepseek_v4")


@pytest.fixture(scope="module")
def packed(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    source = oracle.save(tiny, root / "source", fused=False)
    flashmoe.pack(source, root / "packed", experts="bf16", dense="bf16")
    return root / "packed"


# More than the ring of a window holds.
LONG = (np.arange(700, dtype=np.int32) * 37 + 11) % 512


@pytest.mark.oracle
def test_a_prompt_longer_than_the_ring(packed: Path, tiny: Any) -> None:
    with flashmoe.load(packed) as model:
        assert_close_and_same_choice(model.logits(LONG), oracle.logits(tiny, LONG))


@pytest.mark.oracle
def test_cuts_anywhere_change_no_bit(packed: Path) -> None:
    """Unlike other families: nothing is computed in blocks of positions but entries."""
    with flashmoe.load(packed) as model:
        whole = model.logits(LONG)
        for chunk in (1, 3, 31, 33, 128, 500, 513):
            np.testing.assert_array_equal(
                model.session().feed_all(LONG.tolist(), chunk=chunk), whole
            )


@pytest.mark.oracle
def test_experts_of_tokens_are_known_before(packed: Path) -> None:
    """What a layer with a table would choose does not depend on the streams."""
    with flashmoe.load(packed) as model:
        engine: Any = model.session().engine
        first, second, third = (layer.mlp for layer in engine.decoder.layers[:3])
        assert first.weights.table is not None
        assert third.weights.table is None
        ids, h = LONG[:9], np.random.default_rng(0).standard_normal((9, 4 * 128), np.float32)
        engine.ops.begin_pass()
        np.testing.assert_array_equal(second.likely(h, ids, engine.ops), second.weights.table[ids])


@pytest.mark.oracle
def test_an_expert_named_twice_counts_twice(tiny: Any, tmp_path: Path) -> None:
    t = oracle.torch()
    tables = [layer.mlp.gate.tid2eid for layer in tiny.model.layers[:2]]
    kept = [table.clone() for table in tables]
    with t.no_grad():
        for table in tables:
            table[:, 1] = table[:, 0]
    try:
        source = oracle.save(tiny, tmp_path / "source", fused=True)
        expected = oracle.logits(tiny, LONG[:50])
    finally:
        for table, before in zip(tables, kept, strict=True):
            table.copy_(before)
    flashmoe.pack(source, tmp_path / "packed", experts="bf16", dense="bf16")
    with flashmoe.load(tmp_path / "packed", cache="0") as model:
        assert_close_and_same_choice(model.logits(LONG[:50]), expected)
        session = model.session()
        one_by_one = [session.feed([token]) for token in LONG[:50].tolist()]
        assert_close_and_same_choice(np.stack(one_by_one).reshape(50, -1), expected)


def test_a_table_that_names_no_expert_is_refused() -> None:
    config = deepseek_v4.read_config(CONFIG)
    name = "layers.0.mlp.gate.tid2eid"
    for wrong in (8.0, -1.0, 0.5):
        table = np.full((512, 2), wrong, dtype=np.float32)
        with pytest.raises(ConfigError, match="bad expert of a token"):
            deepseek_v4._table(0, config, Weights({}, {name: table}))
