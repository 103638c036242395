"""The tokenizer of a GGUF file: built by transformers, corrected and checked against the file's metadata.

Source of the rules: llama.cpp's `llama_vocab::impl::load` (llama-vocab.cpp).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf import get_gguf_tokenizer

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.gguf_header import GgufHeader, Items
from model_runtime.loading.gguf.text_splits import IGNORES_MERGES, SPLITS, split_rule

_PREFIX = "tokenizer.ggml."
_NONE = 0xFFFFFFFF  # how some converters write "no such token"
_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"
_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}
# Each ends an answer in llama.cpp (`special_eog_ids`).
_ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
_LISTED_ENDS = "tokenizer.ggml.eos_token_ids"  # written by Ollama
_USED = re.compile(
    r"tokenizer\.(ggml\.(model|pre|tokens|token_type|scores|merges|add_bos_token|add_eos_token|add_space_prefix"
    r"|(bos|eos|eot|eom|unknown|padding)_token_id|eos_token_ids|fim_(pad|rep|sep)_token_id)|chat_template)"
)
# For tasks other than chats, and what llama.cpp does not read either.
_IRRELEVANT = re.compile(
    r"tokenizer\.(ggml\.((seperator|separator|mask|cls|fim_(pre|suf|mid)|prefix|suffix|middle)_token_id)"
    r"|huggingface\.json|chat_templates|chat_template\.\w+)"
)
_PREFIXED = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
_TEMPLATE = "tokenizer.chat_template"
_SWITCHES = ("add_bos_token", "add_eos_token", "add_space_prefix")
# What chat templates write as one token: `<|im_start|>`, `[INST]`, `<start_of_turn>`.
_LOOKS_LIKE_CONTROL = re.compile(r"<\S*\w\S*>|\[/?[A-Z_]+\]")
_KINDS = frozenset(int(kind) for kind in TokenType)
_OFF = ("add_sep_token", "remove_extra_whitespaces")  # only false is supported


def check_vocabulary_keys(name: str, header: GgufHeader) -> None:
    """Raises `ModelLoadError` for a key that is not supported or not known, from the header alone."""
    for key, value in header.metadata.items():
        if not key.startswith("tokenizer.") or _USED.fullmatch(key) or _IRRELEVANT.fullmatch(key):
            continue
        if key.removeprefix(_PREFIX) in _OFF and not value:
            continue
        raise ModelLoadError(f"{name} cannot be used: Keepwarm does not support its entry {key[:80]}.")
    model = header.metadata.get(f"{_PREFIX}model")
    if model not in (_BYTE_LEVEL, _SENTENCEPIECE):
        raise ModelLoadError(
            f"{name} cannot be used: its tokenizer.ggml.model is {str(model)[:60]}; Keepwarm reads '{_BYTE_LEVEL}' "
            f"(byte-level) and '{_SENTENCEPIECE}' (SentencePiece)."
        )
    split = header.metadata.get(f"{_PREFIX}pre", "default")
    if model == _BYTE_LEVEL and split not in SPLITS:
        raise ModelLoadError(
            f"{name} cannot be used: it splits text as tokenizer.ggml.pre '{str(split)[:60]}' says, which Keepwarm "
            "does not know."
        )
    _check_lists(name, header, str(model))
    if not isinstance(header.metadata.get(_TEMPLATE, ""), str):
        raise ModelLoadError(f"{name} cannot be used: its {_TEMPLATE} is not text.")
    for switch in _SWITCHES:
        if not isinstance(value := header.metadata.get(f"{_PREFIX}{switch}", False), bool) and value not in (0, 1):
            raise ModelLoadError(
                f"{name} cannot be used: its {_PREFIX}{switch} is {str(value)[:60]}, not true or false."
            )
    rows = header.tensors["token_embd.weight"].shape[0]
    if not all(end in range(rows) for end in _listed_ends(header)):
        raise ModelLoadError(f"{name} cannot be used: its {_LISTED_ENDS} are not all tokens of its own.")
    for what in _IDS.values():
        if header.metadata.get(f"{_PREFIX}{what}") == _NONE:
            raise ModelLoadError(f"{name} cannot be used: its {what} says that there is no such token.")


def _check_lists(name: str, header: GgufHeader, model: str) -> None:
    """Raises `ModelLoadError` for a vocabulary that lacks a list, or whose lists have different lengths."""
    tokens = header.metadata.get(f"{_PREFIX}tokens")
    found = {what: header.metadata.get(f"{_PREFIX}{what}") for what in ("token_type", "scores", "merges")}
    if not found["merges"] and (model == _BYTE_LEVEL or not found["scores"]):
        missing = "merges" if model == _BYTE_LEVEL else "scores"
        raise ModelLoadError(f"{name} cannot be used: it has no {_PREFIX}{missing}. Download it again.")
    for what, items in found.items():
        if items is None or (isinstance(items, Items) and what == "merges"):
            continue
        if not isinstance(items, Items) or not isinstance(tokens, Items) or items.count != tokens.count:
            raise ModelLoadError(f"{name} cannot be used: its {_PREFIX}{what} has not one entry for each token.")


def token_ids(header: GgufHeader) -> dict[str, int | list[int]]:
    """The ids of special tokens as transformers' configs have them. What ends an answer is a list if it is more than
    one token."""
    found = {key: header.metadata.get(f"{_PREFIX}{name}") for key, name in _IDS.items()}
    ids: dict[str, Any] = {f"{key}_token_id": found[key] for key in ("bos", "eos", "pad")}
    if found["unk"] is not None:
        ids["unk_token_id"] = found["unk"]
    stated = [header.metadata.get(f"{_PREFIX}{end}_token_id") for end in _ENDS] + list(_listed_ends(header))
    ends = list(dict.fromkeys(end for end in stated if isinstance(end, int) and end != _NONE))
    if len(ends) > 1:
        ids["eos_token_id"] = ends
    return ids


def _listed_ends(header: GgufHeader) -> tuple[float, ...]:
    listed = header.metadata.get(_LISTED_ENDS)
    return listed.numbers if isinstance(listed, Items) else ()


def save_tokenizer(path: Path, header: GgufHeader, directory: Path, *, splits_as_stated: bool) -> list[str]:
    """Writes the tokenizer's files and returns notes about it. `splits_as_stated`: see `convert_gguf`. Raises
    `ModelLoadError` if its ids are not the file's."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
    _, vocabulary, _ = get_gguf_tokenizer(str(path))
    split = str(header.metadata.get(f"{_PREFIX}pre", "default"))
    notes = []
    if vocabulary["tokenizer_type"] == _BYTE_LEVEL:
        _spell_added_tokens(tokenizer, vocabulary)
        if splits_as_stated:
            _split_as_stated(tokenizer, split)
        if split == "default":
            notes.append("The file does not say how its tokenizer splits text; GPT-2's rule is used.")
    else:
        _set_space_prefix(path.name, tokenizer, vocabulary.get("add_prefix_space"))
    notes += _mark_control_tokens(path.name, tokenizer, vocabulary, header.metadata.get(_TEMPLATE, ""))
    named = sorted(key.rpartition(".")[2] for key in header.metadata if key.startswith(f"{_TEMPLATE}."))
    if named:
        notes.append(f"The file's chat templates named {', '.join(named)} are not used.")
    _check_ids(path.name, tokenizer, vocabulary)
    tokenizer.save_pretrained(directory)
    return notes


