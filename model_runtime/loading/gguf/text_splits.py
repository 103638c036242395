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
_LIKE_QWEN2 = ("stablelm2", "hunyuan", "solar-open", "grok-2")
_LIKE_LLAMA3 = ("glm4", "chatglm-bpe")
_LIKE_DEEPSEEK_V3 = ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4")
_LIKE_BLOOM = ("bloom", "poro-chat", "gpt3-finnish")
_SINGLE_DIGITS = ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2")
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_HAN_OR_HANGUL = "[一-龥ࠀ-一가-퟿]+"
_HAN_OR_KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
# Letters with a case as far as that tokenizer's makers counted them, not those of later Unicode and of mathematics.
_OTHER_CASED = (
    "\u0560\u0588\u10c7\u10cd\u10d0-\u10ff\u1c80-\u1c8f\u2d00-\u2d2f\ua790-\ua7ff\uab30-\uab6f"
    "\U00010570-\U000105bf\U00010d50-\U00010d8f\U00016e40-\U00016e7f\U0001d400-\U0001d7ff\U0001df00-\U0001df2f"
)
_CASED_LETTERS = rf"\s?[\p{{Lu}}\p{{Ll}}\p{{Lt}}&&[^{_OTHER_CASED}]]+"
_SIGNS = r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"
_DEEPSEEK_LLM = (r"[\r\n]", _CASED_LETTERS, _SIGNS, r"\s+$", _HAN_OR_HANGUL, r"\p{N}")
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_OR_HANGUL, r"\p{N}")
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGN_BEFORE_LETTERS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_RUNS_OF_SPACES = "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
_PHRASES = r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    _HAN_OR_KANA,
    _SIGN_BEFORE_LETTERS + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
)
_PATTERNS: dict[str, tuple[str, ...]] = {
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
    "minicpm5": (
        r"\p{N}{1,3}",
        rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    ),
    "seed-coder": (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",),
    "ufakzeka": (rf"{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",),
    "laguna": (r"[^\n]+|[\n]+", GGUF_PRE_TOKENIZER_SPLITS["qwen2"]),
    "jais-2": (
        rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_RUNS_OF_SPACES}|\s",
    ),
    "exaone-moe": (rf"{_CONTRACTIONS}|{_PHRASES}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",),
    "superbpe": (r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
    "viking": (_BLOOM, r"\p{N}"),
    **dict.fromkeys(_LIKE_BLOOM, (_BLOOM,)),
    **dict.fromkeys(_LIKE_LLAMA3, (GGUF_PRE_TOKENIZER_SPLITS["llama3"],)),
    **dict.fromkeys(_LIKE_DEEPSEEK_V3, _DEEPSEEK_V3),
    **dict.fromkeys(
        ("bailingmoe", "bailingmoe2", "llada-moe"),
        (rf"'(?i:[sdmt]|ll|ve|re)|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",),
    ),
}

IGNORES_MERGES = (  # a word that is a token is that token, whatever its merges would make of it
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("tekken", "minicpm5"),
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
