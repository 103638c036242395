"""What is kept of a response: what was said before it, its items by their names, and its end when it is cancelled."""

from __future__ import annotations

import itertools
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app.http.connection_limits import Limits
from tests.app.api.conftest import ServeOnce
from tests.app.api.openai_responses.test_responses import TOOL, post, text_of, told
from tests.app.api.tool_loop import LAST, NAME, TURNS, fed_in_turn, worker
from tests.app.conftest import MODEL, Serve, user
from tests.app.site import Site, echo
from tests.polling import until
from tests.sessions.byte_template import TOOLS, ByteTemplate


@pytest.fixture(scope="module")
def site(serve_once: ServeOnce) -> Site:
    def answer(ledger: tuple[int, ...]) -> Any:
        return worker(ledger) if TOOLS in ledger else echo(ledger)

    return serve_once(template=ByteTemplate(takes_tools=True, has_thoughts=True), answer=answer)


def summary_of(item: dict[str, Any]) -> tuple[str, str | None, str]:
    said = item.get("output") or item.get("arguments") or item["content"][0]["text"]
    return item["type"], item.get("role"), said


def test_any_number_of_calls_of_another_server_keep_their_ids(site: Site) -> None:
    names = [f"call_{n}" for n in range(7)]
    calls = [{"type": "function_call", "call_id": name, "name": NAME, "arguments": "{}"} for name in names]
    results = [{"type": "function_call_output", "call_id": name, "output": "Found"} for name in reversed(names)]
    made = told(post(site, input=[user("Seven"), *calls, *results], tools=[TOOL]))
    with httpx.Client(base_url=site.url, timeout=30) as http:
        params: dict[str, Any] = {"order": "asc", "limit": 100}
        listed = http.get(f"/v1/responses/{made['id']}/input_items", params=params).json()["data"]
    assert [item["call_id"] for item in listed if item["type"] == "function_call"] == names
    call = made["output"][-1]
    added = [{"type": "function_call_output", "call_id": call["call_id"], "output": "Found"}]
    receipt = told(post(site, input=added, tools=[TOOL], previous_response_id=made["id"], instructions=""))["keepwarm"]
    assert (receipt["miss_reason"], receipt["fed"]) == (None, fed_in_turn("Found"))


@pytest.mark.parametrize("way", ["previous", "conversation"])
def test_calls_with_the_ids_of_another_server_are_known_again(site: Site, way: str) -> None:
    """A history is moved here in the middle of a tool loop, and its instructions change: the ids of its calls stay."""
    calls = [
        {"type": "function_call", "call_id": f"call_{n}", "name": NAME, "arguments": json.dumps({"b": n, "a": 1})}
        for n in range(2)
    ]
    results = [{"type": "function_call_output", "call_id": f"call_{n}", "output": f"Found {n}"} for n in (1, 0)]
    named = {"conversation": post(site, "/v1/conversations").json()["id"]} if way == "conversation" else {}
    items: list[Any] = [user(f"Moved {way}"), *calls, *results]
    more: dict[str, Any] = {**named, "input": items, "instructions": "One."}
    for turn in range(5):
        response = told(post(site, tools=[TOOL], **more))
        receipt = response["keepwarm"]
        if turn > 1:
            assert (receipt["miss_reason"], receipt["fed"]) == (None, fed_in_turn("Found"))
        call = response["output"][-1]
        added = [{"type": "function_call_output", "call_id": call["call_id"], "output": "Found"}]
        named = named or {"previous_response_id": response["id"]}
        if way == "previous":
            named = {"previous_response_id": response["id"]}
        more = {**named, "input": added, "instructions": "Two."}
    with httpx.Client(base_url=site.url, timeout=30) as http:
        listed = http.get(f"/v1/responses/{response['id']}/input_items", params={"order": "asc", "limit": 100}).json()[
            "data"
        ]
    asked = [item["call_id"] for item in listed if item["type"] == "function_call"]
    answered = [item["call_id"] for item in listed if item["type"] == "function_call_output"]
    assert (asked[:2], answered[:2]) == (["call_0", "call_1"], ["call_1", "call_0"])
    assert asked[2:] == answered[2:]


def test_a_running_response_is_cancelled_and_an_ended_one_stays(serve: Serve) -> None:
    site = serve(headless=True, token_delay_s=0.02)
    with httpx.Client(base_url=site.url, timeout=30) as http:
        body = {"model": MODEL, "input": "long", "stream": True}
        with http.stream("POST", "/v1/responses", json=body) as streamed:
            lines = streamed.iter_lines()
            first = json.loads(next(line for line in lines if line.startswith("data: "))[6:])
            path = f"/v1/responses/{first['response']['id']}"
            until(lambda: site.manager.open_answers()[0] == 1)
            cancelled = http.post(f"{path}/cancel")
            assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
            last = json.loads([line for line in lines if line.startswith("data: ")][-1][6:])
        assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")
        assert http.post(f"{path}/cancel").json() == http.get(path).json() == cancelled.json()
        done = told(post(site, input="Hi"))
        kept = http.post(f"/v1/responses/{done['id']}/cancel").json()
        assert (kept["status"], kept["output"]) == ("completed", done["output"])
        assert http.post("/v1/responses/resp_none/cancel").status_code == 404


