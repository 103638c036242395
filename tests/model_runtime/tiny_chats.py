"""Tiny tokenizers of every kind, and the chat templates of the field's families, to be combined at will.

A kind is how text becomes pieces: which pre-tokenizer, where a prefix space is added, which model. The vocabularies are
trained on `prose.txt`, so that words and line ends are merged as in large ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordLevelTrainer, WordPieceTrainer
from transformers import PreTrainedTokenizerFast

from tests.model_runtime.tiny_models import PROSE_PATH

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_TEXT = (
    PROSE_PATH.read_text(encoding="utf-8")
    + "\n\nUser: Hello.\n\nAnswer: [INST] The light. [/INST]\n\n### Response:\n\nQuestion: USER: ASSISTANT:\n" * 9
)


def byte_level(prefix: bool = False) -> Tokenizer:
    """GPT-2's kind."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer)


def split_regex() -> Tokenizer:
    """Llama 3's and Qwen's kind, as tiktoken splits: signs and the line ends after them are one word."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CL100K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer)


def _trained(tokenizer: Tokenizer) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([_TEXT], trainer)
    return tokenizer


@cache
def _sentencepiece() -> str:
    """A BPE over "▁", with bytes for what it lacks."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = BpeTrainer(vocab_size=700, special_tokens=["<unk>", *_BYTES], show_progress=False)
    tokenizer.train_from_iterator([_TEXT], trainer)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = description["added_tokens"][:1]
    description["pre_tokenizer"] = None
    return json.dumps(description)


def legacy() -> Tokenizer:
    """Llama 2's, Mistral's, TinyLlama's and Vicuna's: a normalizer writes the prefix, once for each stretch."""
    tokenizer = Tokenizer.from_str(_sentencepiece())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def metaspace(scheme: str, split: bool = False) -> Tokenizer:
    """The same without a normalizer: a prefix at the text's beginning ("first"), at each stretch's, or never."""
    tokenizer = Tokenizer.from_str(_sentencepiece())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def gemma() -> Tokenizer:
    """Gemma's: no prefix at all, and words split behind their space."""
    tokenizer = Tokenizer.from_str(_sentencepiece())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


@cache
def _unigram() -> str:
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = UnigramTrainer(vocab_size=500, special_tokens=["<unk>", *_BYTES], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_TEXT.splitlines(), trainer)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = description["added_tokens"][:1]
    description["model"]["byte_fallback"] = True
    return json.dumps(description)


