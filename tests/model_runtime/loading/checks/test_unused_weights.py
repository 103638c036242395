"""Weights that a model does not use are named, or refused where its answers would lack them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_runtime.interface.config import ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model
from tests.conftest import TinyDir


def with_more(source: Path, target: Path, *names: str) -> LoadedModel:
    """The model of a checkpoint that has further weights."""
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    more = {name: torch.ones(64) for name in names}
    save_file({**load_file(path), **more}, path, metadata={"format": "pt"})
    return load_model(ModelConfig(str(target), cache_dir=target.parent / "cache", device="cpu"), print)


def notes_of(loaded: LoadedModel) -> list[str]:
    return [note for note in loaded.notes if "are not used" in note]


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.1.self_attn.q_proj.bias"),
        ("llama", "model.layers.0.self_attn.q_norm.weight"),
        ("llama", "model.layers.0.mlp.router.weight"),
        ("llama", "model.layers.0.self_attn.sinks"),
        ("llama", "model.layers.2.self_attn.k_proj.weight_scale_inv"),
        ("llama", "model.layers.3.mlp.up_proj.weight"),  # of a layer that the config does not have
        ("llama", "model.norm.bias"),
        ("llama", "lm_head.bias"),
        ("llama", "model.layers.0.self_attn.q_proj.lora_A.weight"),
        ("qwen3", "model.layers.0.self_attn.v_proj.bias"),
        ("gptbigcode", "transformer.h.0.attn.c_attn.scale"),
    ],
)
def test_what_its_layers_should_have_used_is_refused(tiny_dir: TinyDir, tmp_path: Path, family: str, name: str) -> None:
    with pytest.raises(ModelLoadError) as refused:
        with_more(tiny_dir(family), tmp_path / "more", name)
    assert name in str(refused.value)
    assert "its answers would be wrong" in str(refused.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["vision_tower.encoder.layers.0.mlp.weight", "multi_modal_projector.weight"], "pictures"),
        (["audio_tower.conv1.weight"], "sound"),
        (["mtp.layers.0.enorm.weight"], "drafts of several tokens"),
        (["score.weight"], "judging texts"),
        (["model.layers.0.self_attn.k_proj.k_scale"], "quantised activations"),
        (["something_else.weight"], "(something_else.weight)."),
    ],
)
def test_what_is_left_out_is_named_as_what_it_is(
    tiny_dir: TinyDir, tmp_path: Path, names: list[str], said: str
) -> None:
    (note,) = notes_of(with_more(tiny_dir("llama"), tmp_path / "more", *names))
    assert said in note
    assert names[0] in note
    assert note.startswith(f"{len(names)} of the checkpoint's weights are not used")


def test_what_is_computed_anyway_needs_no_word(tiny_dir: TinyDir, tmp_path: Path) -> None:
    names = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.embeddings.position_ids"]
    assert notes_of(with_more(tiny_dir("llama"), tmp_path / "more", *names)) == []
    assert notes_of(with_more(tiny_dir("gptbigcode"), tmp_path / "mask", "transformer.h.0.attn.bias")) == []


def test_a_checkpoint_as_it_was_saved_has_nothing_to_name(tiny_dir: TinyDir, tmp_path: Path) -> None:
    for family in ("llama", "qwen3", "gemma3", "gptbigcode"):
        assert notes_of(with_more(tiny_dir(family), tmp_path / family)) == []
