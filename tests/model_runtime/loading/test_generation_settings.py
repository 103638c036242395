"""Every setting that a generation config may have is honoured, changes nothing, or is named at load."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from model_runtime.interface.config import ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.generation_settings import OTHER_HONOURED, WITHOUT_EFFECT, settings_of
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model
from model_runtime.loading.tokenizer import stop_token_ids
from tests.conftest import TinyDir
from tests.model_runtime.tiny_chats import chat_tokenizer

HONOURED: dict[str, tuple[Any, str, Any]] = {
    "temperature": (0.25, "temperature", 0.25),
    "top_p": (0.5, "top_p", 0.5),
    "top_k": (7, "top_k", 7),
    "min_p": (0.05, "min_p", 0.05),
    "repetition_penalty": (1.25, "repetition_penalty", 1.25),
    "max_new_tokens": (33, "max_new_tokens", 33),
    "do_sample": (False, "temperature", 0.0),
    "stop_strings": (["###"], "stop_strings", ("###",)),
}
NAMED: dict[str, Any] = {
    "bad_words_ids": [[5]],
    "begin_suppress_tokens": [5],
    "constraints": ["x"],
    "diversity_penalty": 0.5,
    "dola_layers": "low",
    "early_stopping": True,
    "encoder_no_repeat_ngram_size": 3,
    "encoder_repetition_penalty": 1.2,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "exponential_decay_length_penalty": [5, 1.1],
    "force_words_ids": [[5]],
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 5,
    "guidance_scale": 1.5,
    "length_penalty": 2.0,
    "max_length": 4096,
    "max_time": 5.0,
    "min_length": 5,
    "min_new_tokens": 5,
    "no_repeat_ngram_size": 3,
    "num_beam_groups": 2,
    "num_beams": 4,
    "num_return_sequences": 2,
    "penalty_alpha": 0.6,
    "sequence_bias": [[[5], 1.0]],
    "suppress_tokens": [5],
    "token_healing": True,
    "top_h": 0.4,
    "typical_p": 0.9,
    "watermarking_config": {"bias": 2.0},
}
NEEDS_BEAMS = ("early_stopping", "length_penalty", "diversity_penalty")


def test_every_setting_of_transformers_has_an_entry() -> None:
    """A setting of the next version without an entry fails here, and is named at load meanwhile."""
    known = set(vars(GenerationConfig()))
    entries = {*HONOURED, *NAMED, *WITHOUT_EFFECT, "eos_token_id"}
    assert known <= entries, known - entries
    assert not set(NAMED) & (set(HONOURED) | WITHOUT_EFFECT)
    assert set(HONOURED) | {"eos_token_id"} >= OTHER_HONOURED


@pytest.mark.parametrize("name", sorted(HONOURED))
def test_what_is_honoured_is_the_default_of_an_answer(name: str) -> None:
    value, sampling, expected = HONOURED[name]
    found = settings_of({name: value})
    assert getattr(found.sampling, sampling) == expected != getattr(SamplingParams(), sampling)
    assert found.notes == ()


@pytest.mark.parametrize("name", sorted(NAMED))
def test_what_is_not_done_is_named(name: str) -> None:
    beams = {"num_beams": 4} if name in NEEDS_BEAMS else {}
    found = settings_of({name: NAMED[name], **beams})
    assert any(f"asks for {name} = " in note for note in found.notes), found.notes
    assert found.sampling == SamplingParams()


def test_what_asks_for_nothing_is_not_named() -> None:
    nothing = dict.fromkeys(("num_beams", "typical_p", "length_penalty", "guidance_scale", "num_return_sequences"), 1)
    nothing |= {
        "penalty_alpha": 0,
        "no_repeat_ngram_size": 0,
        "min_length": 0,
        "suppress_tokens": [],
        "do_sample": True,
    }
    assert settings_of({**nothing, "pad_token_id": 1, "use_cache": True, "length_penalty": 2.0}).notes == ()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"temperature": 9, "top_p": 0.5}, "asks for temperature = 9, which is out of range: it is ignored."),
        ({"top_k": "many", "top_p": 0.5}, "asks for top_k = many, which is no such number: it is ignored."),
        ({"stop_strings": [5], "top_p": 0.5}, "asks for stop_strings = [5], which are no texts: they are ignored."),
        (
            {"a_setting_of_next_year": 3, "top_p": 0.5},
            "asks for a_setting_of_next_year = 3, which Keepwarm does not do",
        ),
    ],
)
def test_one_odd_setting_costs_no_other(asked: dict[str, Any], sentence: str) -> None:
    found = settings_of(asked)
    assert len(found.notes) == 1
    assert sentence in found.notes[0]
    assert found.sampling.top_p == 0.5


def loaded_with(tiny_dir: TinyDir, tmp_path: Any, text: str) -> LoadedModel:
    import shutil

    directory = tmp_path / "model"
    shutil.copytree(tiny_dir("llama"), directory)
    (directory / "generation_config.json").write_text(text, encoding="utf-8")
    return load_model(ModelConfig(model=str(directory), quantization="none", device="cpu"), lambda _: None)


def test_a_checkpoint_says_at_load_what_it_does_not_get(tiny_dir: TinyDir, tmp_path: Any) -> None:
    loaded = loaded_with(
        tiny_dir, tmp_path, '{"min_p": 0.125, "suppress_tokens": [7], "eos_token_id": [2, 9], "do_sample": true}'
    )
    assert loaded.default_sampling.min_p == 0.125
    assert {2, 9} <= loaded.stop_token_ids
    assert "The generation config asks for suppress_tokens = [7], which Keepwarm does not do: it is ignored." in (
        loaded.notes
    )


def test_configs_the_tokenizer_and_usual_tokens_end_an_answer() -> None:
    tokenizer = chat_tokenizer("legacy", "gemma")
    own = set(tokenizer.convert_tokens_to_ids(["</s>", "<end_of_turn>"]))
    assert stop_token_ids((None,), tokenizer) == own
    assert stop_token_ids((7, [8, 9]), tokenizer) == {*own, 7, 8, 9}


def test_a_broken_generation_config_is_no_missing_one(tiny_dir: TinyDir, tmp_path: Any) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read"):
        loaded_with(tiny_dir, tmp_path, '{"temperature": 0.5')
