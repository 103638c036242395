"""Input methods, phones, scripts from right to left, and finding a conversation by typing."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, expect

from tests.app.site import Site, Tab
from tests.polling import until

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]

# The keys of an input method: while it composes, and Safari's Enter that confirms a conversion.
COMPOSING = [{"isComposing": True, "keyCode": 13}, {"isComposing": False, "keyCode": 229}]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def press(field: Locator, key: str, how: dict[str, object]) -> None:
    field.evaluate(
        "(field, init) => field.dispatchEvent(new KeyboardEvent('keydown', init))",
        {"key": key, "bubbles": True, "cancelable": True, **how},
    )


@pytest.mark.parametrize("how", COMPOSING)
def test_keys_of_an_input_method_are_left_to_it(one: Tab, shared_site: Site, how: dict[str, object]) -> None:
    shared_site.engine.token_delay_s = 0.01
    one.say("alpha")
    one.new()
    one.say("beta")
    here = one.page.url
    one.by("composer").fill("にほん")
    press(one.by("composer"), "Enter", how)
    one.by("search").fill("alpha")
    expect(one.by("conversation")).to_have_count(1)
    for key in ("Enter", "ArrowDown", "Escape"):
        press(one.by("search"), key, how)
    expect(one.by("search")).to_have_value("alpha")
    one.by("search").fill("")
    row = one.by("conversation").filter(has_text="beta")
    row.hover()
    row.get_by_test_id("rename").click()
    one.by("name").fill("gamma")
    for key in ("Enter", "Escape"):
        press(one.by("name"), key, how)
    expect(one.by("name")).to_have_value("gamma")
    one.by("name").press("Escape")
    one.messages.nth(0).hover()
    one.messages.nth(0).get_by_test_id("edit").click()
    one.by("editor").fill("にほんご")
    for key in ("Enter", "Escape"):
        press(one.by("editor"), key, how)
    expect(one.by("editor")).to_have_value("にほんご")
    shared_site.engine.token_delay_s = 0.1
    press(one.by("editor"), "Enter", {})
    expect(one.message(0)).to_have_text("にほんご")
    one.wait_running()
    press(one.by("composer"), "Escape", how)  # ends a composition, not the answer
    one.wait_idle()
    expect(one.messages.nth(1)).not_to_contain_text("Stopped")
    assert one.page.url == here
    expect(one.by("composer")).to_have_value("にほん")
    expect(one.by("title")).to_have_text("beta")
    assert len(shared_site.manager.view("local", here.split("#")[1]).messages) == 2


def test_enter_on_a_phone_begins_a_line_and_the_button_sends(shared_site: Site, tab: OpenTab) -> None:
    one = tab(shared_site.url, **PHONE).open()
    one.by("composer").tap()
    one.by("composer").press_sequentially("first")
    one.page.keyboard.press("Enter")
    one.by("composer").press_sequentially("second")
    expect(one.by("composer")).to_have_value("first\nsecond")
    expect(one.messages).to_have_count(0)
    assert one.by("composer").get_attribute("enterkeyhint") == "enter"
    one.by("send").tap()
    expect(one.message(0)).to_have_text(re.compile(r"first\s+second"))
    one.wait_idle()
    one.messages.nth(0).get_by_test_id("edit").tap()
    one.by("editor").press("End")
    one.page.keyboard.press("Enter")
    expect(one.by("editor")).to_have_value(re.compile(r"\n"))
    one.by("editor").fill("third")
    one.page.keyboard.press("Control+Enter")  # a keyboard that is attached
    expect(one.message(0)).to_have_text("third")
    one.wait_idle()


GIVE = """([event, name, contents, target]) => {
  const data = new DataTransfer();
  for (const content of contents) data.items.add(new File([new Uint8Array(content)], name));
  const init = { bubbles: true, cancelable: true };
  const given = event === "paste" ? new ClipboardEvent(event, { ...init, clipboardData: data })
    : new DragEvent(event, { ...init, dataTransfer: data });
  return document.querySelector(target).dispatchEvent(given);
}"""


def give(one: Tab, event: str, name: str, *contents: bytes, target: str = "#kw-thread") -> bool:
    """Drops or pastes files. Whether the browser does what it does by itself: it leaves the page."""
    return bool(one.page.evaluate(GIVE, [event, name, list(map(list, contents)), target]))


def test_a_files_text_goes_into_the_message(one: Tab) -> None:
    one.by("composer").fill("Read this: ")
    assert not give(one, "dragover", "a.py", b"")
    assert not give(one, "drop", "a.py", "x = 'é'\r\n".encode())
    expect(one.by("composer")).to_have_value("Read this: x = 'é'\n")
    for event, name, content in (("paste", "cat.png", b"\x89PNG\0"), ("drop", "old.txt", "é".encode("latin-1"))):
        assert not give(one, event, name, content)
        expect(one.by("problem")).to_contain_text(f"“{name}” is not text")
    assert not give(one, "drop", "big.txt", b"x" * (2**20 + 1))
    expect(one.by("problem")).to_contain_text("“big.txt” is too large")
    expect(one.by("composer")).to_have_value("Read this: x = 'é'\n")
    assert not give(one, "drop", "lines.txt", b"one", b"two\n", b"three")
    expect(one.by("composer")).to_have_value("Read this: x = 'é'\none\ntwo\nthree")
    one.say("alpha")
    one.messages.nth(0).hover()
    one.messages.nth(0).get_by_test_id("edit").click()
    assert not give(one, "drop", "b.py", b"y", target="[data-testid=editor]")
    expect(one.by("editor")).to_have_value(re.compile("y"))
    expect(one.by("composer")).to_have_value("")
    one.by("editor").press("Escape")


def test_every_text_is_written_from_the_side_where_it_begins(one: Tab) -> None:
    arabic = "مرحبا، كيف حالك اليوم؟"
    one.by("composer").fill(arabic)
    assert direction(one.by("composer")) == "rtl"
    one.page.keyboard.press("Enter")
    expect(one.message(0)).to_have_text(arabic)
    assert direction(one.message(0)) == "rtl"
    one.wait_idle()
    for title in (one.by("title"), one.by("conversation").locator(".kw-row-title")):
        until(lambda title=title: direction(title) == "rtl")  # type: ignore[misc]  # the row is drawn anew
    one.by("search").fill("שלום")
    assert direction(one.by("search")) == "rtl"
    one.by("search").fill("")
    row = one.by("conversation").first
    row.hover()
    row.get_by_test_id("rename").click()
    assert direction(one.by("name")) == "rtl"
    one.page.keyboard.press("Escape")
    one.page.locator("#kw-open-settings").click()
    prompt = one.page.locator("#kw-set-system-prompt textarea")
    prompt.fill(arabic)
    assert direction(prompt) == "rtl"


def direction(field: Locator) -> str:
    return str(field.evaluate("node => getComputedStyle(node).direction"))


def test_an_answers_blocks_have_their_own_directions(one: Tab) -> None:
    text = "مرحبا بالعالم.\n\n- שלום\n- abc\n\nEnglish too.\n\n```\nשלום code\n```\n\n> عربي"
    one.say(f"So\n\n{text}")
    answer = one.message(1)
    one.wait_idle()
    directions = {
        "p:has-text('مرحبا')": "rtl",
        "ul": "rtl",
        "ul > li:nth-child(2)": "rtl",
        "p:has-text('English')": "ltr",
        ".kw-code pre": "ltr",
        "blockquote": "rtl",
    }
    for where, expected in directions.items():
        assert direction(answer.locator(where).last) == expected, where
    aligned = answer.locator("p:has-text('مرحبا')").evaluate(
        """p => { const range = document.createRange(); range.selectNodeContents(p);
        const text = range.getBoundingClientRect(), box = p.getBoundingClientRect();
        return [box.right - text.right, text.left - box.left] }"""
    )
    assert aligned[0] < 2 < aligned[1]


def test_the_list_is_walked_with_the_arrow_keys(one: Tab) -> None:
    for name in ("alpha", "beta", "gamma"):
        one.new()
        one.say(name)
    one.page.keyboard.press("Control+k")
    one.page.keyboard.press("ArrowDown")
    opened = one.by("conversation").get_by_test_id("open")
    expect(opened.nth(0)).to_be_focused()
    one.page.keyboard.press("ArrowDown")
    expect(opened.nth(1)).to_be_focused()
    one.page.wait_for_timeout(200)  # a redrawn list keeps the focus
    expect(opened.nth(1)).to_be_focused()
    one.page.keyboard.press("End")
    expect(opened.nth(2)).to_be_focused()
    one.page.keyboard.press("Home")
    one.page.keyboard.press("ArrowUp")
    expect(one.by("search")).to_be_focused()
    one.page.keyboard.press("ArrowDown")
    one.page.keyboard.press("ArrowDown")
    one.page.keyboard.press("Enter")
    expect(one.by("title")).to_have_text("beta")
    expect(one.by("composer")).to_be_focused()


def test_a_search_knows_other_alphabets_and_leads_to_the_place(one: Tab, shared_site: Site) -> None:
    site = shared_site
    conversation_id = site.manager.create_conversation("local").conversation_id
    texts = ["Планы на зиму", "едем в Москва <b>!", *[f"turn {number}" for number in range(18)]]
    for text in texts:
        site.manager.send("local", conversation_id, text).wait(10**9, 0.0)
        until(lambda: site.manager.active_run("local", conversation_id) is None)
    one.new()
    one.say("something else")
    one.page.keyboard.press("Control+k")
    one.page.keyboard.type("МОСКВА")
    one.page.keyboard.press("Enter")  # before the server has answered: opens what was searched for
    expect(one.by("title")).to_have_text("Планы на зиму")
    expect(one.by("conversation")).to_have_count(1)
    place = one.by("conversation").locator(".kw-row-found")
    expect(place).to_contain_text("Москва <b>!")
    expect(place.locator("mark")).to_have_text("Москва")
    said = one.messages.filter(has_text="You said: едем")
    expect(said).to_be_in_viewport()
    one.page.wait_for_timeout(300)
    expect(said).to_be_in_viewport()  # and it stays there
    expect(one.messages).to_have_count(len(texts) * 2 - 2)
    one.by("search").fill("nowhere")
    expect(one.page.locator("#kw-left").get_by_role("status")).to_have_text("Nothing found.")
