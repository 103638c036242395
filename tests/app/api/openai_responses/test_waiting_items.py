"""Items that wait for a response, whatever else happens to their conversation meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.api.openai_responses.requests import ITEMS
from sessions import named_responses
from sessions.errors import ConversationNotFound, MessageRefused, StoreError
from sessions.named_responses import MOST_ADDED_BYTES
from sessions.store.tables.added_items import KINDS, AddedItem
from tests.app.api.conftest import ServeOnce
from tests.app.conftest import MODEL
from tests.app.site import Site
from tests.sessions.byte_template import ByteTemplate
from tests.sessions.session_harness import finish, until

OWNER = "local"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def site(serve_once: ServeOnce) -> Site:
    return serve_once()


@pytest.fixture(scope="module")
def tools_site(serve_once: ServeOnce) -> Site:
    return serve_once(template=ByteTemplate(takes_tools=True))


def post(site: Site, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{site.url}/v1/{path}", json=body, timeout=30)


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def begun(site: Site, *texts: str) -> str:
    made = post(site, "conversations", items=[said(text) for text in texts])
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def respond(site: Site, name: str, text: str) -> httpx.Response:
    return post(site, "responses", model=MODEL, input=text, conversation=name)


def items(site: Site, name: str) -> list[dict[str, Any]]:
    listed = httpx.get(f"{site.url}/v1/conversations/{name}/items", params={"order": "asc", "limit": 100}, timeout=30)
    return [*listed.json()["data"]]


def texts(site: Site, name: str) -> list[str]:
    return [item["content"][0]["text"] for item in items(site, name)]


def body_of(text: str) -> str:
    return json.dumps({"type": "message", "role": "assistant", "content": text}, ensure_ascii=False)


def own_id(name: str) -> str:
    return name.removeprefix("conv_")


def delete_first(site: Site, name: str) -> None:
    first = site.manager.responses.added_items(OWNER, own_id(name))[0]
    assert site.manager.responses.delete_added_item(OWNER, own_id(name), first.item_id)


def add_another(site: Site, name: str) -> None:
    assert post(site, f"conversations/{name}/items", items=[said("Meanwhile")]).status_code == 200


def answer_another(site: Site, name: str) -> None:
    assert respond(site, name, "Meanwhile").status_code == 200


@pytest.mark.parametrize(
    ("before", "meanwhile", "sentence", "after"),
    [
        (["One", "Two"], delete_first, "added or deleted", ["Two", "Asked"]),
        (["One"], add_another, "added or deleted", ["One", "Meanwhile", "Asked"]),
        (["One"], answer_another, "went on with this conversation", ["One", "Meanwhile", None, "Asked"]),
        ([], answer_another, "went on with this conversation", ["Meanwhile", None, "Asked"]),
    ],
    ids=["deleted", "added", "answered", "answered first"],
)
def test_a_response_follows_what_its_conversation_has_or_nothing(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    before: list[str],
    meanwhile: Callable[[Site, str], None],
    sentence: str,
    after: list[str | None],
) -> None:
    """`meanwhile` comes between the reading of the history and the beginning of the answer."""
    name, begin = begun(site, *before), site.manager.completions.begin

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(site.manager.completions, "begin", begin)
        meanwhile(site, name)
        return begin(*arguments)

    monkeypatch.setattr(site.manager.completions, "begin", late)
    refused = respond(site, name, "Asked")
    assert (refused.status_code, sentence in refused.text) == (409, True), refused.text
    assert len(texts(site, name)) == len(after) - 1
    assert respond(site, name, "Asked").status_code == 200
    found = texts(site, name)
    assert len(found) == len(after) + 1
    assert all(text in (None, one) for text, one in zip(after, found[:-1], strict=True))


def answered(site: Site) -> tuple[str, int]:
    """A conversation of the page with an item that waits, and its last question."""
    one = site.manager.create_conversation(
        OWNER, taken=[c.conversation_id for c in site.manager.list_conversations(OWNER)]
    )
    finish(site.manager.send(OWNER, one.conversation_id, "Hello"))
    until(lambda: not site.manager.runs.is_busy(one.conversation_id))
    add_another(site, f"conv_{one.conversation_id}")
    return one.conversation_id, site.manager.view(OWNER, one.conversation_id).messages[0].message_id


@pytest.mark.parametrize(
    "change",
    [
        lambda manager, one, asked: manager.send(OWNER, one, "More"),
        lambda manager, one, asked: manager.edit(OWNER, one, asked, "More"),
        lambda manager, one, asked: manager.regenerate(OWNER, one),
        lambda manager, one, asked: manager.continue_answer(OWNER, one),
        lambda manager, one, asked: manager.switch_sibling(OWNER, one, asked, 1),
    ],
    ids=["send", "edit", "regenerate", "continue", "switch"],
)
def test_nothing_comes_in_front_of_them(site: Site, change: Callable[[Any, str, int], Any]) -> None:
    one, asked = answered(site)
    with pytest.raises(MessageRefused, match="no answer yet"):
        change(site.manager, one, asked)
    assert len(items(site, f"conv_{one}")) == 3


@pytest.mark.parametrize("fields", [{}, {"prompt_cache_key": "of waiting items"}])
def test_a_chat_completion_with_the_same_history_goes_elsewhere(site: Site, fields: dict[str, str]) -> None:
    asked = [{"role": "user", "content": f"Same history {fields}"}]
    first = post(site, "chat/completions", model=MODEL, messages=asked, **fields).json()
    one = first["keepwarm"]["session_id"]
    add_another(site, f"conv_{one}")
    history = [*asked, first["choices"][0]["message"], {"role": "user", "content": "And?"}]
    second = post(site, "chat/completions", model=MODEL, messages=history, **fields)
    assert second.status_code == 200, second.text
    assert second.json()["keepwarm"]["session_id"] != one
    assert texts(site, f"conv_{one}")[-1] == "Meanwhile"


def test_a_conversation_with_them_is_not_empty_and_is_used(site: Site) -> None:
    one = site.manager.create_conversation(OWNER).conversation_id
    before = site.store.conversation(OWNER, one).updated_at
    add_another(site, f"conv_{one}")
    assert site.store.conversation(OWNER, one).updated_at > before
    assert site.manager.create_conversation(OWNER).conversation_id != one
    other = begun(site)
    assert site.manager.list_conversations(OWNER)[0].conversation_id == own_id(other)
    add_another(site, f"conv_{one}")
    assert site.manager.list_conversations(OWNER)[0].conversation_id == one


def test_their_bytes_are_bounded(site: Site) -> None:
    one, responses = own_id(begun(site)), site.manager.responses
    half = "ü" * (MOST_ADDED_BYTES // 4)
    responses.add_items(OWNER, one, [AddedItem("msg_half", body_of(half))])
    with pytest.raises(MessageRefused, match=r"2 items \(8.0 MiB\) without an answer"):
        responses.add_items(OWNER, one, [AddedItem("msg_other", body_of(f"{half}a"))])
    assert [item.item_id for item in responses.added_items(OWNER, one)] == ["msg_half"]


def test_none_is_added_to_a_conversation_that_is_deleted_meanwhile(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    name, claim = begun(site), site.manager.runs.claim

    def late(conversation_id: str) -> Any:
        monkeypatch.setattr(site.manager.runs, "claim", claim)
        site.manager.delete(OWNER, conversation_id)
        return claim(conversation_id)

    monkeypatch.setattr(site.manager.runs, "claim", late)
    with pytest.raises(ConversationNotFound):
        site.manager.responses.add_items(OWNER, own_id(name), [AddedItem("msg_late", "{}")])


LONE = "a\ud800b"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ({"role": "user", "content": LONE}, [{"type": "input_text", "text": "a\ufffdb"}]),
        (
            {"role": "user", "content": [{"type": "input_text", "text": LONE}]},
            [{"type": "input_text", "text": "a\ufffdb"}],
        ),
    ],
)
def test_what_cannot_be_stored_is_replaced(site: Site, sent: dict[str, Any], kept: Any) -> None:
    body = json.dumps({"items": [sent], "metadata": {"topic": LONE}})
    made = httpx.post(f"{site.url}/v1/conversations", content=body, headers=JSON, timeout=30)
    assert (made.status_code, made.json().get("metadata")) == (200, {"topic": "a\ufffdb"}), made.text
    assert [item["content"] for item in items(site, made.json()["id"])] == [kept]
    added = httpx.post(
        f"{site.url}/v1/conversations/{made.json()['id']}/items", content=json.dumps({"items": [sent]}), headers=JSON
    )
    assert added.json()["data"][0]["content"] == kept
    assert respond(site, made.json()["id"], "Read").status_code == 200


def test_a_conversation_whose_items_cannot_be_stored_does_not_begin(site: Site) -> None:
    same = AddedItem("msg_same", body_of("Same"))
    before = {one.conversation_id for one in site.manager.list_conversations(OWNER)}
    with pytest.raises(StoreError):
        site.manager.responses.new_conversation(OWNER, "", [same, same])
    assert {one.conversation_id for one in site.manager.list_conversations(OWNER)} == before


PICTURE = {"type": "input_image", "image_url": "data:image/png;base64,aGk="}


@pytest.mark.parametrize(
    ("item", "param", "sentence"),
    [
        (said("word " * 200_000), "items", "An item has at least"),
        ({"type": "item_reference", "id": "msg_none"}, "items.0.id", "items.0: This item is not kept here"),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "items.0.arguments", "arguments is missing"),
    ],
)
def test_what_can_never_be_read_is_refused_at_once(site: Site, item: Any, param: str | None, sentence: str) -> None:
    name = begun(site)
    for path in ("conversations", f"conversations/{name}/items"):
        refused = post(site, path, items=[item])
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text
        assert sentence in refused.text
    assert items(site, name) == []


def test_too_many_are_refused_by_the_name_of_their_field(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_responses, "MOST_ADDED_ITEMS", 2)
    name = begun(site, "One", "Two")
    refused = post(site, f"conversations/{name}/items", items=[said("Three")])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "items")
    assert "would have 3 items" in refused.text


def test_a_picture_is_named_where_it_is(site: Site) -> None:
    output = {"type": "function_call_output", "call_id": "c", "output": [PICTURE]}
    refused = post(site, "responses", model=MODEL, input=[said("a"), output])
    assert refused.json()["error"]["param"] == "input.1.output.0"
    name = begun(site)
    post(site, f"conversations/{name}/items", items=[{**said("a"), "content": [PICTURE]}])
    refused = post(site, "responses", model=MODEL, input=[], conversation=name)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "conversation")
    assert respond(site, name, "Never mind").status_code == 200


@pytest.mark.parametrize("path", ["responses", "chat/completions", "messages"])
def test_a_picture_beside_a_results_text_is_named(path: str, tools_site: Site) -> None:
    """The program that ran the tool would only send it again, and the model knows that there was one."""
    text, call = "Shot of the page:", {"name": "shot", "arguments": "{}"}
    kind = {"chat/completions": "image_url", "messages": "image"}.get(path, "input_image")
    asked: list[Any] = [{"role": "user", "content": "Look"}]
    if path == "responses":
        parts = [{"type": "input_text", "text": text}, PICTURE]
        asked += [{"type": "function_call", "call_id": "c", **call}]
        body = {"input": [*asked, {"type": "function_call_output", "call_id": "c", "output": parts}]}
    elif path == "messages":
        source = {"type": "base64", "media_type": "image/png", "data": "aGk="}
        parts = [{"type": "text", "text": text}, {"type": "image", "source": source}]
        asked += [{"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "shot", "input": {}}]}]
        result = {"type": "tool_result", "tool_use_id": "c", "content": parts}
        body = {"messages": [*asked, {"role": "user", "content": [result]}], "max_tokens": 50}
    else:
        parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "data:,"}}]
        calls = [{"id": "c", "type": "function", "function": call}]
        asked += [{"role": "assistant", "content": None, "tool_calls": calls}]
        body = {"messages": [*asked, {"role": "tool", "tool_call_id": "c", "content": parts}]}
    answered = post(tools_site, path, model=MODEL, **body)
    assert answered.status_code == 200, answered.text
    assert any(kind in name or "image" in name for name in answered.json()["keepwarm"]["ignored"])
    shown = tools_site.manager.view(OWNER, answered.json()["keepwarm"]["session_id"]).messages[2].text
    assert shown == f"{text}\n[picture: this model cannot read it]"


def test_arguments_may_be_an_object(site: Site) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": {"a": 1}}
    history = [said("Call it"), call, {"type": "function_call_output", "call_id": "call_1", "output": "Done"}]
    assert post(site, "responses", model=MODEL, input=history).status_code == 200
    added = post(site, f"conversations/{begun(site)}/items", items=history)
    assert added.json()["data"][1]["arguments"] == '{"a": 1}'


def test_an_answer_is_stored_with_its_name_or_not_at_all(site: Site) -> None:
    """The row of its name holds what the items said as the system, which is nowhere else."""
    name = begun(site)
    first = {"type": "message", "role": "developer", "content": "Be brief."}
    post(site, f"conversations/{name}/items", items=[first, said("Waits")])
    forbid = "CREATE TRIGGER forbid BEFORE INSERT ON responses BEGIN SELECT RAISE(ABORT, 'The disk is full'); END"
    with site.store.database.write() as db:
        db.execute(forbid)
    try:
        assert respond(site, name, "Asked").status_code == 503
    finally:
        with site.store.database.write() as db:
            db.execute("DROP TRIGGER forbid")
    assert texts(site, name) == ["Be brief.", "Waits"]
    assert respond(site, name, "Asked").status_code == 200
    assert texts(site, name)[:3] == ["Be brief.", "Waits", "Asked"]


def test_an_import_knows_every_kind_of_item() -> None:
    assert set(KINDS) == set(ITEMS)


@pytest.mark.parametrize("field", ["instructions", "metadata", "input"])
def test_half_a_character_is_replaced_wherever_it_stands(site: Site, field: str) -> None:
    """Half of a pair cannot be stored or sent."""
    half = {"instructions": "a\ud800", "metadata": {"note": "a\ud800"}, "input": "hi\ud800"}[field]
    body = {"model": MODEL, "input": "hi", "prompt_cache_key": f"half {field}", field: half}
    for store in (True, False):
        answered = httpx.post(
            f"{site.url}/v1/responses", content=json.dumps(body | {"store": store}).encode(), headers=JSON, timeout=30
        )
        assert answered.status_code == 200, answered.text
        assert answered.json()["status"] == "completed"


def test_what_a_person_sets_while_a_turn_begins_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    name = begun(site, "first")
    assert respond(site, name, "second").status_code == 200
    manager, one = site.manager, own_id(name)
    begin_turn = site.store.messages.begin_turn

    def late(*given: Any, **more: Any) -> Any:
        monkeypatch.undo()
        before = manager.view(OWNER, one).settings
        manager.update_settings(OWNER, one, replace(before, sampling=replace(before.sampling, temperature=1.5)))
        return begin_turn(*given, **more)

    monkeypatch.setattr(type(site.store.messages), "begin_turn", lambda _, *given, **more: late(*given, **more))
    answered = post(site, "responses", model=MODEL, input="third", conversation=name, instructions="In verse.")
    assert answered.status_code == 200, answered.text
    settings = manager.view(OWNER, one).settings
    assert settings.sampling.temperature == 1.5
    assert "In verse." in settings.system_prompt


def test_what_was_added_stays_when_the_responses_are_deleted(site: Site) -> None:
    name = str(post(site, "conversations", items=[{**said("KEEP ME"), "role": "developer"}]).json()["id"])
    for text in ("one", "two"):
        answered = post(site, "responses", model=MODEL, input=text, conversation=name, instructions=f"I {text}")
        assert answered.status_code == 200, answered.text
        address = f"{site.url}/v1/responses/{answered.json()['id']}"
        assert httpx.delete(address, timeout=30).status_code == 200
        assert httpx.get(address, timeout=30).status_code == 404
    assert respond(site, name, "three").status_code == 200
    assert "KEEP ME" in texts(site, name)
    assert "KEEP ME" in site.manager.view(OWNER, own_id(name)).settings.system_prompt


@pytest.mark.parametrize(
    ("query", "param", "sentence"),
    [
        ("limit=0", "limit", "limit must be at least 1."),
        ("limit=101", "limit", "limit must be at most 100."),
        ("limit=many", "limit", "limit must be a whole number."),
        ("order=up", "order", "order must be 'asc' or 'desc'."),
        (f"after={'a' * 201}", "after", "after has more than 200 characters."),
    ],
)
def test_a_query_is_refused_in_a_sentence(site: Site, query: str, param: str, sentence: str) -> None:
    refused = httpx.get(f"{site.url}/v1/conversations/{begun(site)}/items?{query}", timeout=30)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["message"]) == (400, param, sentence)


def test_a_text_that_is_too_long_has_too_many_characters(site: Site) -> None:
    refused = post(site, "conversations", metadata={"a": "b" * 513})
    assert (refused.status_code, "512 characters" in refused.text) == (400, True), refused.text


def test_what_no_response_can_follow_is_refused_by_the_name_of_its_field(site: Site) -> None:
    for unanswerable in ([{**said("a"), "role": "developer"}], "word " * 200_000):
        refused = post(site, "responses", model=MODEL, input=unanswerable)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input"), refused.text
