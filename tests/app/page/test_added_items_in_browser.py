"""What a program adds to a conversation that a person has open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.app.conftest import MODEL
from tests.app.site import Site, Tab

pytestmark = pytest.mark.browser

OpenTab = Callable[..., Tab]


def post(site: Site, path: str, **body: Any) -> Any:
    answered = httpx.post(f"{site.url}/v1/{path}", json=body, timeout=30)
    assert answered.status_code == 200, answered.text
    return answered.json()


def test_it_is_shown_before_and_after_its_answer(one: Tab, shared_site: Site) -> None:
    rule = {"role": "developer", "content": "Be <b>brief</b>."}
    history = [{"role": "user", "content": "Which sea?"}, {"role": "assistant", "content": "The North Sea."}]
    call = {"type": "function_call", "call_id": "c", "name": "depth", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "95 m"}]}
    name = post(shared_site, "conversations", items=[*history, call, result])["id"]
    one.choose("Which sea?")
    waiting = one.page.locator(".kw-waiting")
    expect(waiting).to_contain_text("4 messages that a program added, without an answer yet:")
    expect(waiting.locator("div")).to_have_text(["Which sea?", "The North Sea.", "depth({})", "95 m"])
    expect(one.by("welcome")).to_be_hidden()
    asked = {"role": "user", "content": "And now?"}
    post(shared_site, "responses", model=MODEL, conversation=name, input=[rule, asked])
    expect(one.messages).to_have_count(4)
    expect(waiting).to_be_hidden()
    system = one.messages.nth(2).locator(".kw-system")
    system.locator("summary").click()
    expect(system.locator("div")).to_have_text("Be <b>brief</b>.")
    one.messages.nth(2).hover()
    one.messages.nth(2).get_by_test_id("edit").click()
    expect(one.by("editor")).not_to_have_value("brief")
    one.by("editor").fill("And then?")
    one.by("editor-send").click()
    expect(one.messages.nth(2).get_by_test_id("sibling")).to_have_text("2/2")
    one.wait_idle()
    expect(one.messages.nth(2).locator(".kw-system")).to_have_count(1)
    one.new()
    expect(waiting).to_be_hidden()
