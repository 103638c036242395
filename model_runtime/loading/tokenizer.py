"""Loads a model's tokenizer, and the tokens that end its answers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.tokenizer_check import check_tokenizer_files, damaged_tokenizer

_END_TOKENS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<turn|>"),
    *("<|endoftext|>", "<|end_of_text|>", "<|end_of_sentence|>"),
)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer. Raises `ModelLoadError` unless it is one of the tokenizers library, and undamaged."""
    check_tokenizer_files(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (ImportError, OSError):  # a missing library or file
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise
        raise damaged_tokenizer(directory) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # raised by the tokenizers library when its Rust code panics
            raise
        raise damaged_tokenizer(directory) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelLoadError(
            f"{directory.name} has no fast tokenizer (a tokenizer.json), which incremental text needs."
        )
    return tokenizer


def stop_token_ids(stated: Iterable[object], tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The stop tokens that configs state (an id, a list of ids or None each), the tokenizer's, and the usual ends of a
    chat turn."""
    ids: set[int] = set()
    for value in (*stated, tokenizer.eos_token_id):
        listed = value if isinstance(value, (list, tuple)) else (value,)
        ids |= {one for one in listed if isinstance(one, int)}
    vocabulary = tokenizer.get_vocab()
    return frozenset(ids | {vocabulary[token] for token in _END_TOKENS if token in vocabulary})
