"""Tiny random checkpoints with a real byte-level BPE tokenizer: every architecture the packed forward is tested with.

Nothing is downloaded: the tokenizer is trained on `prose.txt`, the weights are drawn from a fixed seed. The weights
are large enough that the logits differ clearly, so that a wrong key changes a greedy answer.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

PROSE_PATH = Path(__file__).with_name("prose.txt")
VOCABULARY_TOKENS = 512
CONTEXT_TOKENS = 512
SLIDING_WINDOW_TOKENS = 16
SHORT_ROPE_TOKENS, LONG_ROPE_TOKENS = 64, 512
BEGIN_TOKEN, START_TOKEN, END_TOKEN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_llama(directory: Path) -> Path:
    """Llama: grouped queries (4 heads on 2), 3 layers, tied embeddings off."""
    config = LlamaConfig(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.2,
        **_token_ids(),
    )
    return _save(LlamaForCausalLM, config, directory)


def tiny_wide_llama(directory: Path) -> Path:
    """Llama as wide as our own CPU kernels want it: every width a multiple of 32."""
    config = LlamaConfig(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.2,
        **_token_ids(),
    )
    return _save(LlamaForCausalLM, config, directory)


def tiny_qwen3(directory: Path) -> Path:
    """Qwen3: query and key norms, a head dimension of its own (not hidden size / heads), tied embeddings."""
    config = Qwen3Config(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        initializer_range=0.2,
        **_token_ids(),
    )
    return _save(Qwen3ForCausalLM, config, directory)


def tiny_gemma3(directory: Path) -> Path:
    """Gemma3: sliding and full layers mixed, two RoPE bases, a query scale of its own, one KV head. Its embeddings are
    not tied: a tied random Gemma3 repeats its last token for ever, whatever its keys hold."""
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=SLIDING_WINDOW_TOKENS,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        tie_word_embeddings=False,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.2,
        **_token_ids(),
    )
    return _save(Gemma3ForCausalLM, config, directory)


def tiny_gptbigcode(directory: Path) -> Path:
    """GPTBigCode: multi-query attention, learned absolute positions, LayerNorm and biases."""
    config = GPTBigCodeConfig(
        vocab_size=VOCABULARY_TOKENS,
        n_embd=64,
        n_inner=128,
        n_layer=3,
        n_head=4,
        n_positions=CONTEXT_TOKENS,
        multi_query=True,
        initializer_range=0.2,
        **_token_ids(),
    )
    return _save(GPTBigCodeForCausalLM, config, directory)


def tiny_long_rope(directory: Path) -> Path:
    """Phi-3 with long RoPE: other frequencies beyond `SHORT_ROPE_TOKENS` tokens."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": SHORT_ROPE_TOKENS}
    factors = {"short_factor": [1.0 + n / 8 for n in range(8)], "long_factor": [2.0 + n for n in range(8)]}
    config = Phi3Config(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LONG_ROPE_TOKENS,
        original_max_position_embeddings=SHORT_ROPE_TOKENS,
        rope_parameters={**rope, **factors},
        initializer_range=0.2,
        **_token_ids(),
    )
    return _save(Phi3ForCausalLM, config, directory)


def save_tiny(architecture: type[PreTrainedModel], config: object, directory: Path) -> Path:
    """Random weights for `config` from a fixed seed, with the tiny tokenizer."""
    return _save(architecture, config, directory)


def token_ids() -> dict[str, int]:
    """The config entries that name the tiny tokenizer's control tokens."""
    return _token_ids()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens with a ChatML template; any text survives the round trip."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()),
        bos_token=BEGIN_TOKEN,
        eos_token=END_TOKEN,
        pad_token=END_TOKEN,
        additional_special_tokens=[START_TOKEN],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML_TEMPLATE
    return tokenizer


@cache
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=[BEGIN_TOKEN, START_TOKEN, END_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROSE_PATH.read_text(encoding="utf-8").splitlines(), trainer)
    return str(tokenizer.to_str())


def _token_ids() -> dict[str, int]:
    tokenizer = tiny_tokenizer()
    return {
        "bos_token_id": tokenizer.convert_tokens_to_ids(BEGIN_TOKEN),
        "eos_token_id": tokenizer.convert_tokens_to_ids(END_TOKEN),
        "pad_token_id": tokenizer.convert_tokens_to_ids(END_TOKEN),
    }


def _save(architecture: type[PreTrainedModel], config: object, directory: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model = architecture(config).to(torch.float32).eval()
    ids = _token_ids()
    model.generation_config = GenerationConfig(
        bos_token_id=ids["bos_token_id"], eos_token_id=ids["eos_token_id"], pad_token_id=ids["pad_token_id"]
    )
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory
