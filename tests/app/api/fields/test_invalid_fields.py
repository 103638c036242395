"""What is wrong with a request is said in sentences that name the field and the limit, never in pydantic's words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.api.fields.invalid_fields import place_and_sentence
from app.api.requests import ChatCompletionRequest

USER = {"role": "user", "content": "a"}
TEXT = {"type": "text", "text": "a"}
CALL = {"id": "1", "function": {"name": "a", "arguments": ""}}
TOOL = {"type": "function", "function": {"name": "a"}}


def content(*parts: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def named(name: str) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": name}}]}


@pytest.mark.parametrize(
    ("fields", "place", "rest"),
    [
        (content(*[TEXT] * 60_000), "messages.0.content", " has more than 20,000 entries, which is the most"),
        ({"messages": [USER] * 20_001}, "messages", " has more than 20,000 entries"),
        ({"messages": []}, "messages", " needs at least 1 entry."),
        ({"tools": [TOOL] * 1_001}, "tools", " has more than 1,000 entries"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [CALL] * 1_001}]},
            "messages.0.tool_calls",
            " has more than 1,000 entries",
        ),
        (content({"type": "image_of_a_kind"}), "messages.0.content.0", ": This model reads no pictures. Send parts"),
        (content({"type": "hologram"}), "messages.0.content.0", ": Parts of type 'hologram' are not supported"),
        (content({"text": "a"}), "messages.0.content.0", " needs a type: 'text'."),
        (content({"type": "text"}), "messages.0.content.0.text", " is missing."),
        (content({"type": "text", "text": 5}), "messages.0.content.0.text", " must be text."),
        (content(5), "messages.0.content.0", " must be an object."),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", " must be text or a list."),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role", " must be 'system', 'developer', "),
        ({"messages": [{"content": "a"}]}, "messages.0.role", " is missing."),
        ({"messages": {}}, "messages", " must be a list."),
        ({"messages": ["a"]}, "messages.0", " must be an object."),
        ({"temperature": 9}, "temperature", " must be at most 5."),
        ({"temperature": "0.5"}, "temperature", " must be a number."),
        ({"top_p": -1}, "top_p", " must be at least 0."),
        ({"max_tokens": -2}, "max_tokens", " must be at least -1."),
        ({"max_tokens": 1.5}, "max_tokens", " must be a whole number."),
        ({"seed": 2**70}, "seed", " must be at most 9,223,372,036,854,775,807."),
        ({"stop": 5}, "stop", " must be text or a list."),
        ({"stop": [1]}, "stop.0", " must be text."),
        ({"stream": "yes"}, "stream", " must be true or false."),
        ({"prompt_cache_key": ""}, "prompt_cache_key", " needs at least 1 character."),
        ({"prompt_cache_key": "x" * 300}, "prompt_cache_key", " has more than 256 characters."),
        (named("a b"), "tools.0.function.name", " may hold no spaces"),
        (named("a" * 201), "tools.0.function.name", " has more than 200 characters."),
        (named(""), "tools.0.function.name", " needs at least 1 character."),
        ({"logit_bias": 5}, "logit_bias", " must be an object."),
        ({"modalities": "text"}, "modalities", " must be a list."),
        ({"model": 5}, "model", " must be text."),
        ({"logit_bias": {"5": "much"}}, "logit_bias.5", " must be a number."),
        ({"stop_token_ids": ["</s>"]}, "stop_token_ids.0", " must be a whole number."),
    ],
)
def test_the_field_and_its_limit_are_named(fields: dict[str, Any], place: str, rest: str) -> None:
    found, sentence = refused({"model": "m", "messages": [USER], **fields})
    assert found == place
    assert sentence.startswith(place + rest), sentence
    assert sentence.endswith(".")
    for word in ("Input", "validation", "tagged", "union", "valid ", "List", "String"):
        assert word not in sentence


def test_the_whole_body() -> None:
    assert refused([]) == ("", "The request must be an object.")
    assert refused({"model": "m"}) == ("messages", "messages is missing.")


def test_what_was_sent_is_not_repeated_at_length() -> None:
    _, sentence = refused({"model": "m", **content({"type": "x" * 100_000})})
    assert len(sentence) < 200


def refused(body: object) -> tuple[str, str]:
    with pytest.raises(ValidationError) as found:
        ChatCompletionRequest.model_validate(body)
    return place_and_sentence(found.value.errors(include_url=False, include_input=False))
