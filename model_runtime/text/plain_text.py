"""A tokenizer for text written by users and tools, in which control tokens are ordinary characters.

`encode_special_tokens` covers only the tokens that are marked as special. `<|Assistant|>`, `<think>` or `<tool_call>`
are often added without that mark, some control tokens are in the model's own vocabulary, where Unigram finds them, and
GGUF files contain merges that build them. So in this tokenizer each control token keeps its id but gets another name,
which cannot be typed, and the merges that build it are removed.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

_BRACKETED = re.compile(r"\s*([<\[{(|｜〈«⟨⟦].*[>\]})|｜〉»⟩⟧])\s*", re.DOTALL)
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def control_contents(tokenizer: Tokenizer, template: str) -> frozenset[str]:
    """The added tokens with a control function: those marked special, those in brackets of any kind, and those that the
    chat template writes. Added tokens for runs of spaces and rare letters are text."""
    return frozenset(
        token.content
        for token in tokenizer.get_added_tokens_decoder().values()
        if token.content.strip()
        and not _BYTE.fullmatch(token.content)
        and (
            token.special
            or (_BRACKETED.fullmatch(token.content) and any(c.isalnum() for c in token.content))
            or (len(token.content.strip()) > 1 and token.content in template)
        )
    )


def exact_copy(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """A copy that gives a text's own ids and no others, the same ones every time: no padding, no truncation, nothing
    added, no dropout of merges, which is for training. Its control tokens are found beside words, too: otherwise a
    person's text could hide the template's own."""
    controls = control_contents(tokenizer, template)
    description = json.loads(tokenizer.to_str())
    for token in description["added_tokens"]:
        token["single_word"] = token["single_word"] and token["content"] not in controls
    description |= {"padding": None, "truncation": None, "post_processor": None}
    if "dropout" in description["model"]:
        description["model"]["dropout"] = None
    return Tokenizer.from_str(json.dumps(description))


@dataclass(frozen=True, slots=True)
class HiddenTokens:
    """A tokenizer that produces the control tokens only where `names` has their new names. `unknown_id` is the id of
    what it cannot write, if there is one."""

    tokenizer: Tokenizer
    names: Mapping[str, str]
    unknown_id: int | None


def hidden_tokens(tokenizer: Tokenizer, contents: Collection[str]) -> HiddenTokens:
    """A copy that knows these tokens by names that cannot be typed, finds the names whatever stands beside them, and
    treats all others as before."""
    description = json.loads(tokenizer.to_str())
    nonce = secrets.token_hex(6)
    hidden = {content: f"<{nonce}{number:04}>" for number, content in enumerate(sorted(contents))}
    for token in description["added_tokens"]:
        if token["content"] in hidden:
            token |= {"content": hidden[token["content"]], "normalized": False}
    description["post_processor"] = None  # it names tokens, and nothing is added here
    unknown = unknown_token(description["model"])
    _hide_in_model(description["model"], hidden)
    copy = Tokenizer.from_str(json.dumps(description))
    copy.no_truncation()
    copy.no_padding()
    return HiddenTokens(copy, hidden, None if unknown is None else tokenizer.token_to_id(unknown))


def unknown_token(model: dict[str, Any]) -> str | None:
    """The token for what the vocabulary cannot write."""
    if isinstance(model.get("vocab"), list) and model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _hide_in_model(model: dict[str, Any], hidden: dict[str, str]) -> None:
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {hidden.get(content, content): token_id for content, token_id in vocabulary.items()}
    elif isinstance(vocabulary, list):  # Unigram: [content, score], the id is the place
        model["vocab"] = [[hidden.get(content, content), score] for content, score in vocabulary]
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, hidden)]


def _makes(merge: str | Iterable[str], hidden: Collection[str]) -> bool:
    """Whether a merge builds a control token, or extends one."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left + right in hidden or left in hidden or right in hidden
