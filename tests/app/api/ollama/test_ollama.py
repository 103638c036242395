"""Ollama's API over HTTP: shapes as its clients send them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.model_names import ModelNames
from tests.app.api.conftest import ServeOnce
from tests.app.api.tool_loop import LAST, NAME, SCHEMA, TURNS, fed_in_turn, worker
from tests.app.conftest import MODEL, Serve, assistant, user
from tests.app.site import Site, echo
from tests.sessions.byte_template import END, TOOLS, ByteTemplate

TOOL = {"type": "function", "function": {"name": NAME, "description": "Looks up.", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def site(serve_once: ServeOnce) -> Site:
    def answer(ledger: tuple[int, ...]) -> Any:
        return worker(ledger) if TOOLS in ledger else echo(ledger)

    return serve_once(template=ByteTemplate(takes_tools=True, has_thoughts=True), answer=answer)


def post(site: Site, path: str, **body: Any) -> httpx.Response:
    with httpx.Client(base_url=site.url, timeout=30) as http:
        return http.post(f"/api/{path}", json={"model": MODEL, **body})


def told(answered: httpx.Response) -> dict[str, Any]:
    """The last object, with all that its stream said."""
    assert answered.status_code == 200, answered.text
    if not answered.headers["content-type"].startswith("application/x-ndjson"):
        return dict(answered.json())
    pieces = [json.loads(line) for line in answered.text.strip().split("\n")]
    assert [piece["done"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    last = dict(pieces[-1])
    if "response" in last:
        return last | {"response": "".join(piece["response"] for piece in pieces)}
    messages = [piece["message"] for piece in pieces]
    whole = {"role": "assistant", "content": "".join(message["content"] for message in messages)}
    if thinking := "".join(message.get("thinking", "") for message in messages):
        whole["thinking"] = thinking
    if calls := [call for message in messages for call in message.get("tool_calls", ())]:
        whole["tool_calls"] = calls
    return last | {"message": whole}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("sends_ids", [False, True])
def test_a_tool_loop_of_ten_turns_feeds_only_what_is_new(site: Site, streams: bool, sends_ids: bool) -> None:
    messages: list[Any] = [{"role": "system", "content": f"You work {streams} {sends_ids}."}, user("Do it.")]
    sessions, result = set(), ""
    for turn in range(TURNS):
        more = {} if streams else {"stream": False}  # streaming is what it does unless told otherwise
        last = told(post(site, "chat", messages=messages, tools=[TOOL], options={"num_ctx": 4096}, **more))
        receipt, message = last["keepwarm"], last["message"]
        assert receipt["fed"] == (fed_in_turn(result) if turn else receipt["fed"]), turn
        assert (receipt["miss_reason"], receipt["ignored"]) == (None, [])
        sessions.add(receipt["session_id"])
        if turn == TURNS - 1:
            break
        (call,) = message["tool_calls"]
        assert (message["thinking"], message["content"]) == ("Hm.", f"Step {turn}.")
        assert (call["function"]["name"], call["function"]["arguments"]) == (NAME, {"b": turn, "a": 1.0})
        result = f"Found {turn}"
        function = {"name": NAME, "arguments": dict(sorted(call["function"]["arguments"].items()))}
        sent = {"function": function, **({"id": call["id"]} if sends_ids else {})}
        messages += [
            {"role": "assistant", "content": message["content"], "tool_calls": [sent]},
            {"role": "tool", "content": result, **({"tool_name": NAME} if sends_ids else {})},
        ]
    assert (message["content"], last["done_reason"], len(sessions)) == (LAST, "stop", 1)


@pytest.mark.parametrize("streams", [False, True])
def test_durations_and_counts_are_measured(serve: Serve, streams: bool) -> None:
    site = serve(headless=True, token_delay_s=0.01, fed_token_delay_s=0.001)
    last = told(post(site, "chat", messages=[user("Hello")], stream=streams))
    assert (last["message"]["content"], last["eval_count"]) == ("You said: Hello", len("You said: Hello") + 1)
    assert last["eval_duration"] >= 15 * 0.01 * 1e9
    assert last["prompt_eval_duration"] >= last["prompt_eval_count"] * 0.001 * 1e9
    assert last["total_duration"] >= last["eval_duration"]


def test_a_prompt_is_answered_as_a_chat_or_raw(site: Site) -> None:
    last = told(post(site, "generate", prompt="Hello", system="Be brief.", options={"num_predict": 6}))
    assert (last["response"], last["done_reason"]) == ("You sa", "length")
    view = site.manager.view("local", last["keepwarm"]["session_id"])
    assert (view.settings.system_prompt, view.messages[0].text) == ("Be brief.", "Hello")
    raw = told(post(site, "generate", prompt="raw<end>", raw=True, stream=False))
    assert (raw["response"], raw["prompt_eval_count"]) == ("You said: raw", 4)


@pytest.mark.parametrize("streams", [False, True])
def test_a_context_goes_on_where_its_answer_ended(site: Site, streams: bool) -> None:
    def ask(prompt: str, **more: Any) -> dict[str, Any]:
        return told(post(site, "generate", prompt=prompt, stream=streams, **more))

    system = {"system": f"Be warm ({streams})."}
    first = ask("One", **system)
    last, sessions, before = first, set(), first["prompt_eval_count"] + first["eval_count"]
    for turn in range(5):
        repeats = system if turn % 2 else {}  # some programs send the system prompt each time
        last = ask(f"Turn {turn}", context=last["context"], **repeats)
        assert last["response"] == f"You said: Turn {turn}"
        assert last["keepwarm"]["miss_reason"] is None
        assert last["keepwarm"]["fed"] == last["prompt_eval_count"] - before + 1
        before = last["prompt_eval_count"] + last["eval_count"]
        sessions.add(last["keepwarm"]["session_id"])
    assert sessions == {first["keepwarm"]["session_id"]}
    beside = ask("Beside", context=first["context"])
    after = ask("After", context=last["context"])
    assert {beside["keepwarm"]["session_id"], after["keepwarm"]["session_id"]} == sessions
    other = ask("Other", context=last["context"], system="Be brief.")
    view = site.manager.view("local", other["keepwarm"]["session_id"])
    assert view.settings.system_prompt == "Be brief."
    assert [message.text for message in view.messages][:3] == ["One", "You said: One", "Turn 0"]


def test_a_context_says_nothing_of_responses(site: Site) -> None:
    made = told(post(site, "generate", prompt="One", system="Be warm."))
    where = made["keepwarm"]["session_id"]
    for instructions in ({"instructions": "X"}, {}):
        body = {"model": MODEL, "input": "Two", "conversation": where, "store": not instructions, **instructions}
        answer = httpx.post(f"{site.url}/v1/responses", json=body, timeout=30).json()
        assert answer["keepwarm"]["session_id"] == where
        assert site.manager.view("local", where).settings.system_prompt == instructions.get("instructions", "")


def test_a_context_is_its_owners_and_goes_with_its_conversation(serve: Serve) -> None:
    site = serve(headless=True)
    made_keys = [site.store.keys.add(name) for name in ("one", "two")]
    keys = [text for _, text in made_keys]
    with httpx.Client(base_url=site.url, timeout=30) as http:

        def ask(key: str, **more: Any) -> httpx.Response:
            body = {"model": MODEL, "prompt": "Mine", "stream": False, **more}
            return http.post("/api/generate", json=body, headers={"authorization": f"Bearer {key}"})

        made = ask(keys[0]).json()
        assert len(made["context"]) == 8
        assert ask(keys[0], context=made["context"]).status_code == 200
        assert "context" in ask(keys[1], context=made["context"]).json()["error"]
        site.manager.delete(made_keys[0][0].owner_id, made["keepwarm"]["session_id"])
        gone = ask(keys[0], context=made["context"])
        assert (gone.status_code, "context names no answer" in gone.json()["error"]) == (400, True)
        assert "context" not in ask(keys[0], raw=True).json()
        own = {"authorization": f"Bearer {keys[0]}"}
        assert http.get("/v1/responses/context_0", headers=own).status_code == 404


def test_options_reach_the_sampler(site: Site) -> None:
    options = {"seed": 3, "temperature": 0.5, "top_k": 4, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.5}
    more = {"presence_penalty": 0.5, "frequency_penalty": 0.25, "stop": ["zz"], "num_gpu": 9, "num_ctx": 10**6}
    last = told(post(site, "chat", messages=[user("Options")], options=options | more, keep_alive="5m"))
    assert last["keepwarm"]["ignored"] == ["keep_alive", "options.num_gpu", "options.num_ctx"]
    assert last["keepwarm"]["notes"] == ["This model's context has 8,192 tokens, not 1,000,000."]
    sampling = site.engine.last_sampling
    assert sampling is not None
    assert (sampling.seed, sampling.temperature, sampling.top_k, sampling.top_p) == (3, 0.5, 4, 0.5)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.stop_strings) == (0.1, 1.5, ("zz",))
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, 0.25)


def test_thinking_is_switched(serve: Serve) -> None:
    site = serve(headless=True, template=ByteTemplate(variables=("enable_thinking",), has_thoughts=True))
    for think in (True, False):
        last = told(post(site, "chat", messages=[user(f"Think {think}")], think=think))
        view = site.manager.view("local", last["keepwarm"]["session_id"])
        assert json.loads(view.settings.template_variables) == {"enable_thinking": think}


@pytest.mark.parametrize("form", ["json", {"type": "object", "properties": {"a": {"type": "integer"}}}])
def test_formats_are_enforced(site: Site, form: Any) -> None:
    assert told(post(site, "chat", messages=[user(f"Format {form}")], format=form))["done"]


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("chat", {"options": {"mirostat": 1}}, "options.mirostat"),
        ("chat", {"options": {"typical_p": 0.5}}, "options.typical_p"),
        ("chat", {"options": {"num_predict": 0}}, "options.num_predict"),
        ("chat", {"options": {"temperature": 9}}, "options.temperature"),
        ("chat", {"options": {"repeat_penalty": 1.1, "repeat_last_n": -2}}, "options.repeat_last_n"),
        ("chat", {"options": {"colour": 1}}, "options.colour"),
        ("chat", {"format": "yaml"}, "format"),
        ("chat", {"format": {"type": "no!"}}, "format"),
        ("chat", {"think": False}, "think"),  # this template has no switch
        ("chat", {"top_logprobs": 3}, "top_logprobs"),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["AAAA"]}]}, "messages.0.images"),
        ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ("chat", {"messages": [], "keep_alive": 0}, "keep_alive"),
        ("chat", {"model": "llama3"}, "llama3"),
        ("chat", {"colour": "red"}, "colour"),
        ("generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("generate", {"prompt": "x", "template": "y"}, "template"),
        ("generate", {"prompt": "x", "context": [1]}, "context"),
        ("generate", {"prompt": "x", "context": [1, 2, 3, 4, 5, 6, 7, 8]}, "context"),
        ("generate", {"prompt": "x", "context": [-1, 2, 3, 4, 5, 6, 7, 1 << 16]}, "context"),
        ("generate", {"prompt": "x", "raw": True, "context": [1]}, "context"),
        ("generate", {"prompt": "x", "images": ["AAAA"]}, "images"),
        ("generate", {"prompt": "x", "raw": True, "system": "y"}, "system"),
        ("embed", {"input": "x"}, "embedding"),
        ("embeddings", {"prompt": "x"}, "embedding"),
    ],
)
def test_refusals_are_a_sentence_that_names_the_field(site: Site, path: str, body: dict[str, Any], named: str) -> None:
    base = {"messages": [user("Hi")]} if path == "chat" else {}
    refused = post(site, path, **{**base, **body})
    assert refused.status_code == (404 if named == "llama3" else 400)
    assert set(refused.json()) == {"error"}
    assert named in refused.json()["error"]


def test_pictures_in_earlier_messages_are_named(site: Site) -> None:
    asked = {"role": "user", "content": "Look", "images": ["AAAA"]}
    last = told(post(site, "chat", messages=[asked, assistant("A cat."), user("And?")]))
    assert last["message"]["content"] == "You said: And?"
    assert len(last["keepwarm"]["ignored"]) == 1


def test_arguments_that_are_no_object_come_back_as_they_were(serve: Serve) -> None:
    said = '<tool_call>{"name": "look_up", "arguments": "{city"}</tool_call>'
    site = serve(headless=True, template=ByteTemplate(takes_tools=True), answer=lambda _: (*said.encode(), END))
    first = told(post(site, "chat", messages=[user("Hi")], tools=[TOOL]))
    assert first["message"]["tool_calls"][0]["function"]["arguments"] == {"raw_arguments": "{city"}
    history = [user("Hi"), first["message"], {"role": "tool", "content": "x"}]
    after = told(post(site, "chat", messages=history, tools=[TOOL]))
    assert after["keepwarm"]["session_id"] == first["keepwarm"]["session_id"]


def test_the_model_is_described(serve: Serve) -> None:
    site = serve(headless=True, template=ByteTemplate(has_thoughts=True), names=ModelNames(aliases=("llama3",)))
    with httpx.Client(base_url=site.url) as http:
        assert [model["name"] for model in http.get("/api/tags").json()["models"]] == [MODEL, "llama3"]
        assert http.get("/api/ps").json()["models"][0]["context_length"] == 8192
        assert http.get("/api/version").json()["version"].count(".") == 2
    for asked in ({"name": "llama3:latest"}, {"model": MODEL}, {"model": f"{MODEL}:latest", "verbose": True}):
        shown = post(site, "show", **{"model": None, **asked})
        assert shown.status_code == 200, shown.text
        assert shown.json()["model_info"]["keepwarm.context_length"] == 8192
        assert shown.json()["capabilities"] == ["completion", "thinking"]
    loaded = told(post(site, "chat", model="llama3:latest", messages=[]))
    assert (loaded["model"], loaded["done_reason"]) == ("llama3:latest", "load")
    assert told(post(site, "generate", prompt=""))["done_reason"] == "load"


@pytest.mark.parametrize("headless", [False, True])
def test_ollamas_own_command_finds_the_server(serve: Serve, headless: bool) -> None:
    """It asks for the root first, then describes the model, loads it with an empty prompt, and chats."""
    site = serve(headless=headless)
    with httpx.Client(base_url=site.url, timeout=30) as http:
        for method, path in (("HEAD", "/"), ("GET", "/"), ("HEAD", "/api/version"), ("HEAD", "/api/tags")):
            assert http.request(method, path).status_code == 200, (method, path)
        assert http.post("/api/show", json={"model": MODEL}).status_code == 200
        loaded = http.post("/api/generate", json={"model": MODEL, "prompt": "", "keep_alive": "5m", "options": {}})
        assert json.loads(loaded.text)["done_reason"] == "load"
        if headless:
            site.store.keys.add("test")
            assert http.head("/").status_code == 200
            assert http.head("/api/tags").status_code == 401


def test_curl_without_a_content_type_is_understood_and_a_key_is_needed(serve: Serve) -> None:
    site = serve(headless=True)
    text = json.dumps({"model": MODEL, "messages": [user("Hi")], "stream": False})
    form = {"content-type": "application/x-www-form-urlencoded"}
    with httpx.Client(base_url=site.url, timeout=30) as http:
        assert http.post("/api/chat", content=text, headers=form).json()["message"]["content"] == "You said: Hi"
        assert http.post("/api/chat", content=text).status_code == 200  # LiteLLM names no type at all
        assert http.post("/v1/chat/completions", content=text, headers=form).status_code == 415
        assert http.post("/v1/chat/completions", content=text).status_code == 415
        assert http.post("/api/chat", content=text, headers={"content-type": "text/plain"}).status_code == 415
        foreign = {**form, "origin": "https://elsewhere.example"}
        refused = http.post("/api/chat", content=text, headers=foreign)
        assert (refused.status_code, set(refused.json())) == (403, {"error"})
        key = site.store.keys.add("test")[1]
        for method, path in (("POST", "chat"), ("GET", "tags"), ("GET", "ps"), ("GET", "version"), ("POST", "show")):
            refused = http.request(method, f"/api/{path}", content=text if method == "POST" else None, headers=form)
            assert refused.status_code == 401, path
            assert "API key" in refused.json()["error"]
        allowed = {**form, "authorization": f"Bearer {key}"}
        assert http.post("/api/chat", content=text, headers=allowed).status_code == 200
        assert http.get("/api/nothing").json() == {"error": "There is nothing at this address."}
        assert 'path="/api/chat"' in http.get("/metrics", headers=allowed).text


def test_a_failed_answer_ends_its_stream(serve: Serve) -> None:
    def broken(ledger: tuple[int, ...]) -> tuple[int, ...]:
        raise RuntimeError("broken")

    site = serve(headless=True, answer=broken)
    assert "broken" in json.loads(post(site, "chat", messages=[user("Hi")]).text.strip().split("\n")[-1])["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "sentence"),
    [
        ("POST", "pull", {"model": MODEL, "stream": False}, 200, '{"status":"success"}'),
        ("POST", "pull", {"model": f"{MODEL}:latest"}, 200, '{"status": "success"}\n'),
        ("POST", "pull", {"name": MODEL}, 200, '{"status": "success"}\n'),
        ("POST", "pull", {"model": "llama3"}, 400, "keepwarm serve --model llama3"),
        ("POST", "pull", {}, 400, "model is missing"),
        ("POST", "push", {"model": MODEL}, 400, "uploads no models"),
        ("POST", "copy", {"source": MODEL, "destination": MODEL}, 200, ""),
        ("POST", "copy", {"source": MODEL, "destination": "mine"}, 400, "--alias mine"),
        ("DELETE", "delete", {"model": MODEL}, 400, "cache clear --models"),
        ("POST", "create", {"model": "mine", "from": MODEL, "system": "Be brief."}, 400, "with each request"),
        ("POST", "blobs/sha256:abc", None, 404, "keeps no files"),
        ("HEAD", "blobs/sha256:abc", None, 404, ""),
    ],
)
def test_who_manages_models_is_told_what_to_do(
    site: Site, method: str, path: str, body: Any, status: int, sentence: str
) -> None:
    answered = httpx.request(method, f"{site.url}/api/{path}", json=body, timeout=30)
    assert answered.status_code == status, answered.text
    if status == 200:
        assert answered.text.endswith(sentence)
    elif sentence:
        assert sentence in answered.json()["error"]
