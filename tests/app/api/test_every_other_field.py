"""Every field of the other protocols shows its effect, is refused, or is named in the answer as without effect. A new
field without an entry here fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from app.api.anthropic.requests import CountRequest, MessagesRequest
from app.api.fields.other_fields import MEANT
from app.api.ollama.requests import GenerateRequest, OllamaChatRequest, Options
from app.api.openai_responses.requests import ConversationRequest, ResponsesRequest
from app.api.text_completions.requests import TextCompletionRequest
from app.api.tokens.requests import DetokenizeRequest, TokenizeRequest
from model_runtime.interface.sampling_params import SamplingParams
from tests.app.api.conftest import ServeOnce
from tests.app.conftest import MODEL, user
from tests.app.site import Site, echo
from tests.sessions.byte_template import ByteTemplate

Check = Callable[[Any, SamplingParams], object]
Cases = dict[str, list[tuple[Any, Check | str]]]
TEXT_TOKENS = 10
REFUSED, NAMED = "refused", "named as without effect"
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
PICTURE = ["aGk="]


def sampled(name: str, expected: Any) -> Check:
    return lambda answer, sampling: getattr(sampling, name) == expected


def is_shown(key: str) -> Check:
    return lambda answer, sampling: answer[key]


def long_prompt(*keys: str) -> Check:
    """Whether the prompt has more than the ids of its role, its text and the answer's role."""
    return lambda answer, sampling: sum(answer.get("usage", answer)[key] for key in keys) > 2 + TEXT_TOKENS


