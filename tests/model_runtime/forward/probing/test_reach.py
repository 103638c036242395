"""What is known of a family's attention before there are weights."""

from __future__ import annotations

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model_runtime.forward.probing.reach import check_reach
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.config_file import described_model
from tests.model_runtime.small_configs import small_config


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("blip", "it reads no text without pixel_values"),
        ("instructblip", "it reads no text without pixel_values and qformer_input_ids"),
        ("pi0", "it reads no text without state"),
        ("kosmos-2", "with texts alone: You have to specify either `pixel_values` or `image_embeds`"),
        ("idefics", "with texts alone: Exactly 1 of pixel_values"),
        ("mllama", "has 40 layers but called the attention function 32 times"),
    ],
)
def test_a_model_that_cannot_be_reached_by_texts_alone_is_refused(family: str, reason: str) -> None:
    model = described_model(CONFIG_MAPPING[family](), "Mine")
    with pytest.raises(ModelLoadError, match=reason):
        check_reach(model, "Mine")


@pytest.mark.parametrize(
    "family",
    [
        *("llama", "qwen3_moe", "gemma3", "gemma4_text", "gpt_oss", "deepseek_v3", "phi3", "gpt2"),
        *("gpt_bigcode", "falcon", "bloom", "mpt", "gptj"),
        *(pytest.param(family, marks=pytest.mark.long) for family in ("mistral3", "qwen3_vl", "gemma3")),
    ],
)
def test_the_others_are_left_to_the_probe(family: str) -> None:
    check_reach(described_model(CONFIG_MAPPING[family](num_hidden_layers=2), "Mine"), "Mine")


def test_what_is_asked_for_in_training_only_is_no_reason_to_refuse() -> None:
    check_reach(described_model(small_config("molmo2", {}), "Mine"), "Mine")


def test_sizes_that_contradict_each_other_are_refused_before_there_are_weights() -> None:
    model = described_model(small_config("helium", {"head_dim": 32}), "Mine")
    with pytest.raises(ModelLoadError, match="Mine cannot be run: its config's sizes contradict each other"):
        check_reach(model, "Mine")
