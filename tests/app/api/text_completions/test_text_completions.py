"""Texts and ids that the model goes on with, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.api.requests import ChatCompletionRequest
from app.api.text_completions.requests import SHARED, TextCompletionRequest
from tests.app.api.conftest import ServeOnce
from tests.app.conftest import MODEL
from tests.app.site import Site
from tests.sessions.byte_template import END


def onward(ledger: tuple[int, ...]) -> tuple[int, ...]:
    """Says how much it has read, then ends."""
    return (*f" and {len(ledger)}".encode(), END)


@pytest.fixture(scope="module")
def site(serve_once: ServeOnce) -> Site:
    return serve_once(answer=onward)


def ask(site: Site, prompt: Any, **more: Any) -> httpx.Response:
    with httpx.Client(base_url=site.url, timeout=30) as http:
        return http.post("/v1/completions", json={"model": MODEL, "prompt": prompt, **more})


def told(answered: httpx.Response) -> tuple[str, dict[str, Any]]:
    """(text, the response that has the receipt) of a completion, whole or streamed."""
    assert answered.status_code == 200, answered.text
    if not answered.headers["content-type"].startswith("text/event-stream"):
        return answered.json()["choices"][0]["text"], answered.json()
    events = [line.removeprefix("data: ") for line in answered.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]), chunks[-1]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("as_ids", [False, True])
def test_ten_turns_that_resend_their_text_feed_only_what_is_new(site: Site, streams: bool, as_ids: bool) -> None:
    text = f"Once {streams} {as_ids}"
    sessions, added = set(), len(text)
    for turn in range(10):
        prompt: Any = list(text.encode()) if as_ids else text
        said, last = told(ask(site, prompt, stream=streams, max_tokens=40))
        receipt = last["keepwarm"]
        assert said == f" and {len(text)}"
        assert receipt["fed"] == added, turn
        assert receipt["miss_reason"] is None
        sessions.add(receipt["session_id"])
        more = f", then {turn}"
        # The last id that was sampled is not in the KV; it was the end, which the text goes on without.
        text, added = text + said + more, len(more)
    assert len(sessions) == 1


def test_another_text_is_another_conversation_and_the_same_one_is_answered_again(site: Site) -> None:
    first = told(ask(site, "The same text"))[1]["keepwarm"]
    again = told(ask(site, "The same text"))[1]["keepwarm"]
    assert (again["session_id"], again["fed"]) == (first["session_id"], 1)
    other = told(ask(site, "The same texture"))[1]["keepwarm"]
    assert other["session_id"] != first["session_id"]


def test_an_answer_that_was_cut_is_gone_on_with(site: Site) -> None:
    said, first = told(ask(site, "A cut text", max_tokens=3))
    assert (said, first["choices"][0]["finish_reason"]) == (" an", "length")
    _, after = told(ask(site, "A cut text an"))
    assert after["keepwarm"]["session_id"] == first["keepwarm"]["session_id"]
    assert after["keepwarm"]["fed"] == 1


def test_control_tokens_in_a_prompt_are_these_tokens(site: Site) -> None:
    assert told(ask(site, "a<end>b"))[0] == " and 3"


@pytest.mark.parametrize("prompt", [["one"], [[111, 110, 101]], [111, 110, 101]])
def test_a_list_with_one_prompt_is_that_prompt(site: Site, prompt: Any) -> None:
    assert told(ask(site, prompt))[0] == " and 3"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [5_000]}, "messages"),
        ({"prompt": ""}, "messages"),
        ({"prompt": 5}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"guided_regex": "no!"}, "guided_regex"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"model": "gpt-4o"}, "model"),
    ],
)
def test_what_cannot_be_honoured_is_named_and_nothing_is_kept(site: Site, body: dict[str, Any], named: str) -> None:
    before = len(site.manager.list_conversations("local"))
    refused = ask(site, **{"prompt": "Text", **body})
    assert 400 <= refused.status_code < 500
    assert refused.json()["error"]["param"].split(".")[0] == named, refused.text
    assert len(site.manager.list_conversations("local")) == before


def test_fields_reach_the_sampler(site: Site) -> None:
    fields = {"temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "seed": 4, "stop": ["zz"], "logprobs": 2}
    receipt = told(ask(site, "Fields", **fields, logit_bias={"5": 2}, user="u"))[1]["keepwarm"]
    assert receipt["ignored"] == ["user"]
    sampling = site.engine.last_sampling
    assert sampling is not None
    assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.top_logprobs) == (0.5, 5, 4, 2)
    assert (sampling.stop_strings, sampling.logit_bias) == (("zz",), ((5, 2.0),))


def test_shared_fields_have_the_bounds_of_a_chat_completion() -> None:
    """They are passed on without being validated again."""
    for name in SHARED:
        own, chat = (shape.model_fields[name] for shape in (TextCompletionRequest, ChatCompletionRequest))
        assert str(own.metadata) == str(chat.metadata), name


def test_usage_is_asked_for(site: Site) -> None:
    answered = ask(site, "Usage", stream=True, stream_options={"include_usage": True})
    assert told(answered)[1]["usage"]["prompt_tokens"] == len("Usage")
