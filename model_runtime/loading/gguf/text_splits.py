"""How byte-level tokenizers split text before their merges, by the names that GGUF files use (tokenizer.ggml.pre).

Source: llama.cpp's `llm_tokenizer_bpe` (llama-vocab.cpp), whose rules are those of the models' own tokenizer.json.
"""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

_LIKE_GPT2 = (
    *("default", "gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "modern-bert"),
    *("mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"),
)
_LIKE_QWEN2 = ("stablelm2", "hunyuan", "solar-open")
_LIKE_BLOOM = ("bloom", "poro-chat", "gpt3-finnish")
_SINGLE_DIGITS = ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b")
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGN_BEFORE_LETTERS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_PATTERNS: dict[str, tuple[str, ...]] = {
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        _SIGN_BEFORE_LETTERS + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
    ),
    "minicpm5": (
        r"\p{N}{1,3}",
        rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    ),
    "seed-coder": (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",),
    "viking": (_BLOOM, r"\p{N}"),
    **dict.fromkeys(_LIKE_BLOOM, (_BLOOM,)),
}

IGNORES_MERGES = (  # a word that is a token is that token, whatever its merges would make of it
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    "tekken",
)
SPLITS = frozenset((*GGUF_PRE_TOKENIZER_SPLITS, *_LIKE_GPT2, *_LIKE_QWEN2, *_SINGLE_DIGITS, *_PATTERNS, "falcon"))


def split_rule(name: str) -> pre_tokenizers.PreTokenizer | None:
    """The rule of one of `SPLITS`; None for those that transformers' GGUF reader sets itself: its own, and GPT-2's."""
    if name in _SINGLE_DIGITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _bytes(use_regex=True)])
    if name in _LIKE_QWEN2:
        return _isolated(GGUF_PRE_TOKENIZER_SPLITS["qwen2"])
    if name in _PATTERNS:
        return _isolated(*_PATTERNS[name])
    if name == "falcon":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                _bytes(use_regex=True),
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )
    return None


def _isolated(*patterns: str) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, _bytes(use_regex=False)])


def _bytes(*, use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
