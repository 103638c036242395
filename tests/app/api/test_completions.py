"""OpenAI's client over loopback: whole answers, streams, and what each costs."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from app.model_names import ModelNames
from tests.app.conftest import MODEL, Connect, Serve, assistant, user
from tests.app.site import Site
from tests.polling import until


def ask(client: OpenAI, messages: list[Any], **more: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **more)


def receipt(answer: Any) -> dict[str, Any]:
    return answer.model_extra["keepwarm"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("key", [None, "my-chat"])
@pytest.mark.parametrize("streams", [False, True])
def test_ten_turns_are_cached_up_to_the_pending_token(
    site: Site, connect: Connect, key: str | None, streams: bool
) -> None:
    client = connect(site)
    more: dict[str, Any] = {"prompt_cache_key": key} if key else {}
    messages: list[Any] = [{"role": "system", "content": "Be brief."}]
    total = 0
    for number in range(10):
        messages.append(user(f"Question {number}"))
        if streams:
            chunks = list(ask(client, messages, stream=True, stream_options={"include_usage": True}, **more))
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            usage, told = chunks[-1].usage, chunks[-1]
            assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        else:
            told = ask(client, messages, **more)
            text, usage = told.choices[0].message.content, told.usage
        assert text == f"You said: Question {number}"
        assert usage.prompt_tokens_details.cached_tokens == max(0, total - 1)
        assert receipt(told)["reused"] == usage.prompt_tokens_details.cached_tokens
        assert receipt(told)["fed"] == usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens
        assert receipt(told)["miss_reason"] is None
        assert receipt(told)["tier_before"] == ("device" if number else "cold")
        total = usage.total_tokens
        messages.append(assistant(text))
    assert len(site.manager.list_conversations("local")) == 1


def test_a_changed_date_is_named_with_its_cost(site: Site, connect: Connect) -> None:
    client, rules = connect(site), "Name your sources, and be brief. " * 9
    said, told = [user("Why?")], {}
    for day in ("28", "29"):
        answer = ask(client, [{"role": "system", "content": f"Today is 2026-11-{day}. {rules}"}, *said])
        told = receipt(answer)
        assert told["parting"] is None or day == "29"
        said += [assistant(answer.choices[0].message.content), user("And?")]
    parting = told["parting"]
    assert (parting["section"], parting["before"], parting["after"]) == ("system text", "2026-11-28", "2026-11-29")
    assert (told["miss_reason"], parting["is_date"]) == ("history_changed", True)
    assert told["fed"] - 40 < parting["read_again"] < told["fed"]
    assert parting["place"] in told["miss_detail"]


@pytest.mark.parametrize("streams", [False, True])
def test_the_turn_after_a_stop_string_reads_what_was_shown(site: Site, connect: Connect, streams: bool) -> None:
    client, messages = connect(site), [user("Question")]
    if streams:
        chunks = list(ask(client, messages, stop=[" said"], stream=True, stream_options={"include_usage": True}))
        text, told = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks[-1]
    else:
        told = ask(client, messages, stop=[" said"])
        text = told.choices[0].message.content
    assert (text, told.usage.completion_tokens) == ("You", len("You said"))
    again = ask(client, [*messages, assistant(text), user("Why?")])
    assert again.usage.prompt_tokens_details.cached_tokens == told.usage.prompt_tokens + len("You") - 1
    assert receipt(again)["miss_reason"] is None


def test_a_stream_without_usage_ends_with_the_receipt(site: Site, connect: Connect) -> None:
    chunks = list(ask(connect(site), [user("Hello")], stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert receipt(chunks[-1])["fed"] > 0
    assert chunks[-1].usage is None


def test_parameters_do_what_they_say(site: Site, connect: Connect) -> None:
    client = connect(site)
    short = ask(client, [user("Hello")], max_tokens=4)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("You ", "length")
    assert short.usage.completion_tokens == 4
    assert ask(client, [user("Hello")], max_completion_tokens=3, max_tokens=9).usage.completion_tokens == 3
    stopped = ask(client, [user("Hello")], stop=[" said", "xyz"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("You", "stop")
    assert stopped.usage.completion_tokens == len("You said")  # the model wrote the stop string
    ask(
        client,
        [user("Hi")],
        temperature=0.5,
        top_p=0.9,
        seed=-7,
        presence_penalty=1,
        frequency_penalty=-1,
        n=1,
        user="u",
    )
    sampling = site.manager.list_conversations("local")[0]
    settings = site.manager.view("local", sampling.conversation_id).settings.sampling
    assert (settings.temperature, settings.top_p, settings.seed) == (0.5, 0.9, 2**63 - 7)
    assert (settings.presence_penalty, settings.frequency_penalty) == (1, -1)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"n": 2}, "n"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no!"}}}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "extra_body": {"guided_regex": "a"}}, "guided_regex"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"512": 1}}, "logit_bias"),
        ({"extra_body": {"stop_token_ids": [512]}}, "stop_token_ids"),
        ({"extra_body": {"repeat_penalty": 1.1, "repetition_penalty": 1.2}}, "repeat_penalty"),
        ({"extra_body": {"best_of": 2}}, "best_of"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stop": list("abcdefghijklmnopq")}, "stop"),
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"extra_body": {"functions": [{"name": "f"}]}}, "functions"),
    ],
)
def test_what_cannot_be_honoured_is_a_clear_400(
    site: Site, connect: Connect, wrong: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(connect(site), [user("Hello")], **wrong)
    assert refused.value.param == param
    assert refused.value.message
    assert site.manager.list_conversations("local") == []


def test_an_unknown_model_is_a_404(site: Site, connect: Connect) -> None:
    with pytest.raises(openai.NotFoundError, match="'Scripted-1B' is"):
        connect(site).chat.completions.create(model="gpt-4o", messages=[user("Hello")])  # type: ignore[list-item]
    assert [model.id for model in connect(site).models.list()] == [MODEL]
    assert connect(site).models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        connect(site).models.retrieve("other")


@pytest.mark.parametrize("limit", [{}, {"max_tokens": -1}, {"max_tokens": 10**9}, {"max_completion_tokens": -1}])
def test_without_a_limit_an_answer_ends_where_the_model_ends_it(
    site: Site, connect: Connect, limit: dict[str, int]
) -> None:
    answer = ask(connect(site), [user("a long one")], **limit)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content.endswith(" word399")


@pytest.mark.parametrize(
    ("options", "most_tokens"),
    [
        ({"context_limit_tokens": 300}, 300),  # up to the context
        ({"config": {"device_kv_budget_bytes": 1024 * 320}}, 320),  # up to what the device holds, never a 400
    ],
)
def test_without_a_limit_an_answer_may_fill_what_there_is(
    serve: Serve, connect: Connect, options: dict[str, Any], most_tokens: int
) -> None:
    client = connect(serve(headless=True, **options))
    answer = ask(client, [user("a long one")])
    assert answer.choices[0].finish_reason == "length"
    assert most_tokens - 16 <= answer.usage.total_tokens <= most_tokens


def test_names_of_the_model(serve: Serve, connect: Connect) -> None:
    client = connect(serve(headless=True, names=ModelNames(("gpt-4o",))))
    assert [model.id for model in client.models.list()] == [MODEL, "gpt-4o"]
    assert client.models.retrieve("gpt-4o").id == "gpt-4o"
    for name in (MODEL, "gpt-4o"):
        answer = client.chat.completions.create(model=name, messages=[user("Hello")])  # type: ignore[list-item]
        assert answer.model == MODEL  # the one that answered
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-5", messages=[user("Hello")])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError, match="model is missing: send 'Scripted-1B'"):
        client.chat.completions.create(model="", messages=[user("Hello")])  # type: ignore[list-item]


@pytest.mark.parametrize("model", ["gpt-5", "", None])
def test_any_name_of_the_model(serve: Serve, model: str | None) -> None:
    site = serve(headless=True, names=ModelNames(takes_any=True))
    with httpx.Client(base_url=site.url, timeout=30) as http:
        answered = http.post("/v1/chat/completions", json={"model": model, "messages": [user("Hello")]})
    assert (answered.status_code, answered.json()["model"]) == (200, MODEL)


def test_a_picture_is_refused_and_breaks_no_later_turn(site: Site, connect: Connect) -> None:
    client, picture = connect(site), {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}
    with pytest.raises(openai.BadRequestError, match="This model reads no pictures") as refused:
        ask(client, [asked])
    assert refused.value.param == "messages.0.content.1"
    for later in ([asked, assistant(""), user("Hello")], [asked, user("Hello")]):
        answer = ask(client, later)
        assert receipt(answer)["ignored"] == ["messages.content.image_url"]
        view = site.manager.view("local", receipt(answer)["session_id"])
        assert view.messages[0].text.startswith("What is it?\n[picture: this model cannot read it]")
        said = answer.choices[0].message.content
        again = ask(client, [*later, assistant(said), user("And?")])
        assert again.usage.prompt_tokens_details.cached_tokens == answer.usage.total_tokens - 1


def test_an_edit_in_the_middle_keeps_what_is_before_it(site: Site, connect: Connect) -> None:
    client, key = connect(site), {"prompt_cache_key": "edited"}
    messages: list[Any] = []
    totals = []
    for number in range(4):
        messages.append(user(f"Question {number}"))
        answer = ask(client, messages, **key)
        totals.append(answer.usage.total_tokens)
        messages.append(assistant(answer.choices[0].message.content))
    edited = ask(client, [*messages[:4], user("Changed")], **key)
    assert edited.usage.prompt_tokens_details.cached_tokens == totals[1] + 1  # and the user's mark, which is the same
    session = receipt(edited)["session_id"]
    view = site.manager.view("local", session)
    assert (view.messages[4].text, view.messages[4].sibling_count) == ("Changed", 2)


def test_an_open_webui_like_client(site: Site, connect: Connect) -> None:
    """The client resends the whole history, and requests titles and tags on the side with other parameters."""
    client = connect(site)
    messages: list[Any] = []
    total = 0
    for number in range(5):
        messages.append(user(f"Question {number} " + "word " * 60))
        chunks = list(ask(client, messages, stream=True, stream_options={"include_usage": True}))
        usage = chunks[-1].usage
        assert usage.prompt_tokens_details.cached_tokens >= max(0, total - 1)
        assert receipt(chunks[-1])["miss_reason"] is None
        total = usage.total_tokens
        messages.append(assistant("".join(c.choices[0].delta.content or "" for c in chunks if c.choices)))
        history = "\n".join(f"{m['role'].upper()}: {m['content']}" for m in messages)
        for task in ("Create a concise title", "Generate 1-3 broad tags"):
            side = ask(client, [user(f"### Task:\n{task}\n<chat_history>\n{history}\n</chat_history>")], max_tokens=30)
            assert side.choices[0].finish_reason == "length"


@pytest.mark.parametrize("keys", [(None, None), ("one", "other")])
def test_two_conversations_with_the_same_first_2000_tokens(
    site: Site, connect: Connect, keys: tuple[str | None, str | None]
) -> None:
    """The second copies the beginning from the first, and neither ever slows the other."""
    client, manual = connect(site), "The manual. " * 200
    chats: list[list[Any]] = [[{"role": "system", "content": manual}] for _ in keys]
    totals, sessions = [0, 0], ["", ""]
    for number in range(4):
        for which, key in enumerate(keys):
            chats[which].append(user(f"{'Ab'[which]} question {number}"))
            answer = ask(client, chats[which], **({"prompt_cache_key": key} if key else {}))
            text, cached = answer.choices[0].message.content, answer.usage.prompt_tokens_details.cached_tokens
            assert text == f"You said: {'Ab'[which]} question {number}"
            if number:
                assert cached == totals[which] - 1
                assert receipt(answer)["session_id"] == sessions[which]
            else:
                assert cached == (0 if which == 0 else len(manual) + 3)  # and three marks of the template
                sessions[which] = receipt(answer)["session_id"]
            totals[which] = answer.usage.total_tokens
            chats[which].append(assistant(text))
    assert sessions[0] != sessions[1]


def test_another_keys_holder_gets_nothing_of_the_same_2000_tokens(serve: Serve, connect: Connect) -> None:
    site = serve(headless=True)
    messages = [{"role": "system", "content": "The manual. " * 200}, user("Hello")]
    for name in ("ada", "eve"):
        client = connect(site, site.store.keys.add(name)[1])
        answer = ask(client, messages)
        assert answer.usage.prompt_tokens_details.cached_tokens == 0
        assert receipt(answer)["tier_before"] == "cold"


def test_the_client_that_goes_stops_its_answer_within_a_step(serve: Serve, connect: Connect) -> None:
    """The step in progress when the connection ends, and the one that begins before the server notices."""
    site = serve(headless=True, token_delay_s=0.1)
    stream = ask(connect(site), [user("a long one")], stream=True)
    for _, chunk in zip(range(5), stream, strict=False):
        assert chunk.choices
    (running,) = site.manager.list_conversations("local")
    run = site.manager.active_run("local", running.conversation_id)
    assert run is not None
    sampled_tokens = run.snapshot().sampled_tokens
    stream.close()
    until(lambda: site.manager.active_run("local", running.conversation_id) is None)
    assert run.snapshot().sampled_tokens <= sampled_tokens + 2
    ledger, fed, _ = site.engine.counts[-1]
    assert fed == len(ledger)
    assert site.manager.view("local", running.conversation_id).messages[-1].status.value == "stopped"


def test_the_client_that_goes_without_streaming_stops_it_too(serve: Serve) -> None:
    site = serve(headless=True, token_delay_s=0.1)
    with httpx.Client(base_url=site.url, timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json={"model": MODEL, "messages": [user("a long one")]})
    (running,) = site.manager.list_conversations("local")
    until(lambda: site.manager.active_run("local", running.conversation_id) is None)
    assert site.manager.view("local", running.conversation_id).messages[-1].status.value == "stopped"


def test_sixteen_clients_at_once(serve: Serve, connect: Connect) -> None:
    site = serve(headless=True, token_delay_s=0.001)
    failures: list[BaseException] = []

    def talk(number: int) -> None:
        try:
            client, messages = connect(site), [user(f"I am {number}")]
            for turn in range(3):
                answer = ask(client, messages, stream=bool(number % 2))
                text = (
                    "".join(c.choices[0].delta.content or "" for c in answer)
                    if number % 2
                    else answer.choices[0].message.content
                )
                assert text == f"You said: {messages[-1]['content']}"
                messages += [assistant(text), user(f"{number}, turn {turn}")]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(site.manager.list_conversations("local")) == 16


@pytest.mark.parametrize("others", ["the same", "unrelated"])
def test_four_requests_at_once_with_one_key_are_four_answers(serve: Serve, connect: Connect, others: str) -> None:
    site = serve(headless=True, token_delay_s=0.005)
    client, texts = connect(site), [f"{0 if others == 'the same' else n}, a question" for n in range(4)]
    streams = [ask(client, [user(text)], stream=True, prompt_cache_key="k") for text in texts]
    said = ["".join(chunk.choices[0].delta.content or "" for chunk in stream) for stream in streams]
    assert said == [f"You said: {text}" for text in texts]


def test_further_requests_of_one_holder_wait_in_line(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are answered in their order as places become free; the line's length is in the metrics."""
    monkeypatch.setattr("app.api.line.MOST_OPEN", 3)
    site = serve(headless=True, token_delay_s=0.02)
    (_, key), (_, other) = (site.store.keys.add(name) for name in ("ada", "eve"))
    ada, eve, answered = connect(site, key), connect(site, other), []
    streams = [ask(ada, [user(f"{n}, a long one")], stream=True) for n in range(3)]

    def waiting() -> int:
        text = httpx.get(f"{site.url}/metrics", headers={"Authorization": f"Bearer {key}"}).text
        (line,) = [line for line in text.splitlines() if line.startswith("keepwarm_requests_in_line ")]
        return int(float(line.split()[1]))

    def one_more(number: int) -> None:
        answered.append((number, ask(ada, [user(f"More {number}")]).choices[0].message.content))

    threads = []
    for number in range(2):
        threads.append(threading.Thread(target=one_more, args=(number,)))
        threads[-1].start()
        until(lambda n=number: waiting() == n + 1)  # type: ignore[misc]
    assert ask(eve, [user("Mine")]).choices[0].message.content == "You said: Mine"
    assert answered == []
    streams.pop().close()
    for thread in threads:
        thread.join(30)
    assert answered == [(n, f"You said: More {n}") for n in range(2)]
    assert waiting() == 0
    for stream in streams:
        stream.close()


