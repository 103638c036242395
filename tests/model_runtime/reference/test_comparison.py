"""The comparison itself: right models agree with transformers, and every deliberately broken part shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig, MistralConfig, PretrainedConfig, Qwen2Config

from model_runtime.interface.config import ModelConfig
from model_runtime.kv.slab import KVSlab
from model_runtime.loading.loaded import LoadedModel
from model_runtime.reference import keepwarm_side
from model_runtime.reference.comparison import compare_model
from model_runtime.reference.findings import ModelComparison, Verdict
from model_runtime.reference.recorded_engine import RecordedEngine
from tests.conftest import TinyDir
from tests.model_runtime.loading.gguf.blocks import blocks_of, wide
from tests.model_runtime.loading.gguf.cases import CASES
from tests.model_runtime.small_configs import save_small, small_config
from tests.model_runtime.tiny_gguf import write_gguf
from tests.model_runtime.tiny_models import SHORT_ROPE_TOKENS, VOCABULARY_TOKENS, tiny_long_rope, tiny_tokenizer
from tests.model_runtime.tiny_packed import Scheme, awq, compressed, eights, gptq, llm_int8, written

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY_TOKENS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": None,
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
Break = Callable[[LoadedModel], None]
PACKED = {
    "gptq in order": ("gpt2", gptq(sym=False, act_order="own")),
    "gptq of experts": ("mixtral", gptq()),
    "awq": ("qwen3_moe", awq()),
    "W4A16": ("llama", compressed(sym=False)),
    "int8 of experts": ("mixtral", llm_int8()),
    "fbgemm": ("llama", eights({"quant_method": "fbgemm_fp8"}, (1, 0), torch.float32)),
}


def saved(config: PretrainedConfig, directory: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def compared(path: Path, quantization: Any = "none", cache_dir: Path | None = None) -> ModelComparison:
    return compare_model(
        ModelConfig(model=str(path), quantization=quantization, device="cpu", cache_dir=cache_dir or path.parent),
        lambda _: None,
    )


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Break], None]:
    """`broken(change)` changes every model that Keepwarm loads from then on, before its engine sees it."""

    def apply(change: Break) -> None:
        load = keepwarm_side.load_model

        def load_broken(config: ModelConfig, say: Callable[[str], None]) -> LoadedModel:
            loaded = load(config, say)
            change(loaded)
            return loaded

        monkeypatch.setattr(keepwarm_side, "load_model", load_broken)

    return apply


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gptbigcode"])
def test_a_right_model_is_exact(tiny_dir: TinyDir, name: str) -> None:
    found = compared(tiny_dir(name))
    assert found.verdict is Verdict.EXACT, found.sentence
    assert {ids.what.split(",")[0] for ids in found.ids} == {
        "first turn",
        "first turn with a system prompt",
        "second turn",
        "second turn with a system prompt",
    }
    assert all(ids.agrees and len(ids.keepwarm) > 5 for ids in found.ids)
    assert all(r.gap_std <= 1e-4 and len(r.keepwarm_tokens) == 8 for r in found.readings)
    assert max(r.ledger_tokens for r in found.readings) > 400
    assert all(r.keepwarm_tokens == r.transformers_tokens for r in found.readings)


@pytest.mark.parametrize("family", ["llama", "gpt_bigcode", "mixtral"])
def test_four_bits_are_compared_with_the_same_four_bits(family: str, tmp_path: Path) -> None:
    """Experts too, which bitsandbytes alone leaves at 16 bits. Its CPU kernel would be off by 0.06 by itself."""
    save_small(small_config(family, {}), tmp_path / "tiny")
    found = compared(tmp_path / "tiny", "nf4")
    assert found.verdict is Verdict.AGREES, found.sentence
    assert max(reading.gap_std for reading in found.readings) < 1e-4
    assert "NF4" in found.keepwarm
    assert "bitsandbytes" in found.transformers


@pytest.mark.parametrize(("family", "scheme"), PACKED.values(), ids=PACKED)
def test_packed_checkpoints_are_compared_without_their_packages(
    family: str, scheme: Scheme, tmp_path: Path, broken: Callable[[Break], None]
) -> None:
    """Mixtures of experts too, and the kind of layers that hold their matrices the other way round, packed or plain."""
    changes = {"gpt2": {"n_inner": 192}, "qwen3_moe": {"moe_intermediate_size": 64}}.get(family, {})
    plain = "transformer.h.0.attn.c_proj" if family == "gpt2" else ""  # square: either way round would fit
    tiny = save_small(small_config(family, changes), tmp_path / "tiny")
    packed = written(tiny, tmp_path / "packed", scheme, plain)
    found = compared(packed.directory, "auto")
    assert found.verdict is Verdict.AGREES, found.sentence
    assert max(reading.gap_std for reading in found.readings) < 1e-4
    assert "as shipped" in found.keepwarm
    assert "by the format's formula" in found.transformers
    broken(double_one_norm)
    assert compared(packed.directory, "auto").verdict is Verdict.DIFFERS


def double_one_norm(loaded: LoadedModel) -> None:
    next(parameter for parameter in loaded.model.parameters() if parameter.ndim == 1)[:8].mul_(2)


def test_rounded_rows_are_told_apart_from_everything_else(tmp_path: Path) -> None:
    case = wide("llama heads")
    blocks = blocks_of(case, case.model(), lambda short: "Q5_K")
    found = compared(case.write(tmp_path / "tiny.gguf", case.model(), raw=blocks), "shipped")
    assert found.verdict is Verdict.AGREES, found.sentence
    assert found.sentence.startswith("Agrees within the rounding of its float16 KV: 0.06 standard deviations")
    assert max(reading.gap_std for reading in found.readings) < 1e-3
    assert "float16 KV" in found.keepwarm


def drop_window(loaded: LoadedModel) -> None:
    loaded.model.config.sliding_window = None


def drop_bias(loaded: LoadedModel) -> None:
    for name, parameter in loaded.model.named_parameters():
        if name.endswith("k_proj.bias"):
            parameter.zero_()


def drop_rope_scaling(loaded: LoadedModel) -> None:
    rotary: Any = loaded.model.model.rotary_emb
    width = 2 * len(rotary.inv_freq)
    rotary.inv_freq.copy_(10000.0 ** -(torch.arange(0, width, 2) / width))


def add_prefix_space(loaded: LoadedModel) -> None:
    loaded.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def drop_template_line_feed(loaded: LoadedModel) -> None:
    loaded.tokenizer.chat_template = str(loaded.tokenizer.chat_template).replace("'<|im_end|>' + '\n'", "'<|im_end|>'")


@pytest.mark.parametrize(
    ("config", "change", "shows"),
    [
        (MistralConfig(**SHAPE, sliding_window=200), drop_window, "the logits of the past 200 tokens (sliding_window)"),
        (Qwen2Config(**SHAPE), drop_bias, "the logits of the first turn"),
        (LlamaConfig(**SHAPE, rope_parameters=ROPE), drop_rope_scaling, "the logits of the first turn"),
        (LlamaConfig(**SHAPE), add_prefix_space, "the ids of the first turn"),
        (LlamaConfig(**SHAPE), drop_template_line_feed, "the ids of the first turn"),
    ],
    ids=["window", "bias", "rope scaling", "prefix space", "line feed of the template"],
)
def test_what_is_dropped_shows(
    tmp_path: Path, broken: Callable[[Break], None], config: PretrainedConfig, change: Break, shows: str
) -> None:
    directory = saved(config, tmp_path / "model")
    assert compared(directory).verdict is Verdict.EXACT
    broken(change)
    found = compared(directory)
    assert found.verdict is Verdict.DIFFERS
    assert shows in found.sentence


def test_a_damaged_kv_shows_at_the_second_turn_only(tiny_dir: TinyDir, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = RecordedEngine.submit

    def submit_on_zeros(self: RecordedEngine, kv: KVSlab, *others: Any) -> Any:
        if kv.length_tokens:
            with torch.inference_mode():
                for rows in (*kv.keys, *kv.values):
                    rows.zero_()
        return submit(self, kv, *others)

    monkeypatch.setattr(RecordedEngine, "submit", submit_on_zeros)
    found = compared(tiny_dir("llama"))
    assert found.verdict is Verdict.DIFFERS
    assert [r.agrees for r in found.readings] == [True, False, True, False]


def test_what_is_no_model_is_refused_by_both(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nowhere"):
        found = compared(tmp_path / name)
        assert found.verdict is Verdict.REFUSED
        assert found.refusal
        assert found.refusal in found.sentence
        assert "transformers alone cannot run it either" in found.sentence


def test_a_refusal_says_that_transformers_can(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=VOCABULARY_TOKENS, hidden_size=32, num_hidden_layers=2, pad_token_id=None)
    found = compared(saved(config, tmp_path / "mamba"))
    assert found.verdict is Verdict.REFUSED
    assert found.sentence.endswith("transformers alone can run it.")
    assert "MambaForCausalLM" in found.transformers


def test_what_lies_behind_the_limit_is_named(tmp_path: Path) -> None:
    directory = saved(MistralConfig(**SHAPE, sliding_window=400), tmp_path / "model")
    config = ModelConfig(model=str(directory), quantization="none", device="cpu")
    found = compare_model(config, lambda _: None, most_tokens=300)
    assert found.verdict is Verdict.EXACT
    assert found.notes == (
        "Nothing past 400 tokens (sliding_window) was compared: it lies behind the limit of 300 tokens.",
    )
    assert max(r.ledger_tokens for r in found.readings) < 300


@pytest.fixture
def gguf(tiny_dir: TinyDir, tmp_path: Path) -> Path:
    return write_gguf(tiny_dir("wide_llama"), tmp_path / "tiny.gguf", GGMLQuantizationType.Q8_0)


def test_numbers_of_32_bits_beside_a_kv_of_16_are_no_difference(tiny_dir: TinyDir, tmp_path: Path) -> None:
    path = write_gguf(tiny_dir("wide_llama"), tmp_path / "tiny.gguf", GGMLQuantizationType.F32)
    found = compared(path, "auto", tmp_path)
    assert found.verdict is Verdict.AGREES, found.sentence
    assert "float16 KV" in found.keepwarm


def test_a_scaling_of_some_layers_is_used(tmp_path: Path) -> None:
    case = CASES["gemma3"]
    assert case.keys["rope.scaling.type"] == "linear"
    found = compared(case.write(tmp_path / "gemma3.gguf", case.model()), "none", tmp_path)
    assert found.verdict is Verdict.EXACT, found.sentence


def test_a_gguf_agrees_with_transformers_own_read(gguf: Path, tmp_path: Path) -> None:
    found = compared(gguf, "auto", tmp_path)
    assert found.verdict is Verdict.AGREES, found.sentence
    assert "de-quantised from the file by transformers" in found.transformers
    with pytest.raises(ValueError, match="cannot quantise"):
        compared(gguf, "nf4", tmp_path)


def test_metadata_that_neither_side_uses_is_no_agreement(
    tiny_dir: TinyDir, tmp_path: Path, broken: Callable[[Break], None]
) -> None:
    def drop(loaded: LoadedModel) -> None:
        loaded.model.config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
        drop_rope_scaling(loaded)

    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path = write_gguf(tiny_dir("wide_llama"), tmp_path / "scaled.gguf", GGMLQuantizationType.Q8_0, scaling)
    broken(drop)
    found = compared(path, "auto", tmp_path)
    assert found.verdict is Verdict.DIFFERS
    assert "The file's rope.scaling.type is linear, which neither read uses" in found.sentence


def drop_long_factors(loaded: LoadedModel) -> None:
    rope = loaded.model.config.rope_parameters
    rope["long_factor"] = rope["short_factor"]


def test_long_rope_is_held_against_a_read_of_each_length(tmp_path: Path, broken: Callable[[Break], None]) -> None:
    path = tiny_long_rope(tmp_path / "model")
    right = compared(path)
    assert right.verdict is Verdict.EXACT, right.sentence
    assert any(reading.ledger_tokens < SHORT_ROPE_TOKENS < reading.ledger_tokens + 8 for reading in right.readings)
    broken(drop_long_factors)
    wrong = compared(path)
    assert wrong.verdict is Verdict.DIFFERS
    assert f"past {SHORT_ROPE_TOKENS} tokens" in wrong.sentence
