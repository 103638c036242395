"""What programs send that were written for another server, and histories that another server began."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.app.api.conftest import ServeOnce
from tests.app.conftest import MODEL, assistant, user
from tests.app.site import Site
from tests.sessions.byte_template import ByteTemplate

CHAT, RESPONSES, OLLAMA = "/v1/chat/completions", "/v1/responses", "/api/chat"


@pytest.fixture(scope="module")
def site(serve_once: ServeOnce) -> Site:
    return serve_once(template=ByteTemplate(takes_tools=True, has_thoughts=True))


def post(site: Site, path: str, **body: Any) -> httpx.Response:
    asked: dict[str, Any] = {"model": MODEL, "input" if path == RESPONSES else "messages": [user("Hello")]}
    return httpx.post(
        site.url + path, json={**asked, **({"stream": False} if path == OLLAMA else {}), **body}, timeout=30
    )


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": -1}),
        (CHAT, {"xtc_probability": 0, "xtc_threshold": 0.1, "dynatemp_range": 0, "dynatemp_exponent": 1}),
        (CHAT, {"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "n_keep": 0, "n_probs": 0}),
        (CHAT, {"usage": {"include": True}}),
        (RESPONSES, {"stream_options": {"include_obfuscation": False}, "presence_penalty": 0}),
        (OLLAMA, {"truncate": False, "shift": False}),
    ],
)
def test_what_is_done_anyway_is_no_reason_to_refuse(site: Site, path: str, fields: dict[str, Any]) -> None:
    answered = post(site, path, **fields)
    assert answered.status_code == 200, answered.text
    assert answered.json()["keepwarm"]["ignored"] == []


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        (CHAT, {"guided_decoding_backend": "xgrammar"}, "guided_decoding_backend"),
        (RESPONSES, {"client_metadata": {"session": "a"}}, "client_metadata"),
        *(
            (CHAT, {"messages": [user("a"), {**assistant("b"), name: value}, user("c")]}, f"messages.{name}")
            for name, value in (
                ("annotations", [{"type": "url_citation"}]),
                ("reasoning_details", [{"type": "reasoning.text", "text": "Hm"}]),
                ("provider_specific_fields", {"a": 1}),
                ("parsed", {"a": 1}),
            )
        ),
    ],
)
def test_what_says_nothing_of_the_answer_is_named(site: Site, path: str, fields: dict[str, Any], named: str) -> None:
    answered = post(site, path, **fields)
    assert answered.status_code == 200, answered.text
    assert answered.json()["keepwarm"]["ignored"] == [named]


def test_a_refusal_and_arguments_as_an_object_are_part_of_the_history(site: Site) -> None:
    def fed(*said: Any) -> int:
        answered = post(site, CHAT, messages=[user("Histories"), *said, user("Then")])
        assert answered.status_code == 200, answered.text
        return int(answered.json()["usage"]["prompt_tokens"])

    assert fed({"role": "assistant", "content": None, "refusal": "I will not."}) == fed(assistant("I will not."))

    def call(arguments: Any) -> list[Any]:
        made = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        called = {"role": "assistant", "content": None, "tool_calls": [made]}
        return [called, {"role": "tool", "tool_call_id": "c1", "content": "x"}]

    assert fed(*call({"city": "Ålesund"})) == fed(*call('{"city": "Ålesund"}'))


@pytest.mark.parametrize(
    ("path", "fields", "sentence"),
    [
        (CHAT, {"dry_multiplier": 0.8, "dry_base": 1.75}, "dry_multiplier is not supported"),
        (CHAT, {"reasoning": {"effort": "low"}}, "use reasoning_effort"),
        (RESPONSES, {"messages": [user("a")]}, "messages is not supported"),
        (RESPONSES, {"max_tokens": 5}, "max_tokens is not supported"),
        (RESPONSES, {"tools": [{"type": "mcp", "server_label": "x"}]}, "The tool 'mcp' is not run here"),
        (
            RESPONSES,
            {"tools": [{"type": "custom", "name": "x", "format": {"a": 1}}]},
            "The tool 'custom' is not run here",
        ),
        (RESPONSES, {"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools.0.name is missing."),
        (
            RESPONSES,
            {"input": [user("a"), {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.1.content.0: This model reads no pictures.",
        ),
    ],
)
def test_sentences_speak_of_what_was_sent(site: Site, path: str, fields: dict[str, Any], sentence: str) -> None:
    answered = post(site, path, **fields)
    assert answered.status_code == 400
    assert sentence in answered.json()["error"]["message"]