def test_a_wait_in_line_ends(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a 429 after the stated time, or with the client; the line keeps no place for either."""
    monkeypatch.setattr("app.api.line.MOST_OPEN", 1)
    monkeypatch.setattr("app.api.line.PATIENCE_S", 0.2)
    site = serve(headless=True, token_delay_s=0.01)
    client = connect(site)
    stream = ask(client, [user("a long one")], stream=True)
    with pytest.raises(openai.RateLimitError, match=r"has waited 0\.2 seconds") as refused:
        ask(client, [user("One more")])
    assert int(refused.value.response.headers["Retry-After"]) >= 1
    monkeypatch.setattr("app.api.line.PATIENCE_S", 30.0)
    with httpx.Client(base_url=site.url, timeout=0.3) as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post("/v1/chat/completions", json={"model": MODEL, "messages": [user("Gone")]})
    stream.close()
    assert ask(client, [user("One more")]).choices[0].message.content == "You said: One more"
    monkeypatch.setattr("app.api.line.MOST_WAITING", 0)
    stream = ask(client, [user("a long one again")], stream=True)
    with pytest.raises(openai.RateLimitError, match="already open, and 0 further ones wait"):
        ask(client, [user("One more")])
    stream.close()


def test_a_failed_answer_is_a_500_and_an_error_in_the_stream(site: Site, connect: Connect) -> None:
    site.engine.fail = lambda generation: "The model broke."
    with pytest.raises(openai.InternalServerError, match="The model broke"):
        ask(connect(site), [user("Hello")])
    with pytest.raises(openai.APIError, match="The model broke"):
        list(ask(connect(site), [user("Hello, stream")], stream=True))


def test_curl_works_unchanged(site: Site) -> None:
    import json
    import subprocess

    body = json.dumps({"model": MODEL, "messages": [user("Hello")], "stream": True})
    command = ["curl", "-sN", f"{site.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    events = [line.removeprefix("data: ") for line in shown.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events[:-1]) == "You said: Hello"
