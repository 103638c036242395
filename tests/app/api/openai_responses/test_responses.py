"""OpenAI's Responses API over HTTP: shapes as its clients send them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.app.api.conftest import ServeOnce
from tests.app.api.tool_loop import LAST, NAME, SCHEMA, TURNS, fed_in_turn, worker
from tests.app.conftest import MODEL, Serve, user
from tests.app.site import Site, echo
from tests.polling import until
from tests.sessions.byte_template import TOOLS, ByteTemplate

TOOL = {"type": "function", "name": NAME, "description": "Looks up.", "parameters": SCHEMA, "strict": False}


@pytest.fixture(scope="module")
def site(serve_once: ServeOnce) -> Site:
    def answer(ledger: tuple[int, ...]) -> Any:
        return worker(ledger) if TOOLS in ledger else echo(ledger)

    return serve_once(template=ByteTemplate(takes_tools=True, has_thoughts=True), answer=answer)


def post(site: Site, path: str = "/v1/responses", **body: Any) -> httpx.Response:
    with httpx.Client(base_url=site.url, timeout=30) as http:
        return http.post(path, json={"model": MODEL, **body} if path == "/v1/responses" else body)


def told(answered: httpx.Response) -> dict[str, Any]:
    """The response, checked against its own events where it is streamed."""
    assert answered.status_code == 200, answered.text
    if not answered.headers["content-type"].startswith("text/event-stream"):
        return dict(answered.json())
    events = [json.loads(piece.split("\ndata: ")[1]) for piece in answered.text.strip().split("\n\n")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]["response"]
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    assert [e["item"] for e in events if e["type"] == "response.output_item.done"] == last["output"]
    added = [(e["output_index"], e["item"]["id"]) for e in events if e["type"] == "response.output_item.added"]
    assert added == [(place, item["id"]) for place, item in enumerate(last["output"])]
    for item in last["output"]:
        deltas = [e["delta"] for e in events if e["type"].endswith(".delta") and e["item_id"] == item["id"]]
        assert "".join(deltas) == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
    return dict(last)


def text_of(response: dict[str, Any]) -> str:
    return "".join(item["content"][0]["text"] for item in response["output"] if item["type"] == "message")


def by_history(items: list[Any], response: dict[str, Any], added: list[Any]) -> dict[str, Any]:
    items += [*response["output"], *added]
    return {"input": items, "store": False, "include": ["reasoning.encrypted_content"]}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("way", ["history", "history with a key", "previous", "conversation"])
def test_a_tool_loop_of_ten_turns_feeds_only_what_is_new(site: Site, streams: bool, way: str) -> None:
    instructions = f"You work {streams} {way}."
    items: list[Any] = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be careful."}]},
        {"role": "user", "content": "Do it."},
    ]
    named: dict[str, Any] = {}
    if way == "conversation":
        named = {"conversation": post(site, "/v1/conversations", metadata={"a": "b"}).json()["id"]}
    if way == "history with a key":
        named = {"prompt_cache_key": f"work {streams}"}
    body: dict[str, Any] = {"input": list(items), **named}
    sessions, result = set(), ""
    for turn in range(TURNS):
        response = told(
            post(site, instructions=instructions, tools=[TOOL], stream=streams, parallel_tool_calls=False, **body)
        )
        receipt, usage = response["keepwarm"], response["usage"]
        assert usage["input_tokens"] - usage["input_tokens_details"]["cached_tokens"] == receipt["fed"]
        assert receipt["fed"] == (fed_in_turn(result) if turn else receipt["fed"]), turn
        assert receipt["miss_reason"] is None
        sessions.add(receipt["session_id"])
        if turn == TURNS - 1:
            break
        reasoning, said, call = response["output"]
        assert (reasoning["content"][0]["text"], said["content"][0]["text"]) == ("Hm.", f"Step {turn}.")
        assert (call["name"], json.loads(call["arguments"])) == (NAME, {"b": turn, "a": 1.0})
        result = f"Found {turn}"
        added = [{"type": "function_call_output", "call_id": call["call_id"], "output": result}]
        if way.startswith("history"):
            body = by_history(items, response, added) | named
        elif way == "previous":
            body = {"input": added, "previous_response_id": response["id"]}
        else:
            body = {"input": added, **named}
    assert (text_of(response), response["status"], len(sessions)) == (LAST, "completed", 1)
    if way == "conversation":
        assert response["conversation"] == {"id": named["conversation"]}
        assert named["conversation"].endswith(sessions.pop())


def test_an_earlier_response_is_followed_beside_what_came_later(site: Site) -> None:
    first = told(post(site, input="First", instructions="Fork."))
    later = told(post(site, input="Second", instructions="Fork.", previous_response_id=first["id"]))
    beside = told(post(site, input="Third", instructions="Fork.", previous_response_id=first["id"]))
    assert text_of(beside) == "You said: Third"
    assert beside["keepwarm"]["session_id"] == later["keepwarm"]["session_id"]
    after = told(post(site, input="Fourth", instructions="Fork.", previous_response_id=later["id"]))
    texts = [message.text for message in site.manager.view("local", after["keepwarm"]["session_id"]).messages]
    assert texts[::2] == ["First", "Second", "Fourth"]
    assert after["keepwarm"]["miss_reason"] in (None, "branch_switched")


def test_other_instructions_are_read_and_the_rest_is_kept(site: Site) -> None:
    first = told(post(site, input=[{"role": "developer", "content": "Stay."}, user("Hi")], instructions="One."))
    after = told(post(site, input="And?", instructions="Two.", previous_response_id=first["id"]))
    view = site.manager.view("local", after["keepwarm"]["session_id"])
    assert view.settings.system_prompt == "Two.\n\nStay."
    assert [message.text for message in view.messages] == ["Hi", "You said: Hi", "And?", "You said: And?"]


def test_a_conversation_begins_alike_whether_its_responses_have_names(site: Site) -> None:
    made = {"conversation": post(site, "/v1/conversations").json()["id"], "store": False}
    developer = {"role": "developer", "content": "Stay here."}
    first = told(post(site, input=[developer, {"role": "user", "content": "Unnamed"}], **made))
    after = told(post(site, input="And?", **made))
    assert after["keepwarm"]["miss_reason"] is None
    assert after["keepwarm"]["reused"] == first["usage"]["total_tokens"] - 1
    with httpx.Client(base_url=site.url) as http:
        assert http.get(f"/v1/responses/{first['id']}").status_code == 404


def test_names_outlive_the_server(serve: Serve) -> None:
    site = serve(headless=True, template=ByteTemplate(takes_tools=True, has_thoughts=True), answer=worker)
    first = told(post(site, input="Remember", tools=[TOOL]))
    site.close()
    again = serve(headless=True, template=ByteTemplate(takes_tools=True, has_thoughts=True), answer=worker)
    with httpx.Client(base_url=again.url) as http:
        found = http.get(f"/v1/responses/{first['id']}").json()
    assert found["output"] == first["output"]
    assert {**found["usage"]} == first["usage"]
    call = first["output"][-1]
    result = [{"type": "function_call_output", "call_id": call["call_id"], "output": "x"}]
    after = told(post(again, input=result, tools=[TOOL], previous_response_id=first["id"]))
    assert after["keepwarm"]["session_id"] == first["keepwarm"]["session_id"]


def test_a_response_is_retrieved_and_forgotten_by_its_owner_alone(serve: Serve) -> None:
    site = serve(headless=True)
    keys = {name: site.store.keys.add(name)[1] for name in ("one", "two")}
    with httpx.Client(base_url=site.url, timeout=30) as http:

        def call(name: str, method: str, path: str, **body: Any) -> httpx.Response:
            sent = {"json": {"model": MODEL, **body}} if method == "POST" else {}
            return http.request(method, path, headers={"Authorization": f"Bearer {keys[name]}"}, **sent)  # type: ignore[arg-type]

        made = call("one", "POST", "/v1/responses", input="Mine").json()
        unkept = call("one", "POST", "/v1/responses", input="Not kept", store=False).json()
        path = f"/v1/responses/{made['id']}"
        assert call("one", "GET", path).json()["output"] == made["output"]
        assert call("two", "GET", path).status_code == call("two", "DELETE", path).status_code == 404
        follow = {"input": "And?", "previous_response_id": made["id"]}
        refused = call("two", "POST", "/v1/responses", **follow)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "previous_response_not_found")
        stranger = {"input": "And?", "conversation": made["keepwarm"]["session_id"]}
        assert call("two", "POST", "/v1/responses", **stranger).status_code == 404
        assert call("one", "POST", "/v1/responses", **stranger).status_code == 200
        assert call("one", "GET", f"/v1/responses/{unkept['id']}").status_code == 404
        assert call("one", "DELETE", path).json() == {"id": made["id"], "object": "response", "deleted": True}
        assert call("one", "GET", path).status_code == 404
        assert call("one", "GET", f"/v1/sessions/{made['keepwarm']['session_id']}").status_code == 200


def test_a_conversation_is_described_and_deleted(site: Site) -> None:
    with httpx.Client(base_url=site.url, timeout=30) as http:
        made = http.post("/v1/conversations", json={}).json()
        path = f"/v1/conversations/{made['id']}"
        assert http.get(path).json()["id"] == made["id"]
        assert told(post(site, input="Hi", conversation={"id": made["id"]}))["conversation"] == {"id": made["id"]}
        assert http.delete(path).json() == {"id": made["id"], "object": "conversation.deleted", "deleted": True}
        assert http.get(path).status_code == http.get("/v1/conversations/none").status_code == 404
    assert post(site, input="Hi", conversation=made["id"]).status_code == 404


def test_a_conversation_that_answers_is_a_409_and_a_response_waits_for_its_own(serve: Serve) -> None:
    site = serve(headless=True, token_delay_s=0.02)
    made = post(site, "/v1/conversations").json()
    with httpx.Client(base_url=site.url, timeout=30) as http:
        body = {"model": MODEL, "input": "long", "conversation": made["id"], "stream": True}
        with http.stream("POST", "/v1/responses", json=body) as streamed:
            lines = streamed.iter_lines()  # kept: the stream is closed with it
            first = json.loads(next(line for line in lines if line.startswith("data: "))[6:])
            until(lambda: site.manager.open_answers()[0] == 1)
            busy = post(site, input="And?", conversation=made["id"])
            assert (busy.status_code, busy.json()["error"]["code"]) == (409, "session_busy")
            follow = post(site, input="And?", previous_response_id=first["response"]["id"])
            assert follow.status_code == 409
            assert http.get(f"/v1/responses/{first['response']['id']}").json()["status"] == "in_progress"


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_that_reached_its_limit_is_incomplete(site: Site, streams: bool) -> None:
    response = told(post(site, input="Hello", max_output_tokens=3, stream=streams))
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert text_of(response) == "You"


def test_a_failed_answer_ends_its_stream(serve: Serve) -> None:
    def broken(ledger: tuple[int, ...]) -> tuple[int, ...]:
        raise RuntimeError("broken")

    site = serve(headless=True, answer=broken)
    last = json.loads(post(site, input="Hi", stream=True).text.strip().rpartition("data: ")[2])
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert post(site, input="Hi").status_code == 500


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.id"),
        ({"input": [user("x"), {"type": "item_reference", "id": f"msg_{'0' * 32}"}]}, "input.1.id"),
        ({"input": [{"type": "item_reference"}]}, "input.0.id"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": "x", "colour": "red"}]}, "input.0.colour"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
        ({"conversation": "x"}, "conversation"),
        ({"conversation": "0" * 32, "previous_response_id": "resp_1"}, "conversation"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "no!"}}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"context": "all"}}, "reasoning.context"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"model": "gpt-5"}, "model"),
    ],
)
def test_refusals_name_the_field(site: Site, body: dict[str, Any], named: str) -> None:
    refused = post(site, **{"input": "Hi", **body})
    assert refused.status_code == (404 if named == "model" else 400), refused.text
    assert refused.json()["error"]["param"] == named, refused.text


def test_what_clients_send_without_meaning_anything_is_accepted_and_echoed(site: Site) -> None:
    body = {
        "metadata": {"a": "b"},
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "truncation": "auto",
        "service_tier": "auto",
        "temperature": 0.5,
    }
    response = told(post(site, input="Hi", **body))
    assert response["metadata"] == {"a": "b"}
    assert (response["temperature"], response["truncation"], response["reasoning"]["effort"]) == (0.5, "auto", "low")
    assert response["keepwarm"]["ignored"] == [
        "service_tier",
        "reasoning.summary",
        "include.reasoning.encrypted_content",
        "truncation",
        "reasoning.effort",
    ]


def test_a_format_is_enforced_and_log_probabilities_are_asked_for(site: Site) -> None:
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    response = told(post(site, input="Hi", text={"format": form}))
    assert response["text"]["format"] == form
    told(post(site, input="Probable", include=["message.output_text.logprobs"], top_logprobs=2))
    sampling = site.engine.last_sampling
    assert sampling is not None
    assert sampling.top_logprobs == 2


def test_a_prompt_is_counted_as_it_is_asked(site: Site) -> None:
    """Nothing is stored by it: the conversation's next turn is counted before it is asked."""
    named = post(site, "/v1/conversations").json()["id"]
    for text in ("Count me", "And once more"):
        body = {"model": MODEL, "input": text, "instructions": "Be brief.", "tools": [TOOL], "conversation": named}
        counted = [post(site, "/v1/responses/input_tokens", **body).json() for _ in range(2)]
        usage = told(post(site, **body))["usage"]
        assert counted == [{"object": "response.input_tokens", "input_tokens": usage["input_tokens"]}] * 2
    unknown = post(site, "/v1/responses/input_tokens", model=MODEL, input="a", previous_response_id="resp_none")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "previous_response_id")
