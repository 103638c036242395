"""Conversations that clients name and add to without an answer, through OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from sessions.errors import MessageRefused
from tests.app.api.conftest import ServeOnce
from tests.app.api.openai_responses.test_responses import TOOL
from tests.app.api.tool_loop import NAME, worker
from tests.app.conftest import MODEL, Serve
from tests.app.site import Site, echo
from tests.sessions.byte_template import TOOLS, ByteTemplate


@pytest.fixture(scope="module")
def site(serve_once: ServeOnce) -> Site:
    def answer(ledger: tuple[int, ...]) -> Any:
        return worker(ledger) if TOOLS in ledger else echo(ledger)

    return serve_once(template=ByteTemplate(takes_tools=True, has_thoughts=True), answer=answer)


def client_of(site: Site) -> OpenAI:
    return OpenAI(base_url=f"{site.url}/v1", api_key="unused", max_retries=0)


@pytest.fixture
def client(site: Site) -> Iterator[OpenAI]:
    with client_of(site) as made:
        yield made


def said_by(role: str, text: str) -> Any:
    return {"type": "message", "role": role, "content": text}


def texts(client: OpenAI, conversation_id: str) -> list[str]:
    """In pages, so that several are asked for."""
    found = client.conversations.items.list(conversation_id, order="asc", limit=2)
    return [getattr(item, "output", None) or item.content[0].text for item in found]  # type: ignore[union-attr]


def test_items_without_an_answer_are_what_a_later_response_follows(client: OpenAI) -> None:
    first = [said_by("developer", "Be brief."), said_by("user", "Added one")]
    named = client.conversations.create(items=first, metadata={"topic": "items"})
    added = client.conversations.items.create(named.id, items=[said_by("assistant", "Two"), said_by("user", "Three")])
    assert [item.content[0].type for item in added.data] == ["output_text", "input_text"]  # type: ignore[union-attr]
    assert texts(client, named.id) == ["Be brief.", "Added one", "Two", "Three"]
    assert client.conversations.items.retrieve(added.last_id, conversation_id=named.id) == added.data[1]
    sent = [*first, said_by("assistant", "Two"), said_by("user", "Three"), said_by("user", "Four")]
    alone = client.responses.create(model=MODEL, input=sent)
    answer = client.responses.create(model=MODEL, input="Four", conversation=named.id)
    assert answer.output_text == alone.output_text
    assert texts(client, named.id) == ["Be brief.", "Added one", "Two", "Three", "Four", answer.output_text]
    receipt = client.responses.create(model=MODEL, input="Five", conversation=named.id).model_extra["keepwarm"]  # type: ignore[index]
    assert (receipt["miss_reason"], receipt["reused"] > 0) == (None, True)
    assert receipt["session_id"] == named.id.removeprefix("conv_")


def test_items_that_are_resent_stay_warm_and_land_in_no_other_conversation(client: OpenAI) -> None:
    """A client that keeps its history as items of a conversation, and sends the whole of it with each request."""
    named = client.conversations.create(items=[])
    for turn in range(4):
        asked = said_by("user", f"Resent {turn}")
        history = [
            item.model_dump(exclude_unset=True) for item in client.conversations.items.list(named.id, order="asc")
        ]
        answer = client.responses.create(model=MODEL, input=[*history, asked])  # type: ignore[list-item]
        receipt: dict[str, Any] = (answer.model_extra or {})["keepwarm"]
        assert receipt["miss_reason"] is None
        assert receipt["session_id"] != named.id.removeprefix("conv_")
        assert turn == 0 or receipt["fed"] < len(f"Resent {turn}") + 8
        output: list[Any] = [item.model_dump(exclude={"id"}) for item in answer.output]
        client.conversations.items.create(named.id, items=[asked, *output])
    popped = next(iter(client.conversations.items.list(named.id, order="desc")))
    assert client.conversations.items.delete(popped.id or "", conversation_id=named.id).id == named.id
    assert len(texts(client, named.id)) == 7
    assert client.conversations.delete(named.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.create(named.id, items=[asked])


def test_calls_and_their_results_are_added_and_followed(client: OpenAI) -> None:
    items: list[Any] = [
        said_by("user", "Look it up"),
        {"type": "reasoning", "id": "rs_other", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {"type": "function_call", "call_id": "call_7", "name": NAME, "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_7", "output": "Found"},
    ]
    named = client.conversations.create(items=items)
    listed = list(client.conversations.items.list(named.id, order="asc"))
    assert [(item.type, (item.id or "")[:3]) for item in listed] == [
        *(("message", "msg"), ("reasoning", "rs_")),
        *(("function_call", "fc_"), ("function_call_output", "fco")),
    ]
    tools: Any = [TOOL]
    answer = client.responses.create(model=MODEL, input=[], conversation=named.id, tools=tools)
    assert answer.status == "completed"
    after = list(client.conversations.items.list(named.id, order="asc"))
    assert [item.call_id for item in after if item.type == "function_call_output"] == ["call_7"]


def test_metadata_is_kept(client: OpenAI) -> None:
    named = client.conversations.create(metadata={"topic": "one"})
    assert (named.metadata, client.conversations.retrieve(named.id).metadata) == ({"topic": "one"}, {"topic": "one"})
    assert client.conversations.update(named.id, metadata={"topic": "two", "who": "ü"}).metadata == {
        "topic": "two",
        "who": "ü",
    }
    assert client.conversations.retrieve(named.id).metadata == {"topic": "two", "who": "ü"}
    assert client.conversations.update(named.id, metadata=None).metadata == {}
    assert client.conversations.retrieve(named.id).created_at == named.created_at


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([{"type": "web_search_call", "id": "ws_1"}], "items.0: Items of type 'web_search_call' are not supported"),
        ([said_by("user", "a"), {"type": "message", "role": "user"}], "items.1: content is missing."),
        ([said_by("user", "a")] * 21, "items has more than 20 entries"),
        ([{**said_by("user", "a"), "mood": "good"}], "items.0.mood is not supported"),
    ],
)
def test_what_no_response_could_follow_is_refused(client: OpenAI, items: list[Any], sentence: str) -> None:
    named = client.conversations.create()
    with pytest.raises(openai.BadRequestError, match=sentence):
        client.conversations.items.create(named.id, items=items)
    with pytest.raises(openai.BadRequestError, match=sentence):
        client.conversations.create(items=items)
    assert texts(client, named.id) == []


def test_what_was_answered_is_kept_whole(client: OpenAI) -> None:
    named = client.conversations.create()
    client.responses.create(model=MODEL, input="Answered", conversation=named.id)
    for item in client.conversations.items.list(named.id):
        assert client.conversations.items.retrieve(item.id or "", conversation_id=named.id) == item
        with pytest.raises(openai.BadRequestError, match="A response followed this item"):
            client.conversations.items.delete(item.id or "", conversation_id=named.id)
    with pytest.raises(openai.NotFoundError, match="not in the conversation"):
        client.conversations.items.delete("msg_none", conversation_id=named.id)


def test_the_page_does_not_go_on_as_if_nothing_had_been_added(client: OpenAI, site: Site) -> None:
    named = client.conversations.create(items=[said_by("user", "Added for the page")])
    with pytest.raises(MessageRefused, match="no answer yet"):
        site.manager.send("local", named.id.removeprefix("conv_"), "Hello")


def test_items_are_not_added_while_an_answer_is_written_and_outlive_a_restart(serve: Serve) -> None:
    site = serve(headless=True, token_delay_s=0.02)
    with client_of(site) as client:
        named = client.conversations.create(items=[said_by("user", "Kept")])
        other = client.conversations.create(items=[said_by("user", "Begun")])
        with client.responses.create(model=MODEL, input="long", conversation=other.id, stream=True) as streamed:
            next(iter(streamed))
            with pytest.raises(openai.ConflictError):
                client.conversations.items.create(other.id, items=[said_by("user", "More")])
    site.close()
    with client_of(serve(headless=True)) as client:
        assert texts(client, named.id) == ["Kept"]
        answer = client.responses.create(model=MODEL, input=[], conversation=named.id)
        assert texts(client, named.id) == ["Kept", answer.output_text]
