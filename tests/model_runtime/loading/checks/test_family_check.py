"""Which families are refused from their config alone, and for which reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model_runtime.interface.config import ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.family_check import check_family
from model_runtime.loading.hub import downloads as hub
from model_runtime.loading.loading import load_model
from tests.conftest import TinyDir

STATE = "keeps? a recurrent or convolution state"
INDEXER = "choose the tokens they attend to with an indexer"
BOTH_WAYS = "fills gaps in a text, reading in both directions"
TASK = "an encoder with a decoder"


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        *((family, STATE) for family in ("qwen3_next", "qwen3_5", "qwen3_5_text", "jamba", "mamba", "mamba2")),
        *((family, STATE) for family in ("falcon_mamba", "falcon_h1", "bamba", "nemotron_h", "minimax", "zamba2")),
        *((family, STATE) for family in ("recurrent_gemma", "granitemoehybrid", "kimi_linear", "inkling_text")),
        *((family, "keep a recurrent state") for family in ("rwkv", "xlstm")),
        *((family, INDEXER) for family in ("deepseek_v32", "glm_moe_dsa", "hy_v4")),
        ("deepseek_v4", "attend to summaries of many tokens"),
        ("diffllama", "two attentions with different values"),
        ("longcat_flash", "two attentions with keys of their own"),
        *((family, BOTH_WAYS) for family in ("bert", "roberta", "electra")),
        *((family, TASK) for family in ("bart", "whisper", "marian")),
        *((family, "attention in code of its own") for family in ("xlnet", "reformer", "cpmant")),
        ("musicgen", "more than one model of texts"),
        *((family, "no model of this family that continues a text") for family in ("vit", "wav2vec2", "clip")),
        ("git", "attention in code of its own"),
        ("doge", "hide keys with a mask that they compute from the text"),
        ("hrm_text", "several times for each token"),
        ("paligemma", "reads a prompt in both directions"),
        ("diffusion_gemma", "does not continue a text token by token"),
        ("mllama", "left out where there is only text"),
        ("shieldgemma2", "classifies pictures"),
        ("pi0", "plans a robot's movements"),
        *((family, "a second one that speaks") for family in ("qwen2_5_omni", "qwen3_omni_moe")),
        *((family, "counts positions itself, from its padding token's id on") for family in ("kosmos-2", "kosmos-2.5")),
    ],
)
def test_a_family_that_cannot_be_run_is_refused_for_its_reason(family: str, reason: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"^Mine \(a {family} model\) cannot be run: .*{reason}"):
        check_family("Mine", CONFIG_MAPPING[family]())


@pytest.mark.parametrize(
    "family",
    ["bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "pegasus", "plbart", "whisper"],
)
def test_a_decoder_saved_without_its_encoder_is_refused(family: str) -> None:
    config = CONFIG_MAPPING[family](is_encoder_decoder=False, is_decoder=True)
    with pytest.raises(ModelLoadError, match=rf"^Mine \(a {family} model\) .* decoder of an encoder with a decoder"):
        check_family("Mine", config)


@pytest.mark.parametrize(
    "family",
    ["roberta", "camembert", "data2vec-text", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"],
)
def test_a_decoder_whose_positions_depend_on_padding_is_refused(family: str) -> None:
    with pytest.raises(ModelLoadError, match="counts positions itself, from its padding token's id on"):
        check_family("Mine", CONFIG_MAPPING[family](is_decoder=True))
    for other in ("bert", "bert-generation", "electra", "ernie", "roc_bert"):
        check_family("Mine", CONFIG_MAPPING[other](is_decoder=True))


def test_a_model_that_reads_in_both_directions_is_refused() -> None:
    check_family("Mine", CONFIG_MAPPING["gemma4_text"](use_bidirectional_attention="vision"))  # of pictures only
    for family, value in (("gemma3_text", True), ("gemma4_text", "all")):
        with pytest.raises(ModelLoadError, match="read in both directions"):
            check_family("Mine", CONFIG_MAPPING[family](use_bidirectional_attention=value))


@pytest.mark.parametrize(
    "family",
    [
        *("llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral", "gemma2", "gemma3", "gemma3_text", "gemma4"),
        *("phi3", "phimoe", "gpt_oss", "deepseek_v2", "deepseek_v3", "glm4", "llama4", "mimo_v2_flash", "nemotron"),
        *("gpt2", "gpt_bigcode", "gpt_neox", "opt", "starcoder2", "stablelm", "cohere2", "olmo3", "bitnet", "jetmoe"),
        *("falcon", "bloom", "mpt", "gptj", "codegen", "gpt_neo"),
        *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "voxtral", "qwen2_audio", "granite_speech"),
    ],
)
def test_the_others_are_left_to_the_probe(family: str) -> None:
    check_family("Mine", CONFIG_MAPPING[family]())


def test_layers_decide_and_not_the_family() -> None:
    """Granite 4.0 micro is a hybrid family's model without a hybrid layer; Lfm2 has one as soon as it lists one."""
    attention = {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    check_family("Mine", CONFIG_MAPPING["granitemoehybrid"](**attention))
    check_family("Mine", CONFIG_MAPPING["lfm2"](**attention))
    mixed = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "full_attention"]}
    with pytest.raises(ModelLoadError, match=r"of its 3 layers, 1 \(conv\) keeps a recurrent"):
        check_family("Mine", CONFIG_MAPPING["lfm2"](**mixed))


def described_as(source: Path, target: Path, config: dict[str, Any]) -> Path:
    """A checkpoint without weights."""
    shutil.copytree(source, target)
    (target / "model.safetensors").unlink()
    (target / "config.json").write_text(json.dumps(config))
    return target


HYBRID = {"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"]}


def test_a_directory_is_refused_before_its_weights_are_read(tiny_dir: TinyDir, tmp_path: Path) -> None:
    directory = described_as(tiny_dir("llama"), tmp_path / "hybrid", HYBRID)
    assert AutoConfig.from_pretrained(directory).model_type == "qwen3_next"
    with pytest.raises(ModelLoadError, match=rf"^hybrid \(a qwen3_next model\) cannot be run: .*{STATE}"):
        load_model(ModelConfig(str(directory), cache_dir=tmp_path, device="cpu"), print)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (HYBRID, STATE),
        ({"model_type": "blip"}, "it reads no text without pixel_values"),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "modelopt"}},
            "stored as 'modelopt', a format that this version cannot read",
        ),
    ],
)
def test_a_hub_models_weights_are_not_downloaded_to_be_refused(
    config: dict[str, Any], sentence: str, tiny_dir: TinyDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = described_as(tiny_dir("llama"), tmp_path / "snapshot", config)
    asked: list[list[str]] = []

    def download(model_id: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.append(allow_patterns)
        return str(directory)

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(ModelLoadError, match=sentence):
        load_model(ModelConfig("org/name", cache_dir=tmp_path, device="cpu"), print)
    assert asked == [["*.json", "*.jinja", "*.model", "*.txt"]]


def test_a_hub_model_that_can_run_is_downloaded_whole(
    tiny_dir: TinyDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(model_id: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.append(allow_patterns)
        return str(tiny_dir("llama"))

    monkeypatch.setattr(hub, "snapshot_download", download)
    loaded = load_model(ModelConfig("org/name", "none", cache_dir=tmp_path, device="cpu"), print)
    assert (loaded.name, len(asked), "*.safetensors" in asked[1]) == ("org/name", 2, True)
