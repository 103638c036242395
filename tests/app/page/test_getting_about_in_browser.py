"""Focus, sheets, paper, colours of one's own, a browser that keeps nothing, and the reader's clock."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Locator, expect

from tests.app.site import Site, Tab
from tests.polling import until

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]
PHONE = {"viewport": {"width": 360, "height": 720}}


def row_of(one: Tab, title: str) -> Locator:
    row = one.by("conversation").filter(has_text=title)
    row.hover()
    return row


def test_the_focus_goes_on_from_where_it_was(one: Tab) -> None:
    for name in ("alpha", "beta", "gamma"):
        one.new()
        one.say(name)
    row_of(one, "alpha").get_by_test_id("rename").click()
    one.by("name").fill("delta")
    one.page.keyboard.press("Enter")
    expect(one.by("conversation").filter(has_text="delta").get_by_test_id("rename")).to_be_focused()
    one.page.keyboard.press("Enter")
    one.page.keyboard.press("Escape")
    expect(one.by("conversation").filter(has_text="delta").get_by_test_id("rename")).to_be_focused()

    row_of(one, "beta").get_by_test_id("delete").click()
    question = one.page.locator("#kw-left").get_by_role("alertdialog")
    expect(question).to_contain_text("Delete “beta” for good?")
    words = question.locator("p")
    assert words.evaluate("p => p.scrollWidth <= p.clientWidth && p.scrollHeight <= p.clientHeight + 1")
    one.page.keyboard.press("Escape")
    expect(question).to_have_count(0)
    expect(one.by("conversation").filter(has_text="beta").get_by_test_id("delete")).to_be_focused()
    one.page.keyboard.press("Enter")
    one.page.locator("#kw-centre").click(position={"x": 400, "y": 300})
    one.page.keyboard.press("Escape")  # also from elsewhere
    expect(question).to_have_count(0)
    row_of(one, "beta").get_by_test_id("delete").click()
    one.by("delete-sure").press("Enter")
    expect(one.by("conversation")).to_have_count(2)
    expect(one.by("conversation").filter(has_text="delta").get_by_test_id("open")).to_be_focused()


def test_the_settings_keep_the_focus_inside(one: Tab) -> None:
    keeps_the_focus(one, "#kw-open-settings", "#kw-settings")


def test_sheets_of_a_phone_keep_the_focus_inside(shared_site: Site, tab: OpenTab) -> None:
    one = tab(shared_site.url, **PHONE).open()
    one.say("alpha")
    for way, sheet in (
        ("#kw-open-settings", "#kw-settings"),
        ("#kw-toggle-left", "#kw-left"),
        ("#kw-toggle-right", "#kw-right"),
    ):
        keeps_the_focus(one, way, sheet)


def keeps_the_focus(one: Tab, way: str, sheet: str) -> None:
    one.page.locator(way).click()
    over = one.page.locator(sheet)
    expect(over).to_have_attribute("aria-modal", "true")
    expect(over.locator(":focus")).to_have_count(1)
    expect(over).to_have_role("dialog")
    count = over.locator("button, input, textarea, a[href]").count()
    seen = set()
    for key in ("Tab", "Shift+Tab"):
        for _ in range(count + 3):
            one.page.keyboard.press(key)
            assert over.evaluate("sheet => sheet.contains(document.activeElement)")
            seen.add(one.page.evaluate("document.activeElement.id || document.activeElement.title"))
    assert len(seen) > 2
    assert one.page.locator("#kw-centre").evaluate("centre => centre.inert")
    one.page.keyboard.press("Escape")
    expect(over).not_to_have_attribute("aria-modal", "true")
    assert not one.page.locator("#kw-centre").evaluate("centre => centre.inert")


def test_the_whole_conversation_is_printed(shared_site: Site, tab: OpenTab) -> None:
    site = shared_site
    conversation_id = site.manager.create_conversation("local").conversation_id
    for number in range(20):
        site.manager.send("local", conversation_id, f"turn {number} " + "and more\n" * 5).wait(10**9, 0.0)
        until(lambda: site.manager.active_run("local", conversation_id) is None)
    one = tab(site.url).open(f"{site.url}/#{conversation_id}")
    expect(one.messages).to_have_count(30)
    before = sheets_of_paper(one)
    earlier = one.page.locator(".kw-earlier-button")
    one.page.emulate_media(media="print")
    assert "before printing" in earlier.evaluate("node => getComputedStyle(node, '::after').content")
    one.page.emulate_media(media="null")
    count = "document.querySelectorAll('.message-row').length"
    one.page.evaluate(f"() => {{ window.print = () => {{ window.printed = {count} }} }}")
    one.page.keyboard.press("Control+p")
    until(lambda: one.page.evaluate("window.printed") is not None)
    assert one.page.evaluate("window.printed") == 40
    assert before > 2
    until(lambda: sheets_of_paper(one) > before)
    one.page.emulate_media(media="print")
    expect(earlier).to_be_hidden()
    for number in range(20):
        expect(one.message(2 * number + 1)).to_contain_text(f"turn {number} ")
    last = one.page.locator(".message-row").last
    assert one.page.evaluate("document.documentElement.scrollHeight") >= last.evaluate(
        "row => row.getBoundingClientRect().bottom + scrollY"
    )
    for screen_only in ("#kw-left", "#kw-right", "#kw-composer", ".kw-actions"):
        expect(one.page.locator(screen_only).first).to_be_hidden()


TERMS = " + ".join(f"a_{{{number}}}" for number in range(60))
COLUMNS = 12
WIDE_ANSWER = f"""A word, `code`, a [link](https://example.invalid) and a note[^1].

| {" | ".join(["averylongwordinaheading"] * COLUMNS)} |
|{"--|" * COLUMNS}
| {" | ".join(["somewhatlong"] * COLUMNS)} |

$$ {TERMS} $$

```python
def flows(n): return "{"down " * 60}"  # always
```

> said

{"".join("  " * depth + "- deep" + chr(10) for depth in range(16))}
[^1]: The note.
"""
# The least contrast of what is written in answers, against the next ground behind it.
LEAST_CONTRAST = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).map((v) => (v / 255 <= 0.04045 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if ((parts(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const written = [...document.querySelectorAll(".kw-title, .kw-model, .md, .md *")].filter(
    (node) => node.checkVisibility() && [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim()),
  );
  const contrasts = written.map((node) => {
    const [low, high] = [getComputedStyle(node).color, ground(node)].map(light).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  });
  return Math.min(...contrasts);
}"""
BESIDE_THE_PAPER = """() => [...document.querySelectorAll(".kw-message, .kw-message *")]
  .filter((node) => node.checkVisibility() && node.getBoundingClientRect().right > innerWidth + 1)
  .map((node) => node.outerHTML.slice(0, 60))"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_is_printed_is_dark_on_white_and_nothing_is_beside_the_paper(
    one: Tab, shared_site: Site, theme: str
) -> None:
    shared_site.engine.answer = lambda _: (*WIDE_ANSWER.encode(), 256)
    size = one.page.viewport_size
    assert size is not None
    one.say("alpha")
    one.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
    one.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    one.page.emulate_media(media="print")
    one.page.set_viewport_size({"width": 680, "height": 900})
    try:
        assert one.page.evaluate(LEAST_CONTRAST) >= 4.5
        assert one.page.evaluate(BESIDE_THE_PAPER) == []
        for ground in ("html", "body"):
            assert one.page.locator(ground).evaluate("n => getComputedStyle(n).backgroundColor") == "rgb(255, 255, 255)"
        assert one.page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    finally:
        one.page.emulate_media(media="null")
        one.page.set_viewport_size(size)
        one.page.evaluate("document.documentElement.dataset.theme = 'light'")


def sheets_of_paper(one: Tab) -> int:
    return len(re.findall(rb"/Type\s*/Page\b", one.page.pdf()))


def test_nothing_vanishes_in_forced_colours(shared_site: Site, tab: OpenTab) -> None:
    one = tab(shared_site.url, forced_colors="active").open()
    one.say("alpha " * 60)
    assert one.page.evaluate("matchMedia('(forced-colors: active)').matches")
    ground = one.page.locator("#kw").evaluate("kw => getComputedStyle(kw).backgroundColor")
    for filled in (".kw-bar-used", ".kw-context-fill"):
        assert one.page.locator(filled).first.evaluate("n => getComputedStyle(n).backgroundColor") != ground, filled
    for edged in (".user-row .kw-message", ".kw-bar", ".kw-context-bar", "#kw-open-settings"):
        width = one.page.locator(edged).first.evaluate("n => parseFloat(getComputedStyle(n).borderTopWidth)")
        assert width >= 1, edged
    one.by("composer").focus()
    for chosen in (".kw-row[aria-current]", ".kw-composer"):
        assert one.page.locator(chosen).evaluate("n => getComputedStyle(n).outlineStyle") == "solid", chosen


BLOCKED = """for (const area of {areas})
    Object.defineProperty(window, area, {{ get() {{ throw new DOMException("blocked", "SecurityError") }} }});"""


@pytest.mark.parametrize("area", ["localStorage", "sessionStorage"])
def test_a_browser_that_keeps_half_of_it_shows_the_page(shared_site: Site, tab: OpenTab, area: str) -> None:
    one = tab(shared_site.url)
    one.page.add_init_script(BLOCKED.format(areas=[area]))
    one.open().say("alpha")


def test_a_browser_that_keeps_nothing_shows_the_page(shared_site: Site, tab: OpenTab) -> None:
    one = tab(shared_site.url)
    areas = ["localStorage", "sessionStorage"]
    one.page.add_init_script(BLOCKED.format(areas=areas))
    one.open()
    assert one.page.evaluate("() => { try { return !localStorage } catch { return 'blocked' } }") == "blocked"
    one.say("alpha")
    one.by("composer").fill("half a thought")
    one.new()
    expect(one.by("composer")).to_have_value("")
    one.choose("alpha")
    expect(one.by("composer")).to_have_value("half a thought")
    dark = one.page.evaluate("document.documentElement.dataset.theme")
    one.page.locator("#kw-theme").click()
    assert one.page.evaluate("document.documentElement.dataset.theme") != dark
    one.page.locator("#kw-toggle-left").click()
    expect(one.by("conversation").first).to_be_hidden()
    one.page.locator("#kw-toggle-left").click()
    expect(one.by("conversation").first).to_be_visible()
    one.by("read-ahead").click()
    expect(one.by("read-ahead")).to_have_attribute("aria-pressed", "false")
    row_of(one, "alpha").get_by_test_id("delete").click()
    one.by("delete-sure").click()
    expect(one.by("conversation").filter(has_text="alpha")).to_have_count(0)


FILL = """() => {
  let piece = "x".repeat(2 ** 20);
  for (let number = 0; piece; number++) {
    try { sessionStorage.setItem(`filler ${number}`, piece); } catch { piece = piece.slice(piece.length / 2 + 0.5); }
  }
}"""


def test_a_storage_without_room_keeps_the_newest_draft(one: Tab) -> None:
    one.say("alpha")
    one.by("composer").fill("an older draft")
    one.page.evaluate(FILL)
    newer = "a newer draft, which is longer"
    one.by("composer").fill(newer)
    one.new()
    one.choose("alpha")
    expect(one.by("composer")).to_have_value(newer)


def test_times_are_those_of_the_readers_clock(shared_site: Site, tab: OpenTab) -> None:
    zone = "Asia/Kathmandu"  # 5 h 45 min: no server's own by chance
    one = tab(shared_site.url, timezone_id=zone).open()
    one.say("alpha")
    one.by("memory-row").get_by_test_id("verify").click()
    check = one.by("check")
    expect(check).to_contain_text(re.compile(r"\d\d:\d\d"))
    clock = re.findall(r"\d\d:\d\d", check.inner_text())[0]
    now = datetime.now(UTC).astimezone(ZoneInfo(zone))
    shown = int(clock[:2]) * 60 + int(clock[3:])
    assert (now.hour * 60 + now.minute - shown) % 1440 <= 2
    one.by("memory-log").locator("summary").click()
    expect(one.by("log")).to_contain_text(f"{clock[:2]}:")


def test_an_editor_that_opens_is_looked_at_and_not_the_end(shared_site: Site, tab: OpenTab) -> None:
    one = tab(shared_site.url, viewport={"width": 360, "height": 560}).open()
    one.say("a long one")
    one.page.locator("#kw-scroll").evaluate("(box) => { box.scrollTop = 0; }")
    one.page.locator("#kw-scroll").evaluate("(box) => { box.scrollTop = box.scrollHeight; }")
    one.messages.nth(0).get_by_test_id("edit").focus()
    one.page.keyboard.press("Enter")
    one.page.wait_for_timeout(200)  # what follows the end of the answer has had its chance
    expect(one.by("editor")).to_be_in_viewport(ratio=0.9)
    one.page.keyboard.press("Escape")
