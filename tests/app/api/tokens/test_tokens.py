"""`/tokenize`, `/detokenize` and `/v1/embeddings`."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.app.api.conftest import ServeOnce
from tests.app.conftest import MODEL, assistant, user
from tests.app.site import Site
from tests.sessions.byte_template import ASSISTANT, END, USER, ByteTemplate


@pytest.fixture(scope="module")
def site(serve_once: ServeOnce) -> Site:
    return serve_once(template=ByteTemplate(takes_tools=True))


def post(site: Site, path: str, body: Any, **headers: str) -> httpx.Response:
    with httpx.Client(base_url=site.url, timeout=30) as http:
        return http.post(path, json=body, headers=headers)


@pytest.mark.parametrize("root", ["", "/v1"])
def test_a_text_becomes_ids_and_a_text_again(site: Site, root: str) -> None:
    ids = post(site, f"{root}/tokenize", {"prompt": "Hé<end>"}).json()
    assert ids == {"count": 4, "max_model_len": 8192, "tokens": [72, 195, 169, END], "token_strs": None}
    assert post(site, f"{root}/tokenize", {"content": "Hé<end>", "add_special": False}).json() == ids
    back = post(site, f"{root}/detokenize", {"model": MODEL, "tokens": ids["tokens"]})
    assert back.json() == {"prompt": "Hé<end>", "content": "Hé<end>"}


def test_pieces_are_shown(site: Site) -> None:
    assert post(site, "/tokenize", {"prompt": "a", "return_token_strs": True}).json()["token_strs"] == ["a"]
    assert post(site, "/tokenize", {"content": "a", "with_pieces": True}).json()["tokens"] == [{"id": 97, "piece": "a"}]


def test_a_chat_has_the_ids_that_it_would_be_asked_with(site: Site) -> None:
    before = len(site.manager.list_conversations("local"))
    found = post(site, "/tokenize", {"messages": [user("Hi")]}).json()
    assert found["tokens"] == [USER, *b"Hi", END, ASSISTANT]
    assert len(site.manager.list_conversations("local")) == before
    made = post(site, "/v1/chat/completions", {"model": MODEL, "messages": [user("Hi")]}).json()
    text = made["choices"][0]["message"]["content"]
    history = [user("Hi"), assistant(text), user("And?")]
    known = post(site, "/tokenize", {"messages": history}).json()["count"]
    answered = post(site, "/v1/chat/completions", {"model": MODEL, "messages": history}).json()
    assert answered["usage"]["prompt_tokens"] == known


def test_a_chat_that_does_not_fit_is_counted(site: Site) -> None:
    assert post(site, "/tokenize", {"messages": [user("x" * 20_000)]}).json()["count"] > 20_000


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [user("b")]}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_special": True, "add_special_tokens": False}, "add_special"),
        ("/tokenize", {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ("/tokenize", {"prompt": "a", "model": "x"}, "model"),
        ("/tokenize", {"prompt": "a", "truncate_to": 5}, "truncate_to"),
        ("/detokenize", {"tokens": [5_000]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/v1/embeddings", {"model": MODEL, "input": "Text"}, "model"),
    ],
)
def test_refusals_name_the_field(site: Site, path: str, body: Any, named: str) -> None:
    refused = post(site, path, body)
    assert refused.status_code == (404 if body.get("model") == "x" else 400)
    assert refused.json()["error"]["param"] == named, refused.text


def test_embeddings_say_what_the_model_is(site: Site) -> None:
    refused = post(site, "/v1/embeddings", {"model": MODEL, "input": "Text"})
    assert "is no embedding model" in refused.json()["error"]["message"]


def test_the_root_addresses_are_guarded_like_the_api(site: Site) -> None:
    refused = post(site, "/tokenize", {"prompt": "a"}, origin="https://elsewhere.example")
    assert refused.status_code == 403
    with httpx.Client(base_url=site.url) as http:
        assert http.get("/tokenize").status_code == 405
