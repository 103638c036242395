"""What an answer looks like: thoughts folded, footnotes, code that a person pasted, everything reachable."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.app.site import Site, Tab

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]
END = 256


def saying(text: str) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    return lambda _: (*text.encode(), END)


def test_thoughts_are_folded_while_they_grow_and_after(shared_site: Site, tab: OpenTab) -> None:
    thoughts = "I *wonder*.\n\n" + "So many thoughts. " * 12
    shared_site.engine.answer = saying(f"<think>\n{thoughts}\n</think>\n\nThe **answer**.")
    shared_site.engine.token_delay_s = 0.006
    permissions = {"permissions": ["clipboard-read", "clipboard-write"]}
    one = tab(shared_site.url, **permissions).open()
    one.write("go")
    fold = one.messages.nth(1).locator("details")
    summary = fold.locator("summary")
    expect(summary).to_have_text(re.compile(r"^Thinking"))
    assert "<" not in one.message(1).inner_text()
    expect(fold.locator("em")).to_be_hidden()
    summary.click()
    expect(fold.locator("em")).to_be_visible()
    one.wait_idle()
    expect(fold.locator("em")).to_be_visible()  # it stays open
    expect(summary).to_have_text(re.compile(r"^Thought for about [\d.]+ s$"))
    expect(one.message(1).locator(":scope > p")).to_have_text("The answer.")
    one.messages.nth(1).get_by_test_id("copy").click()
    expect(one.messages.nth(1).get_by_role("button", name="Copied")).to_be_visible()
    assert one.page.evaluate("navigator.clipboard.readText()") == "The **answer**."
    one.reload()
    expect(fold.locator("em")).to_be_hidden()
    expect(summary).to_have_text(re.compile(r"^Thought for about [\d.]+ s$"))
    summary.focus()
    one.page.keyboard.press("Enter")
    expect(fold.locator("em")).to_be_visible()


def test_thoughts_without_an_end(one: Tab, shared_site: Site) -> None:
    shared_site.engine.answer = saying("<think>on and on " + "and on " * 400)
    shared_site.engine.token_delay_s = 0.003
    one.write("go")
    expect(one.messages.nth(1).locator("summary")).to_have_text(re.compile(r"^Thinking, \d s"))
    one.by("stop").click()
    one.wait_idle()
    expect(one.messages.nth(1).locator("summary")).to_contain_text("without an end")
    expect(one.messages.nth(1)).to_contain_text("Stopped")


def test_a_mark_leads_to_its_note(one: Tab, shared_site: Site) -> None:
    text = "A claim[^1].\n\n" + "Much text.\n\n" * 30 + "[^1]: The *source*."
    shared_site.engine.answer = saying(text)
    one.say("go")
    mark = one.message(1).get_by_role("button", name="1")
    mark.click()
    note = one.message(1).locator(".kw-note-text")
    expect(note).to_be_focused()
    expect(note).to_be_in_viewport()
    expect(note).to_have_text("1The source.")


@pytest.mark.parametrize("width", [360, 1440])
def test_everything_can_be_reached(shared_site: Site, tab: OpenTab, width: int) -> None:
    deep = "".join(f"{'  ' * depth}- level{depth}\n" for depth in range(20))
    text = f"{deep}\n`{'long' * 60}`\n\n```\n{'wide ' * 80}\n```\n\n| {' | '.join('abcdefgh' * 2)} |\n|{'-|' * 16}\n"
    shared_site.engine.answer = saying(text)
    one = tab(shared_site.url, viewport={"width": width, "height": 800}).open()
    one.say("go")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    cut = one.page.evaluate(
        """() => {
          const wrong = [];
          const walker = document.createTreeWalker(document.querySelector(".bot-row .md"), NodeFilter.SHOW_TEXT);
          while (walker.nextNode()) {
            const node = walker.currentNode;
            if (!node.data.trim()) continue;
            const range = document.createRange();
            range.selectNodeContents(node);
            const box = range.getBoundingClientRect();
            let holder = node.parentElement;
            while (!holder.classList.contains("bot-row")) {
              const around = holder.getBoundingClientRect();
              const scrolls = ["auto", "scroll"].includes(getComputedStyle(holder).overflowX);
              if (!scrolls && getComputedStyle(holder).overflowX !== "visible" && box.right > around.right + 1)
                wrong.push(node.data.slice(0, 20));
              if (scrolls && holder.scrollWidth > holder.clientWidth + 1 && holder.tabIndex !== 0)
                wrong.push(`no focus: ${holder.className || holder.localName}`);
              if (scrolls) break;
              holder = holder.parentElement;
            }
          }
          return wrong;
        }"""
    )
    assert cut == []


def test_code_in_a_persons_message_is_set_as_code(one: Tab) -> None:
    fenced = "Why does this fail?\n\n```py\na = 1\n\nb = a\n```\nThanks: it is\nurgent."
    bare = "def f(x):\n    return x + 1\n\nprint(f(2))\nfor a in b:\n    pass"
    one.say(fenced)
    one.say(bare)
    one.say("Dear all,\nplease (really) come:\nat 5; thanks")
    code = [one.message(index).locator(".kw-typed-code").all_inner_texts() for index in (0, 2, 4)]
    assert [[text.rstrip("\n") for text in texts] for texts in code] == [["```py\na = 1\n\nb = a\n```"], [bare], []]
    assert one.message(0).inner_text() == fenced
    assert one.message(2).inner_text() == bare
    font = "(node) => getComputedStyle(node).fontFamily"
    assert "mono" in one.message(2).locator(".kw-typed-code").evaluate(font).lower()


def test_what_an_answer_leaves_to_the_reader(one: Tab, shared_site: Site) -> None:
    """A sample of the table of cases (tests/app/page/markdown/cases.py) on the real page."""
    text = (
        "Before.\n\n```cpp\nint x;\n```\n\n- [x] done\n- [ ] to do\n\n![cat](http://x.y/c.png)\n\n"
        "| a |\n|--:|\n| one<br>two |\n\n**重要。**次 and \\( x^2 \\) <https://example.com/path>\n\nAfter."
    )
    shared_site.engine.answer = saying(text)
    one.say("go")
    body = one.message(1)
    expect(body).to_contain_text("Before.")
    expect(body.locator("pre code")).to_have_text("int x;\n")
    expect(body.locator("[role=checkbox][aria-checked=true]")).to_have_count(1)
    expect(body.get_by_role("link", name="cat")).to_have_attribute("href", "http://x.y/c.png")
    assert body.locator("td").inner_text() == "one\ntwo"
    expect(body.locator("strong")).to_have_text("重要。")
    expect(body.locator("math msup")).to_have_count(1)
    expect(body.get_by_role("link", name="https://example.com/path")).to_have_attribute(
        "href", "https://example.com/path"
    )
    expect(body).to_contain_text("After.")