def unigram(scheme: str, form: str | None = None) -> Tokenizer:
    """T5's kind of model."""
    tokenizer = Tokenizer.from_str(_unigram())
    if form:
        tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def wordpiece() -> Tokenizer:
    """BERT's kind: lower case, no white space, unknown words."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([_TEXT], trainer)
    return tokenizer


def wordlevel() -> Tokenizer:
    """Whole words or nothing."""
    tokenizer = Tokenizer(WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = WordLevelTrainer(vocab_size=500, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([_TEXT], trainer)
    return tokenizer


def t5() -> Tokenizer:
    """T5's: compatible characters, runs of spaces and spaces at the end are one or none before it splits."""
    tokenizer = Tokenizer.from_str(_unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(left=False)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always", split=True)]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def word_ends() -> Tokenizer:
    """CLIP's and the first GPT's: a word's last piece says so, and case and white space are lost."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", True)
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = BpeTrainer(
        vocab_size=600, end_of_word_suffix="</w>", special_tokens=["<unk>"], initial_alphabet=[], show_progress=False
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    return tokenizer


def normalized(kind: Callable[[], Tokenizer], *steps: normalizers.Normalizer) -> Tokenizer:
    """A kind with other normalizers before its own."""
    tokenizer = kind()
    own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
    tokenizer.normalizer = normalizers.Sequence([*steps, *own])
    return tokenizer


def cut() -> Tokenizer:
    """A file that asks for truncation and padding."""
    tokenizer = byte_level()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=30)
    return tokenizer


OTHER_KINDS: dict[str, Callable[[], Tokenizer]] = {
    "wordlevel": wordlevel,
    "t5": t5,
    "word ends": word_ends,
    "byte-level, lower case": lambda: normalized(byte_level, normalizers.Lowercase()),
    "byte-level, stripped": lambda: normalized(byte_level, normalizers.Strip()),
    "byte-level, no accents": lambda: normalized(byte_level, normalizers.NFD(), normalizers.StripAccents()),
    "byte-level, quotes replaced": lambda: normalized(byte_level, normalizers.Replace("``", '"')),
    "legacy, stripped": lambda: normalized(legacy, normalizers.Strip()),
    "truncated and padded": cut,
}
KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level with a prefix": lambda: byte_level(prefix=True),
    "split regex": split_regex,
    "legacy": legacy,
    "metaspace first": lambda: metaspace("first"),
    "metaspace always": lambda: metaspace("always"),
    "metaspace always, split": lambda: metaspace("always", split=True),
    "metaspace never": lambda: metaspace("never"),
    "gemma": gemma,
    "unigram first": lambda: unigram("first"),
    "unigram always, NFKC": lambda: unigram("always", "NFKC"),
    "wordpiece": wordpiece,
}


@dataclass(frozen=True, slots=True)
class Family:
    """A chat template with its control tokens. `added` are not marked special; `flags` are those of all of them."""

    template: str
    special: tuple[str, ...] = ("<s>", "</s>")
    added: tuple[str, ...] = ()
    flags: dict[str, bool] = field(default_factory=dict)
    stop: str = "</s>"


_PROMPT = "{% if add_generation_prompt %}"
FAMILIES: dict[str, Family] = {
    "chatml": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}" + _PROMPT + "{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        stop="<|im_end|>",
    ),
    "llama2": Family(
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for m in loop_messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate!') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + m['content'] %}"
        "{% else %}{% set content = m['content'] %}{% endif %}"
        "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3": Family(
        "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
        " + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
        "{% endif %}{{ content }}{% endfor %}"
        + _PROMPT
        + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        stop="<|eot_id|>",
    ),
    "mistral": Family(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "mistral v3": Family(  # the system prompt stands before the last question only
        "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}"
        "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}{{ bos_token }}"
        "{% for m in loop_messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
        "{% if loop.last and system_message is defined %}{{ system_message + '\n\n' }}{% endif %}"
        "{{ m['content'] + '[/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"),
    ),
    "each turn": Family(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ '(' + messages[0]['content'] + ') ' }}{% endif %}{{ 'User: ' + m['content'] + '\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ 'Bot: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
        + _PROMPT
        + "{{ 'Bot:' }}{% endif %}"
    ),
    "zephyr": Family(
        "{% for m in messages %}{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
        "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n"
        "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "vicuna": Family(
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% endif %}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
        "{% elif m['role'] == 'assistant' %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
        + _PROMPT
        + "{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "deepseek": Family(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
        "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
        "{% elif m['role'] == 'assistant' %}{{ '<|Assistant|>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
        + _PROMPT
        + "{{ '<|Assistant|>' }}{% endif %}",
        added=("<｜User｜>", "<|Assistant|>", "<think>", "</think>"),
    ),
    "gemma": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        + _PROMPT
        + "{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<s>", "</s>", "<start_of_turn>", "<end_of_turn>"),
        stop="<end_of_turn>",
    ),
    "phi": Family(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        + _PROMPT
        + "{{ '<|assistant|>\n' }}{% endif %}",
        ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        flags={"rstrip": True},
        stop="<|end|>",
    ),
    "octocoder": Family(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'Question: ' + m['content'] + '\n\nAnswer:' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token + '\n\n' }}"
        "{% else %}{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    ),
    "falcon": Family(
        "{% for m in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
        "{{ {'system': 'System', 'user': 'User', 'assistant': 'Falcon'}[m['role']] + ': ' + m['content'] | trim }}"
        "{% endfor %}" + _PROMPT + "{{ '\nFalcon:' }}{% endif %}"
    ),
    "alpaca": Family(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
        "{% elif m['role'] == 'user' %}{{ '### Instruction:\n' + m['content'] + '\n\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ '### Response:\n' + m['content'] + eos_token + '\n\n' }}{% endif %}"
        "{% endfor %}" + _PROMPT + "{{ '### Response:\n' }}{% endif %}"
    ),
    "parts": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for part in m['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        + _PROMPT
        + "{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        stop="<|im_end|>",
    ),
    "switch": Family(
        "{% set ns = namespace(think=true) %}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{% if '/no_think' in m['content'] %}{% set ns.think = false %}{% endif %}"
        "{{ '<|im_start|>system\n' + m['content'].replace('/no_think', '').rstrip() + '<|im_end|>\n' }}{% else %}"
        "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and not ns.think %}"
        "{{ '<think></think>' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        + _PROMPT
        + "{{ '<|im_start|>assistant\n' }}{% if not ns.think %}{{ '<think></think>' }}{% endif %}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        ("<think>", "</think>"),
        stop="<|im_end|>",
    ),
}


@cache
def chat_tokenizer(kind: str, family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of that kind with the control tokens and the template of that family. Shared: do not change it."""
    found = FAMILIES[family]
    tokenizer = Tokenizer.from_str(_described(kind))
    flags = {"normalized": False, **found.flags}
    tokenizer.add_special_tokens([AddedToken(token, special=True, **flags) for token in found.special])
    tokenizer.add_tokens([AddedToken(token, special=False, **flags) for token in found.added])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=found.special[0], eos_token=found.special[1], unk_token=None
    )
    fast.chat_template = found.template
    return fast


@cache
def _described(kind: str) -> str:
    return str({**KINDS, **OTHER_KINDS}[kind]().to_str())
