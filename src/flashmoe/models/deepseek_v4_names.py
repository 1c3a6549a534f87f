"""How published DeepSeek-V4 checkpoints spell the names of its weights."""

from __future__ import annotations

# In this order. The first alone gives the published name of the attention's kv_norm; all of them
# that of transformers, and every other name.
SPELLINGS = (
    (".self_attn.", ".attn."),
    (".mlp.", ".ffn."),
    ("embed_tokens.", "embed."),
    ("lm_head.", "head."),
    ("hc_head.hc_", "hc_head_"),
    (".attn_hc.", ".hc_attn_"),
    (".ffn_hc.", ".hc_ffn_"),
    (".input_layernorm.", ".attn_norm."),
    (".post_attention_layernorm.", ".ffn_norm."),
    (".compressor.indexer.scorer.", ".indexer."),
    (".compressor.indexer.q_b_proj.", ".indexer.wq_b."),
    (".compressor.indexer.", ".indexer.compressor."),
    (".compressor.gate_proj.", ".compressor.wgate."),
    (".sinks", ".attn_sink"),
    (".position_bias", ".ape"),
    (".kv_norm.", ".norm."),
    (".q_a_norm.", ".q_norm."),
    (".q_a_proj.", ".wq_a."),
    (".q_b_proj.", ".wq_b."),
    (".kv_proj.", ".wkv."),
    (".o_a_proj.", ".wo_a."),
    (".o_b_proj.", ".wo_b."),
    (".e_score_correction_bias", ".bias"),
    (".gate_proj.", ".w1."),
    (".down_proj.", ".w2."),
    (".up_proj.", ".w3."),
)
