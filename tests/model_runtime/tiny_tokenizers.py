"""Tiny tokenizers of the families that models have, each with control tokens of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from tests.model_runtime.tiny_models import PROSE_PATH

BEGIN, END, USER, ASSISTANT = "<s>", "</s>", "<｜User｜>", "<|Assistant|>"
THINK, END_THINK, CALL, END_CALL = "<think>", "</think>", "<tool_call>", "</tool_call>"
SPECIAL = (BEGIN, END)
ADDED = (USER, ASSISTANT, THINK, END_THINK, CALL, END_CALL)
CONTROLS = (*SPECIAL, *ADDED)
TEXT_TOKENS = ("    ", "õ")  # added tokens, too, but text
TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}<s>{{ messages[0]['content'] }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|Assistant|>{{ m['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)


def byte_level() -> Tokenizer:
    """GPT-2's and Qwen's kind; the added tokens stand behind the vocabulary."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(PROSE_PATH.read_text(encoding="utf-8").splitlines(), trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Llama 2's and Mistral's kind: spaces become "▁", unknown characters bytes. The control tokens stand in the
    vocabulary, and merges build them, as GGUF conversions have it."""
    vocabulary = {"<unk>": 0, BEGIN: 1, END: 2}
    for piece in (*(f"<0x{byte:02X}>" for byte in range(256)), *ADDED, "▁", *map(chr, range(33, 127)), "é"):
        vocabulary.setdefault(piece, len(vocabulary))
    merges: list[tuple[str, str]] = []
    for word in ("▁the", "▁light", "▁a", "ing", *ADDED, *SPECIAL):
        built = ""
        for letter in word:
            vocabulary.setdefault(letter, len(vocabulary))
            if built and (built, letter) not in merges:
                merges.append((built, letter))
            built += letter
            vocabulary.setdefault(built, len(vocabulary))
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """T5's and Gemma's kind of model: the likeliest pieces win, and control tokens have the best score of all."""
    pieces = [("<unk>", 0.0), *((token, 0.0) for token in (*SPECIAL, *ADDED))]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [(letter, -10.0) for letter in ("▁", "｜", *map(chr, range(33, 127)))]
    pieces += [("▁the", -3.0), ("ing", -4.0), ("light", -5.0)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte fallback": byte_fallback,
    "unigram": unigram,
}


def wrapped(family: str, **flags: bool) -> PreTrainedTokenizerFast:
    """With the control tokens added, those of `ADDED` not marked special; `flags` such as `lstrip` are theirs."""
    tokenizer = FAMILIES[family]()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, **{"normalized": False, **flags}) for token in ADDED])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TEXT_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()))), bos_token=BEGIN, eos_token=END
    )
    fast.chat_template = TEMPLATE
    return fast