def test_cancels_that_wait_hold_no_thread(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = 3
    monkeypatch.setattr("app.server.uvicorn_server.own_limits", lambda: Limits(threads=threads))
    site = serve(headless=True, token_delay_s=0.02)
    stop, asked = site.manager.stop_run, []
    monkeypatch.setattr(site.manager, "stop_run", asked.append)  # an engine in the middle of a long step
    body = {"model": MODEL, "input": "long", "stream": True}
    with (
        httpx.Client(base_url=site.url, timeout=30) as http,
        ThreadPoolExecutor() as pool,
        http.stream("POST", "/v1/responses", json=body) as streamed,
    ):
        lines = streamed.iter_lines()
        first = json.loads(next(line for line in lines if line.startswith("data: "))[6:])
        path = f"{site.url}/v1/responses/{first['response']['id']}"
        until(lambda: site.manager.open_answers()[0] == 1)
        cancels = [pool.submit(httpx.post, f"{path}/cancel", timeout=30) for _ in range(threads + 2)]
        until(lambda: len(asked) == threads + 2)
        assert http.get(path).json()["status"] == "in_progress"
        assert not any(one.done() for one in cancels)
        stop(asked[0])
        assert {one.result().json()["status"] for one in cancels} == {"cancelled"}


def test_the_items_of_an_input_are_listed_in_pages(site: Site) -> None:
    developer = {"role": "developer", "content": "Be careful here."}
    first = told(post(site, input=[developer, user("Do it.")], tools=[TOOL]))
    call = next(item for item in first["output"] if item["type"] == "function_call")
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Found"}
    then = told(post(site, input=[result], tools=[TOOL], previous_response_id=first["id"], instructions="Not listed."))
    with httpx.Client(base_url=site.url, timeout=30) as http:
        path = f"/v1/responses/{then['id']}/input_items"
        whole = http.get(path, params={"order": "asc", "limit": 100}).json()
        assert [summary_of(item) for item in whole["data"]] == [
            ("message", "developer", "Be careful here."),
            ("message", "user", "Do it."),
            *map(summary_of, first["output"]),
            ("function_call_output", None, "Found"),
        ]
        assert whole["data"][-1]["call_id"] == call["call_id"]
        ids = [item["id"] for item in whole["data"]]
        assert len(set(ids)) == len(ids)
        assert (whole["first_id"], whole["last_id"], whole["has_more"]) == (ids[0], ids[-1], False)
        paged, after = [], {}
        while True:
            page = http.get(path, params={"limit": 2, **after}).json()
            paged += [item["id"] for item in page["data"]]
            if not page["has_more"]:
                break
            after = {"after": page["last_id"]}
        assert paged == ids[::-1]
        items = [*whole["data"], *then["output"], user("And?")]
        resent = told(post(site, input=items, tools=[TOOL], instructions="Not listed."))
        assert resent["keepwarm"]["session_id"] == then["keepwarm"]["session_id"]
        assert resent["keepwarm"]["miss_reason"] is None
        include = {"include[]": ["reasoning.encrypted_content", "file_search_call.results"]}
        assert http.get(path, params={"order": "asc", "limit": 100, **include}).json() == whole
        assert http.get(f"/v1/responses/{then['id']}", params=include).json()["output"] == then["output"]
        for address in (path, f"/v1/responses/{then['id']}"):
            refused = http.get(address, params={"include": "message.output_text.logprobs"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "include")
        assert http.get(path, params={"after": "msg_none"}).status_code == 400
        assert http.get(path, params={"limit": 0}).status_code == 400
        assert http.get("/v1/responses/resp_none/input_items").status_code == 404


def test_the_items_of_a_conversation_are_listed(site: Site) -> None:
    with httpx.Client(base_url=site.url, timeout=30) as http:
        name = http.post("/v1/conversations", json={}).json()["id"]
        path = f"/v1/conversations/{name}/items"
        assert http.get(path).json() == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }
        developer = {"role": "developer", "content": "Stay."}
        made = told(post(site, input=[developer, user("Hi")], conversation=name))
        told(post(site, input="And?", conversation=name))
        listed = http.get(path, params={"order": "asc"}).json()["data"]
        assert [(item["role"], item["content"][0]["text"]) for item in listed] == [
            ("developer", "Stay."),
            ("user", "Hi"),
            ("assistant", text_of(made)),
            ("user", "And?"),
            ("assistant", "You said: And?"),
        ]
        assert http.get(path, params={"limit": 1}).json()["data"] == listed[-1:]
        assert http.get("/v1/conversations/conv_none/items").status_code == 404


@pytest.mark.parametrize("streams", [False, True])
def test_a_history_whose_answers_are_only_named_is_warm(site: Site, streams: bool) -> None:
    """The AI SDK sends the ids of an answer's items instead of the items."""
    items: list[Any] = [{"role": "user", "content": f"Do it by name {streams}."}]
    result, sessions = "", set()
    for turn in range(TURNS):
        response = told(post(site, input=items, tools=[TOOL], stream=streams))
        receipt = response["keepwarm"]
        assert receipt["fed"] == (fed_in_turn(result) if turn else receipt["fed"]), turn
        assert receipt["miss_reason"] is None
        sessions.add(receipt["session_id"])
        if turn == TURNS - 1:
            break
        result = f"Found {turn}"
        items += [{"type": "item_reference", "id": item["id"]} for item in response["output"]]
        items.append({"type": "function_call_output", "call_id": response["output"][-1]["call_id"], "output": result})
    assert (text_of(response), len(sessions)) == (LAST, 1)


def test_naming_every_answer_loads_each_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = 0
    for name in ("path", "last_nodes"):
        load = getattr(site.store.messages, name)

        def counted(leaf_id: int | None, load: Any = load) -> Any:
            nonlocal loaded
            found = load(leaf_id)
            loaded += len(found)
            return found

        monkeypatch.setattr(site.store.messages, name, counted)
    items, counts = [], []
    for turn in range(8):
        items.append(user(f"Linear {turn}"))
        loaded = 0
        response = told(post(site, input=items))
        counts.append(loaded)
        items += [{"type": "item_reference", "id": item["id"]} for item in response["output"]]
    added = [later - before for before, later in itertools.pairwise(counts)]
    assert len(set(added[1:])) == 1, counts  # as much for each turn more


def test_an_item_is_named_by_its_owner_alone(serve: Serve) -> None:
    site = serve(headless=True)
    keys = [site.store.keys.add(name)[1] for name in ("one", "two")]
    with httpx.Client(base_url=site.url, timeout=30) as http:

        def ask(key: str, items: Any, **more: Any) -> httpx.Response:
            body = {"model": MODEL, "input": items, **more}
            return http.post("/v1/responses", json=body, headers={"Authorization": f"Bearer {key}"})

        made, unkept = ask(keys[0], "Mine").json(), ask(keys[0], "Not kept", store=False).json()
        named = [user("Mine"), {"type": "item_reference", "id": made["output"][0]["id"]}, user("And?")]
        assert ask(keys[0], named).json()["keepwarm"]["session_id"] == made["keepwarm"]["session_id"]
        refused = ask(keys[1], named)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input.1.id")
        named[1] = {"type": "item_reference", "id": unkept["output"][0]["id"]}
        assert ask(keys[0], named).status_code == 400


def test_what_a_request_began_an_answer_with_is_an_item_of_its_input(site: Site) -> None:
    begun = {"role": "assistant", "content": "You said"}
    made = told(post(site, input=[user("Go on"), begun]))
    with httpx.Client(base_url=site.url, timeout=30) as http:
        listed = http.get(f"/v1/responses/{made['id']}/input_items").json()["data"]
    assert [(item["role"], item["content"][0]["text"]) for item in listed] == [
        ("assistant", "You said"),
        ("user", "Go on"),
    ]


def test_an_answer_that_could_not_be_stored_yet_is_told_as_it_ended(serve: Serve) -> None:
    """Another program has the database locked, like a full disk would; its client has the answer already."""
    site = serve(answer=echo, token_delay_s=0.01)
    named = post(site, "/v1/conversations").json()["id"]
    with (
        sqlite3.connect(site.store.database.path, isolation_level=None) as other,
        httpx.Client(base_url=site.url, timeout=60) as http,
        http.stream(
            "POST",
            "/v1/responses",
            json={"model": MODEL, "input": "Hello " * 40, "conversation": named, "stream": True},
        ) as stream,
    ):
        lines = stream.iter_lines()
        next(line for line in lines if "output_text.delta" in line)
        other.execute("BEGIN EXCLUSIVE")
        last = json.loads([line for line in lines if line.startswith("data: {")][-1][6:])["response"]
        assert last["keepwarm"]["stored"] is False
        kept = http.get(f"/v1/responses/{last['id']}").json()
        assert (kept["status"], text_of(kept)) == (last["status"], text_of(last))
        items = http.get(f"/v1/conversations/{named}/items", params={"order": "asc"}).json()["data"]
        assert items[-1]["content"][0]["text"] == text_of(last)
        other.execute("ROLLBACK")
        until(lambda: site.manager.storage.can_store)
        assert text_of(http.get(f"/v1/responses/{last['id']}").json()) == text_of(last)
