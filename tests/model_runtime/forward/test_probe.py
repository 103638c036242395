"""A model that would mix conversations is refused with the reason."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    masking_utils,
)

from model_runtime.forward import probe, transformers_forward
from model_runtime.forward.attention import ATTENTION_NAME
from model_runtime.forward.attention_options import HiddenKeys
from model_runtime.forward.probe import probe_packing
from model_runtime.forward.probing import recorded_masks
from model_runtime.forward.probing.compare import logits_gap
from model_runtime.forward.probing.record import record_layers
from model_runtime.forward.probing.recorded_masks import UnknownMask, hidden_by
from model_runtime.interface.errors import ModelLoadError
from model_runtime.reference.comparison import EXACT
from tests.model_runtime.tiny_families import tiny_family

CPU = torch.device("cpu")
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def tiny(architecture: type[PreTrainedModel], config: object) -> PreTrainedModel:
    torch.manual_seed(3)
    return architecture(config).eval()


def llama(**more: object) -> PreTrainedModel:
    config = LlamaConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=256, **more)
    return tiny(LlamaForCausalLM, config)


def test_llama_earns_it_and_its_geometry_is_read_off() -> None:
    geometry = probe_packing(llama(), torch.float32, 256, step_tokens=64)
    assert [(s.kv_heads, s.key_dim, s.value_dim) for s in geometry.layers] == [(2, 8, 8), (2, 8, 8)]
    assert geometry.bytes_per_token == 2 * 2 * 2 * 8 * 4


def test_a_model_that_never_calls_the_attention_function_is_refused() -> None:
    model = tiny(MambaForCausalLM, MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))
    with pytest.raises(ModelLoadError, match="called the attention function never"):
        probe_packing(model, torch.float32, 128, step_tokens=64)


def test_long_rope_earns_it_with_one_set_of_frequencies_per_conversation() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 64,
        "factor": 4.0,
    }
    model = llama(rope_parameters=rope)
    assert probe_packing(model, torch.float32, 256, step_tokens=64).short_rope_tokens == 64
    model.model.rotary_emb.forward = partial(type(model.model.rotary_emb).forward, model.model.rotary_emb)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "separate_rope_sets", lambda model: 64)
        patch.setattr(transformers_forward, "separate_rope_sets", lambda model: 64)
        with pytest.raises(ModelLoadError, match="cannot share a forward"):
            probe_packing(model, torch.float32, 256, step_tokens=64)


def test_dynamic_rope_is_refused_beyond_its_length() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    with pytest.raises(ModelLoadError, match=r"dynamic rotary positions.*--context-limit 256"):
        probe_packing(llama(rope_parameters=rope), torch.float32, 257, step_tokens=64)


def test_soft_capped_attention_earns_it() -> None:
    config = Gemma2Config(
        **SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=8, max_position_embeddings=256, sliding_window=32
    )
    assert len(probe_packing(tiny(Gemma2ForCausalLM, config), torch.float32, 256, step_tokens=64).layers) == 2


def test_a_model_that_disagrees_with_its_own_attention_is_refused() -> None:
    model = llama()
    # As if a future transformers scaled inside its own attention only: the packed path then disagrees.
    for layer in model.model.layers:
        attention, forward = layer.self_attn, layer.self_attn.forward

        def skewed(*args: object, attention=attention, forward=forward, **kwargs: object) -> object:  # type: ignore[no-untyped-def]
            chosen = attention.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
            attention.scaling = 2.0 if chosen == ATTENTION_NAME else 8**-0.5
            return forward(*args, **kwargs)

        attention.forward = skewed
    with pytest.raises(ModelLoadError, match="differ from its own attention"):
        probe_packing(model, torch.float32, 256, step_tokens=64)


def test_rounding_of_many_logits_is_told_from_another_computation() -> None:
    generator = torch.Generator().manual_seed(4)
    expected = torch.randn(2, 128_256, generator=generator)
    rounded = expected + 0.07 * torch.randn(expected.shape, generator=generator)
    other = torch.randn(expected.shape, generator=generator)

    assert float((rounded - expected).abs().max()) > 0.25
    for found, is_exact, is_accepted in ((rounded, False, True), (other, False, False), (rounded, True, False)):
        gap, limit = logits_gap(found, expected, is_exact)
        assert (gap <= limit) is is_accepted


@pytest.mark.parametrize("name", ["llama4 with chunks", "llama4 with a floor", "phimoe with a window", "gemma2"])
def test_what_only_the_mask_or_the_cache_knows_is_read_off(name: str) -> None:
    """A boundary beyond the first reads of the check: nothing of it reaches the attention function."""
    model = tiny_family(name)
    probe_packing(model, torch.float32, 512, step_tokens=64)
    options = record_layers(model).options
    assert {used.window or used.chunk for used in options} - {None}


def test_a_boundary_that_the_packed_path_drops_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_masks, "hidden_by", lambda function, local_size, device: HiddenKeys())
    with pytest.raises(ModelLoadError, match="differ from its own attention"):
        probe_packing(tiny_family("llama4 with chunks"), torch.float32, 512, step_tokens=64)


def test_a_small_copy_stands_for_a_model_that_is_slow_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_QUICK", 0)
    probe_packing(tiny_family("llama4 with chunks"), torch.float32, 512, step_tokens=64)
    monkeypatch.setattr(recorded_masks, "hidden_by", lambda function, local_size, device: HiddenKeys())
    monkeypatch.setattr(probe, "_near_tokens", lambda model, context_limit_tokens: 5)
    with pytest.raises(ModelLoadError, match="differ from its own attention"):
        probe_packing(tiny_family("llama4 with chunks"), torch.float32, 512, step_tokens=64)


def test_a_mask_is_known_by_what_it_hides() -> None:
    causal = masking_utils.causal_mask_function
    assert hidden_by(causal, None, CPU) == HiddenKeys()
    assert hidden_by(masking_utils.sliding_window_causal_mask_function(4096), 4096, CPU) == HiddenKeys(window=4096)
    chunked = masking_utils.chunked_causal_mask_function(8192, torch.zeros(1, dtype=torch.int64))
    assert hidden_by(chunked, 8192, CPU) == HiddenKeys(chunk=8192)
    strange = masking_utils.and_masks(causal, lambda batch, head, query, key: key % 7 != 3)
    for function in (masking_utils.bidirectional_mask_function, strange):
        with pytest.raises(UnknownMask):
            hidden_by(function, None, CPU)


def test_a_mask_of_pictures_hides_nothing_of_texts() -> None:
    """Gemma 4 looks up which picture each of the recording's two tokens belongs to: none."""
    window = masking_utils.sliding_window_causal_mask_function(64)
    for groups, function in itertools.product(([-1, -1], [0, -1]), (masking_utils.causal_mask_function, window)):
        looked_up = masking_utils.or_masks(function, masking_utils.blockwise_overlay(torch.tensor([groups])))
        if groups == [-1, -1]:
            found = hidden_by(looked_up, 64 if function is window else None, CPU)
            assert found == HiddenKeys(64 if function is window else None)
        else:
            with pytest.raises(UnknownMask):
                hidden_by(looked_up, 64, CPU)


def test_ids_that_a_model_excludes_hide_no_difference() -> None:
    """Chameleon gives the tokens of pictures the lowest number there is."""
    expected = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    expected[:, 4:7] = torch.finfo(torch.float32).min
    wrong = expected + 0.1 * (torch.arange(20) == 9)
    for found, is_wrong in ((expected.clone(), False), (wrong, True)):
        gap, limit = logits_gap(found, expected, is_exact=True)
        assert (gap > limit) is is_wrong
        assert (EXACT.gap_std(found, expected) > EXACT.allowed_std) is is_wrong
