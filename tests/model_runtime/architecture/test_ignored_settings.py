"""Settings that transformers ignores are refused by name, from the config alone."""

from __future__ import annotations

import pytest
from transformers import BloomConfig, MptConfig, PretrainedConfig

from model_runtime.architecture.config_check import check_config, declared_context_tokens
from model_runtime.interface.errors import ModelLoadError


def mpt(**settings: object) -> MptConfig:
    return MptConfig(d_model=64, n_heads=4, n_layers=2, **settings)


def mpt_attention(**settings: object) -> MptConfig:
    return mpt(attn_config=settings)


REFUSED = [
    (mpt_attention(alibi=False), "attn_config.alibi"),
    (mpt_attention(alibi_bias_max=16), "attn_config.alibi_bias_max"),
    (mpt_attention(attn_type="multiquery_attention"), "attn_config.attn_type"),
    (mpt_attention(kv_n_heads=2), "attn_config.kv_n_heads"),
    (mpt_attention(prefix_lm=True), "attn_config.prefix_lm"),
    (mpt_attention(qk_ln=True), "attn_config.qk_ln"),
    (mpt_attention(rope=True), "attn_config.rope"),
    (mpt_attention(sliding_window_size=128), "attn_config.sliding_window_size"),
    (mpt(logit_scale="inv_sqrt_d_model"), "logit_scale"),
    (mpt(no_bias=False), "no_bias"),
    (mpt(expansion_ratio=2), "expansion_ratio"),
    (mpt(norm_type="rmsnorm"), "norm_type"),
    (BloomConfig(slow_but_exact=True, pretraining_tp=4), "slow_but_exact"),
]
ACCEPTED = [
    mpt(),
    mpt(learned_pos_emb=True, norm_type="layernorm", attn_config={"clip_qkv": 6.0, "softmax_scale": 0.1}),
    mpt_attention(kv_n_heads=4, sliding_window_size=-1, attn_impl="triton", rope=False),
    BloomConfig(slow_but_exact=True),
    BloomConfig(pretraining_tp=4),
]


@pytest.mark.parametrize(("config", "setting"), REFUSED, ids=[setting for _, setting in REFUSED])
def test_an_ignored_setting_is_refused_by_name(config: PretrainedConfig, setting: str) -> None:
    with pytest.raises(ModelLoadError, match=f"tiny cannot be used: its config sets {setting} to .* ignores"):
        check_config(config, "tiny")


@pytest.mark.parametrize("config", ACCEPTED, ids=range(len(ACCEPTED)))
def test_settings_that_change_nothing_are_accepted(config: PretrainedConfig) -> None:
    check_config(config, "tiny")


def test_the_context_is_read_under_each_architectures_word_for_it() -> None:
    assert declared_context_tokens(mpt(max_seq_len=8192)) == 8192
    assert declared_context_tokens(BloomConfig()) is None
    with pytest.raises(ModelLoadError, match="context is 33,554,432 tokens long"):
        check_config(mpt(max_seq_len=1 << 25), "tiny")