LONGER = long_prompt("input_tokens")
LONGER_READ = long_prompt("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
LONGER_EVALUATED = long_prompt("prompt_eval_count")
MESSAGES: Cases = {
    "model": [("claude-x", REFUSED)],
    "messages": [([user("Other words")], lambda a, s: a["content"][0]["text"] == "You said: Other words")],
    "system": [("Be brief, and say so in a few words.", LONGER_READ), ([{"type": "image"}], REFUSED)],
    "tools": [
        ([{"name": "f", "input_schema": {"type": "object"}}], LONGER_READ),
        ([{"name": "web_search", "type": "web_search_20250305"}], REFUSED),
    ],
    "tool_choice": [({"type": "any"}, REFUSED), ({"type": "sometimes"}, REFUSED)],  # without tools
    "thinking": [
        ({"type": "disabled"}, LONGER_READ),
        ({"type": "enabled", "budget_tokens": 1024}, NAMED),
        ({"type": "always"}, REFUSED),
    ],
    "output_config": [({"effort": "low"}, NAMED), ({"tone": "kind"}, REFUSED)],
    "output_format": [({"type": "xml"}, REFUSED)],
    "context_management": [
        ({"edits": [{"type": "clear_thinking_20251015"}]}, NAMED),
        ({"edits": [{"type": "clear_tool_uses_20250919"}]}, REFUSED),
    ],
    "max_tokens": [
        (3, lambda a, s: a["usage"]["output_tokens"] == 3),
        (3.0, lambda a, s: a["usage"]["output_tokens"] == 3),
        (0, REFUSED),
    ],
    "stream": [(True, is_shown("message_start"))],
    "temperature": [(0.25, sampled("temperature", 0.25)), (9, REFUSED)],
    "top_p": [(0.25, sampled("top_p", 0.25)), (0, sampled("top_p", 1e-9))],
    "top_k": [(7, sampled("top_k", 7))],
    "stop_sequences": [([" said"], lambda a, s: a["content"][0]["text"] == "You"), ([""], REFUSED)],
}
RESPONSES: Cases = {
    "model": [("gpt-4o", REFUSED)],
    "input": [
        ("Other words", lambda a, s: a["output"][0]["content"][0]["text"] == "You said: Other words"),
        ([{"type": "computer_call"}], REFUSED),
    ],
    "instructions": [("Be brief, and say so in a few words.", LONGER)],
    "previous_response_id": [("resp_unknown", REFUSED)],
    "conversation": [("conv_unknown", REFUSED)],
    "store": [(False, lambda a, s: a["store"] is False)],
    "stream": [(True, is_shown("response.created"))],
    "stream_options": [({"include_obfuscation": True}, NAMED), ({"include_usage": True}, REFUSED)],
    "tools": [([{"type": "function", **FUNCTION}], LONGER), ([{"type": "web_search"}], REFUSED)],
    "tool_choice": [("required", REFUSED)],  # without tools
    "parallel_tool_calls": [(False, lambda a, s: a["parallel_tool_calls"] is False)],  # its effect: test_responses
    "text": [({"format": {"type": "xml"}}, REFUSED), ({"verbosity": "low"}, REFUSED)],
    "reasoning": [
        ({"effort": "low"}, NAMED),  # its effect is in test_thoughts
        ({"summary": "auto"}, NAMED),
        ({"depth": 1}, REFUSED),
    ],
    "max_output_tokens": [(3, lambda a, s: a["usage"]["output_tokens"] == 3), (0, REFUSED)],
    "temperature": [(0.25, sampled("temperature", 0.25))],
    "top_p": [(0.25, sampled("top_p", 0.25)), (0, sampled("top_p", 1e-9))],
    "top_k": [(7, sampled("top_k", 7))],
    "min_p": [(0.25, sampled("min_p", 0.25))],
    "seed": [(5, sampled("seed", 5))],
    "top_logprobs": [(3, sampled("top_logprobs", 3))],
    "include": [
        (["message.output_text.logprobs"], sampled("top_logprobs", 0)),
        (["file_search_call.results"], NAMED),
    ],
    "metadata": [({"a": "b"}, lambda a, s: a["metadata"] == {"a": "b"})],
    "prompt_cache_key": [("mine", lambda a, s: a["keepwarm"]["session_id"]), ("", REFUSED)],
    "truncation": [("auto", NAMED), ("some", REFUSED)],
    "background": [(True, REFUSED)],
    "max_tool_calls": [(3, NAMED)],
    "chat_template_kwargs": [({"effort": "low"}, LONGER), ({"efort": "low"}, REFUSED)],
    "enable_thinking": [(False, LONGER)],
}
OLLAMA: Cases = {
    "model": [("llama9", REFUSED)],
    "stream": [(True, lambda a, s: a["done"] is False)],
    "format": [("xml", REFUSED)],
    "options": [({"temprature": 1}, REFUSED)],
    "keep_alive": [("5m", NAMED)],
    "think": [(False, LONGER_EVALUATED)],
    "logprobs": [(True, sampled("top_logprobs", 0))],
    "top_logprobs": [(3, REFUSED)],  # without logprobs
}
OLLAMA_CHAT: Cases = OLLAMA | {
    "messages": [([user("Other words")], lambda a, s: a["message"]["content"] == "You said: Other words")],
    "tools": [([TOOL], LONGER_EVALUATED)],
}
GENERATE: Cases = OLLAMA | {
    "prompt": [("Other words", lambda a, s: a["response"] == "You said: Other words")],
    "system": [("Be brief, and say so in a few words.", LONGER_EVALUATED)],
    "raw": [(True, lambda a, s: a["prompt_eval_count"] == TEXT_TOKENS)],
    "suffix": [("x", REFUSED)],
    "template": [("x", REFUSED)],
    "context": [([1, 2], REFUSED)],
    "images": [(PICTURE, REFUSED)],
}
OPTIONS: Cases = {
    "num_predict": [(3, lambda a, s: a["eval_count"] == 3)],
    "num_ctx": [(64, lambda a, s: True), (1_000_000, NAMED)],
    "seed": [(5, sampled("seed", 5))],
    "temperature": [(0.25, sampled("temperature", 0.25))],
    "top_k": [(7, sampled("top_k", 7))],
    "top_p": [(0.25, sampled("top_p", 0.25)), (0, sampled("top_p", 1e-9))],
    "min_p": [(0.25, sampled("min_p", 0.25))],
    "repeat_penalty": [(1.25, sampled("repetition_penalty", 1.25))],
    "presence_penalty": [(1.25, sampled("presence_penalty", 1.25))],
    "frequency_penalty": [(1.25, sampled("frequency_penalty", 1.25))],
    "stop": [([" said"], lambda a, s: a["message"]["content"] == "You")],
    "repeat_last_n": [
        (64, sampled("penalty_window", 64)),
        (0, sampled("penalty_window", 0)),
        (-1, sampled("penalty_window", None)),
        (-2, REFUSED),
    ],
    "typical_p": [(1.0, lambda a, s: True), (0.5, REFUSED)],
    "tfs_z": [(1.0, lambda a, s: True), (0.5, REFUSED)],
    "mirostat": [(0, lambda a, s: True), (2, REFUSED)],
    **{
        name: [(1, NAMED)]
        for name in (
            *("mirostat_tau", "mirostat_eta", "penalize_newline", "num_keep", "num_batch", "num_gpu", "num_thread"),
            *("main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only"),
            "numa",
        )
    },
}
TOKENIZE: Cases = {
    "model": [("gpt-4o", REFUSED)],
    "prompt": [("abc", lambda a, s: a["tokens"] == [97, 98, 99])],
    "content": [("abc", lambda a, s: a["tokens"] == [97, 98, 99])],
    "messages": [([user("abc")], lambda a, s: len(a["tokens"]) > 3)],
    "tools": [([TOOL], REFUSED)],  # without messages
    "chat_template_kwargs": [({"effort": "low"}, REFUSED)],
    "add_special_tokens": [(False, lambda a, s: len(a["tokens"]) == 3)],
    "add_special": [(False, lambda a, s: len(a["tokens"]) == 3)],
    "return_token_strs": [(True, is_shown("token_strs"))],
    "with_pieces": [(True, lambda a, s: a["tokens"][0] == {"id": 97, "piece": "a"})],
}


@pytest.fixture(scope="module")
def site(serve_once: ServeOnce) -> Site:
    template = ByteTemplate(takes_tools=True, has_thoughts=True, variables=("effort", "enable_thinking"))
    return serve_once(template=template, answer=echo)


@pytest.fixture(scope="module")
def http(site: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, timeout=30) as client:
        yield client


PROTOCOLS: dict[str, tuple[str, type[BaseModel], Cases, Callable[[str], dict[str, Any]]]] = {
    "MESSAGES": (
        "/v1/messages", MessagesRequest, MESSAGES, lambda text: {"messages": [user(text)], "max_tokens": 200},
    ),
    "RESPONSES": ("/v1/responses", ResponsesRequest, RESPONSES, lambda text: {"input": text}),
    "OLLAMA_CHAT": (
        "/api/chat", OllamaChatRequest, OLLAMA_CHAT, lambda text: {"messages": [user(text)], "stream": False},
    ),
    "GENERATE": ("/api/generate", GenerateRequest, GENERATE, lambda text: {"prompt": text, "stream": False}),
    "TOKENIZE": ("/tokenize", TokenizeRequest, TOKENIZE, lambda text: {"prompt": "abc"}),
}  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_field_shows_its_effect_is_refused_or_named(site: Site, http: httpx.Client, protocol: str) -> None:
    path, shape, table, usual = PROTOCOLS[protocol]
    assert set(shape.model_fields) == set(table)
    cases = [(field, *case) for field, cases in table.items() for case in cases]
    for number, (field, value, check) in enumerate(cases):
        body = usual(f"{protocol[:4]}{number:6}") | {field: value}
        if field in ("content", "messages") and path == "/tokenize":
            del body["prompt"]
        shown(site, http, path, field, body, check)


def test_every_option_of_ollama(site: Site, http: httpx.Client) -> None:
    assert set(Options.model_fields) == set(OPTIONS)
    for field, cases in OPTIONS.items():
        for number, (value, check) in enumerate(cases):
            body = {"messages": [user(f"About {field} {number}")], "stream": False, "options": {field: value}}
            shown(site, http, "/api/chat", field, body, check)


MEANINGS: dict[str, Any] = {
    **dict.fromkeys(("max_tokens", "max_output_tokens", "num_predict"), 3),
    **dict.fromkeys(("prompt", "input"), "Hinted"),
    **dict.fromkeys(("reasoning_effort", "effort", "think"), "low"),
    "stop": ["x"],
    "messages": [user("Hinted")],
}
WITH_HINTS: dict[str, Callable[[str], dict[str, Any]]] = {
    **{path: usual for path, _, _, usual in PROTOCOLS.values() if path != "/tokenize"},
    "/v1/chat/completions": lambda text: {"messages": [user(text)]},
    "/v1/completions": lambda text: {"prompt": text},
}


@pytest.mark.parametrize("path", WITH_HINTS)
def test_a_refusal_names_a_field_that_is_taken_there(http: httpx.Client, path: str) -> None:
    def post(more: Mapping[str, Any]) -> httpx.Response:
        body = {"model": MODEL, **WITH_HINTS[path]("Hinted"), **more}
        return http.post(path, json=body, headers={"anthropic-version": "2023-06-01"})

    hinted = 0
    for field in MEANT:
        refused = post({field: {"a": 1}})
        if "so it would change nothing" not in refused.text:
            continue  # a field of this protocol
        hint = re.search(r": use ([\w.]+)\. Leave", refused.text)
        if hint is None:
            continue
        outer, _, inner = hint[1].partition(".")
        value = MEANINGS[inner or outer]
        taken = post({outer: {inner: value} if inner else value})
        assert taken.status_code == 200, (field, taken.text)
        hinted += 1
    assert hinted >= 3


def test_what_the_other_shapes_have_is_in_a_table_too() -> None:
    assert set(CountRequest.model_fields) <= set(MESSAGES)
    assert set(ConversationRequest.model_fields) == {"items", "metadata"}  # test_responses
    assert set(DetokenizeRequest.model_fields) == {"model", "tokens"}  # test_tokens
    assert "prompt" in TextCompletionRequest.model_fields  # test_text_completions


def shown(site: Site, http: httpx.Client, path: str, field: str, body: Mapping[str, Any], check: Check | str) -> None:
    what = f"{path} {field} {body}"
    before = len(site.manager.list_conversations("local"))
    answered = http.post(path, json={"model": MODEL, **body}, headers={"anthropic-version": "2023-06-01"})
    if check == REFUSED:
        assert 400 <= answered.status_code < 500, what
        assert field in answered.text, answered.text
        assert len(site.manager.list_conversations("local")) == before, what
        return
    assert answered.status_code == 200, f"{what}: {answered.text}"
    answer = answer_of(answered)
    ignored = [name.split(".")[-1] for name in answer.get("keepwarm", {}).get("ignored", [])]
    if check == NAMED:
        assert any(field in name for name in answer["keepwarm"]["ignored"]), what
        return
    assert ignored == [], what
    assert callable(check)
    sampling = site.engine.last_sampling
    assert sampling is not None or path == "/tokenize"
    assert check(answer, sampling), f"{what}: {answer}"


def answer_of(answered: httpx.Response) -> dict[str, Any]:
    """The answer; of a stream its first event, by its type where it has one."""
    kind = answered.headers["content-type"]
    if kind.startswith("text/event-stream"):
        event = json.loads(answered.text.split("\n\n")[0].partition("data: ")[2])
        return {event["type"]: event}
    return dict(json.loads(answered.text.split("\n")[0] if kind.startswith("application/x-ndjson") else answered.text))