def _split_as_stated(tokenizer: PreTrainedTokenizerFast, split: str) -> None:
    rule = split_rule(split)
    if rule is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = rule
    if split in IGNORES_MERGES:
        tokenizer.backend_tokenizer.model.ignore_merges = True


def _spell_added_tokens(tokenizer: PreTrainedTokenizerFast, vocabulary: dict[str, Any]) -> None:
    """transformers writes tokens with characters outside the byte-level alphabet (DeepSeek's "<｜User｜>") in that
    alphabet and does not add them, so that a template's "<｜User｜>" would be cut into pieces."""
    kinds = vocabulary.get("token_type") or ()
    wanted = {
        token: kind
        for token, kind in zip(vocabulary["tokens"], kinds, strict=False)
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    }
    known = tokenizer.get_added_vocab()
    missing = [token for token in wanted if token not in known]
    if not missing:
        return
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = {token: place for place, token in enumerate(vocabulary["tokens"])}
    places = {ids[token] for token in missing}
    vocab = {token: place for token, place in backend["model"]["vocab"].items() if place not in places}
    vocab |= {token: ids[token] for token in missing}
    taken = set(vocab.values())  # a token may have lost its place to another that was spelled like it
    vocab |= {token: place for token, place in ids.items() if place not in taken}
    backend["model"]["vocab"] = vocab
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))
    for token in missing:
        special = wanted[token] == TokenType.CONTROL
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special)], special_tokens=special)


def _mark_control_tokens(
    name: str, tokenizer: PreTrainedTokenizerFast, vocabulary: dict[str, Any], template: Any
) -> list[str]:
    """Some converters mark control tokens as ordinary ones, or no token at all: then text is cut in them. Those that
    the chat template writes become control tokens, as in llama.cpp, and a note says so."""
    kinds = vocabulary.get("token_type") or [TokenType.NORMAL] * len(vocabulary["tokens"])
    if strange := next((kind for kind in kinds if kind not in _KINDS), None):
        raise ModelLoadError(
            f"{name} cannot be used: its {_PREFIX}token_type has {strange}, which is no kind of token."
        )
    marked = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.BYTE)
    found = [
        token
        for token, kind in zip(vocabulary["tokens"], kinds, strict=False)
        if kind not in marked and _LOOKS_LIKE_CONTROL.fullmatch(token) and token in str(template)
    ]
    if not found:
        return []
    added = [AddedToken(token, normalized=False, special=True) for token in found]
    tokenizer.add_special_tokens({"additional_special_tokens": added}, replace_extra_special_tokens=False)
    listed = ", ".join(found[:6])
    return [f"The file does not mark {listed} as control tokens; its chat template writes them as such, so they are."]


def _set_space_prefix(name: str, tokenizer: PreTrainedTokenizerFast, stated: bool | None) -> None:
    """SentencePiece puts a space before a text unless the file says otherwise: before each stretch between control
    tokens, as llama.cpp does (`is_prev_special`) and as transformers' legacy tokenizers do, with which Llama 2, Mistral
    and their like were trained. transformers' reader does so at a text's beginning only."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    has_prefix = "▁" in tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0]
    if stated and not has_prefix:
        raise ModelLoadError(
            f"{name} cannot be used: its tokenizer.ggml.add_space_prefix asks for a space before each text, which "
            "tokenizers of this architecture do not add."
        )
    if not has_prefix:
        return
    if stated is None or stated:
        backend["normalizer"] = _PREFIXED
        backend["pre_tokenizer"] = None
    else:
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            backend[part] = _without_prefix(backend[part])
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))


def _without_prefix(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A step of a tokenizers pipeline that neither adds nor removes the space before a text."""
    if step is None or step["type"] in ("Prepend", "Strip"):
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    for part in ("normalizers", "pretokenizers", "decoders"):
        if part in step:
            return {**step, part: [kept for inner in step[part] if (kept := _without_prefix(inner)) is not None]}
    return step


def _check_ids(name: str, tokenizer: PreTrainedTokenizerFast, vocabulary: dict[str, Any]) -> None:
    """Each token has the id of its place in the file, and those that stand for themselves are never cut."""
    tokens = vocabulary["tokens"]
    last = max(tokenizer.get_vocab().values())
    if last >= len(tokens):
        raise ModelLoadError(f"{name} cannot be used: its tokenizer has a token {last:,}, but lists {len(tokens):,}.")
    for key, what in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("pad", "pad_token_id")):
        stated = vocabulary.get(what)
        if stated is not None and getattr(tokenizer, f"{key}_token_id") != stated:
            raise ModelLoadError(f"{name} cannot be used: its {what} {stated} is not a token of its own.")
    for place, kind in enumerate(vocabulary.get("token_type") or ()):
        if kind != TokenType.CONTROL or place >= len(tokens) or not tokens[place]:
            continue
        found = tokenizer.backend_tokenizer.encode(tokens[place], add_special_tokens=False).ids
        if found != [place]:
            raise ModelLoadError(
                f"{name} cannot be used: its control token {tokens[place][:60]!r} is not one token of its tokenizer."
            )
