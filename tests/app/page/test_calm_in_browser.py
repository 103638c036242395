"""Long lists and long waits: what is drawn, what is sent, and what moves."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.app.site import Site, Tab
from tests.polling import until

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]
MIB = 1024 * 1024
LOCAL = "local"
WATCH = """
window.seen = { shift: 0, moved: [] };
const named = (node) => {
  const box = node?.nodeType === Node.TEXT_NODE ? node.parentElement : node;
  return box ? `${box.localName}#${box.id}.${box.className}` : "a node that is gone";
};
const placed = ({ x, y, width, height }) => [x, y, width, height].map(Math.round).join(" ");
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    if (entry.hadRecentInput) continue;
    window.seen.shift += entry.value;
    const parts = entry.sources.map((one) =>
      `${named(one.node)}: ${placed(one.previousRect)} -> ${placed(one.currentRect)}`);
    window.seen.moved.push(`${entry.value.toFixed(4)} at ${Math.round(entry.startTime)} ms: ${parts.join(", ")}`);
  }
}).observe({ type: "layout-shift", buffered: true });
"""


def many(site: Site, count: int) -> None:
    """Adds empty conversations with titles, the last one the newest."""
    template = site.manager.create_conversation(LOCAL).conversation_id
    with site.store.database.write() as db:
        row = dict(next(db.query("SELECT * FROM conversations WHERE id = ?", [template])))
        db.execute("DELETE FROM conversations WHERE id = ?", [template])
        for number in range(count):
            named = {"id": f"{number:032x}", "title": f"Conversation {number}", "title_by": "person"}
            db["conversations"].insert(row | named | {"turn_number": number + 1})


def test_a_list_of_thousands_is_drawn_where_it_is_seen(serve: Serve, tab: OpenTab) -> None:
    site = serve()
    many(site, 3_000)
    one = tab(site.url).open()
    rows = one.by("conversation")
    expect(rows.nth(1)).to_contain_text("Conversation 2999")  # below the new one
    assert rows.count() < 80
    box = one.page.locator(".kw-list-box")
    until(lambda: box.evaluate("(box) => box.scrollHeight") > 100_000)  # the newest ones come first
    box.evaluate("(box) => { box.scrollTop = box.scrollHeight / 2; }")
    middle = rows.nth(25)  # the first ones are above what is seen
    expect(middle).to_contain_text(re.compile(r"Conversation 1[45]\d\d$"))
    expect(middle).to_be_in_viewport()
    box.evaluate("(box) => { box.scrollTop = box.scrollHeight; }")
    expect(rows.filter(has_text=re.compile(r"Conversation 0$"))).to_be_in_viewport()
    rows.last.locator(".kw-open").click()
    expect(one.by("title")).to_have_text("Conversation 0")
    assert rows.count() < 80
    gap = box.evaluate("(box) => box.scrollHeight - box.scrollTop - box.clientHeight")
    assert abs(gap) <= 2  # still where it was
    one.by("search").fill("Conversation 12")
    expect(rows.first).to_contain_text("Conversation 1299")


ROWS = """async () => {
  const [{ conversationRow }, { listWindow }] = await Promise.all(
    [import("/keepwarm/conversation_row.js"), import("/keepwarm/list_window.js")]);
  const items = Array.from({ length: 900 }, (_, n) => {
    const row = { key: `${n}`, id: `${n}`, title: `Row ${n}`, tier: "disk", edited: "" };
    const found = n % 2 ? ["before ", "found", " after ".repeat(30)] : null;
    return n % 9 ? { ...row, found } : { key: `${n}`, heading: `Heading ${n}` };
  });
  const box = document.querySelector(".kw-list-box").cloneNode();
  const list = document.querySelector(".kw-list").cloneNode();
  box.append(list);
  document.querySelector(".kw-list-box").replaceWith(box);
  const rows = listWindow(box, list, (row) => row, (item, old) => conversationRow(item, old, {}));
  rows.show(items);
  const heights = [box.scrollHeight];
  for (const place of [0.2, 0.5, 0.8]) {
    box.scrollTop = box.scrollHeight * place;
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    heights.push(box.scrollHeight);
  }
  rows.reach(1);
  heights.push(box.scrollHeight);
  return { heights, last: list.lastElementChild.textContent, drawn: list.children.length };
}"""


def test_every_kind_of_row_is_as_high_as_the_list_reckons(shared_site: Site, tab: OpenTab) -> None:
    found = tab(shared_site.url).open().page.evaluate(ROWS)
    assert len(set(found["heights"])) == 1
    assert "before found" in found["last"]
    assert found["drawn"] < 80


def sent_to(page: Page) -> tuple[list[int], Any]:
    """The sizes of all messages from the server, growing."""
    sizes: list[int] = []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: sizes.append(int(event["encodedDataLength"])))
    return sizes, session


def test_a_page_that_is_left_alone_is_sent_next_to_nothing(serve: Serve, tab: OpenTab) -> None:
    site = serve(config={"usage_interval_s": 0.2})
    many(site, 33)
    one = tab(site.url).open()
    one.say("hello")
    sizes, _ = sent_to(one.page)

    def is_calm() -> bool:  # a reply that says nothing is little more than its headers
        sizes.clear()
        one.page.wait_for_timeout(2500)
        return bool(sizes) and max(sizes) < 1500

    until(is_calm, 30.0)  # once the answer is saved


def test_earlier_messages_leave_the_line_where_it_is(serve: Serve, tab: OpenTab) -> None:
    site = serve(context_limit_tokens=60_000)
    c = site.manager.create_conversation(LOCAL).conversation_id
    for number in range(40):
        site.manager.send(LOCAL, c, f"turn {number} " + "with words " * 30).wait(10**9, 0.0)
        until(lambda: site.manager.active_run(LOCAL, c) is None)
    one = tab(site.url).open(f"{site.url}/#{c}")
    expect(one.messages).to_have_count(30)
    button = one.page.get_by_role("button", name=re.compile("Show earlier"))
    one.page.locator("#kw-scroll").evaluate("(box) => { box.scrollTop = 0; }")
    line = one.page.locator(".message-row", has_text="turn 25 with").first
    before = line.bounding_box()
    button.click()
    expect(one.messages).to_have_count(60)
    one.page.wait_for_timeout(100)
    after = line.bounding_box()
    assert before is not None
    assert after is not None
    assert abs(before["y"] - after["y"]) < 4


def test_nothing_moves_and_nothing_hangs_while_an_answer_is_written(shared_site: Site, tab: OpenTab) -> None:
    text = "".join(f"Paragraph {n} has *some* `words` in it.\n\n- a\n- b\n\n" for n in range(30))
    shared_site.engine.answer, shared_site.engine.token_delay_s = lambda _: (*text.encode(), 256), 0.001
    one = tab(shared_site.url)
    one.page.add_init_script(WATCH)
    # On a slow computer more text comes at once, which moved what stands below it.
    one.page.context.new_cdp_session(one.page).send("Emulation.setCPUThrottlingRate", {"rate": 4})
    one.open()
    expect(one.by("process-memory")).not_to_be_empty()
    loaded = one.page.evaluate("window.seen")
    one.page.evaluate("Object.assign(window.seen, { shift: 0, moved: [] })")
    one.say("go")
    seen = one.page.evaluate("window.seen")
    assert seen["shift"] < 0.01, "\n".join(seen["moved"])
    assert loaded["shift"] < 0.05, "\n".join(loaded["moved"])


def test_words_say_what_they_mean(one: Tab) -> None:
    one.say("hello")
    receipt = one.messages.nth(1).locator(".kw-receipt")
    expect(receipt).to_have_text(re.compile(r"^[\d.]+ s · \d+ new, \d+ kept$"))
    receipt.click()
    word = one.messages.nth(1).locator(".kw-term", has_text="Kept")
    word.hover()
    hint = one.page.locator("#kw-hint")
    expect(hint).to_contain_text("keys and values (KV)")
    one.page.keyboard.press("Escape")
    expect(hint).to_be_hidden()
    one.page.locator(".kw-memory-here .kw-tier-word").first.focus()
    expect(hint).to_contain_text("Tier: device")
    one.page.keyboard.press("Escape")
    expect(hint).to_be_hidden()
    shown = one.page.locator("#kw").inner_text()
    for hard in ("KV", "device", "cold", "reserved", "read ahead", "NLL"):
        assert hard not in shown


def test_more_rows_are_offered_as_long_as_there_are_more(one: Tab, shared_site: Site) -> None:
    """Also if few of those that were asked for keep anything."""
    one.say("hello")
    many(shared_site, 60)
    one.say("hello again")  # the newest now
    one.new()
    one.say("another")
    one.by("memory-all").locator("summary").click()
    expect(one.by("memory-all").get_by_test_id("memory-row")).to_have_count(1)
    more = one.by("memory-all").get_by_role("button", name="Show more")
    expect(more).to_be_visible()
    more.click()
    expect(more).to_be_hidden()


def test_the_panel_stands_beside_the_chat_on_a_small_laptop(shared_site: Site, tab: OpenTab) -> None:
    one = tab(shared_site.url, viewport={"width": 1024, "height": 768}).open()
    one.say("hello")
    panel, chat = one.page.locator("#kw-right").bounding_box(), one.page.locator("#kw-centre").bounding_box()
    assert panel is not None
    assert chat is not None
    assert chat["x"] + chat["width"] <= panel["x"] + 1
    assert chat["width"] > 500
    assert panel["x"] + panel["width"] <= 1025


def test_time_left_is_shown_while_much_is_read(one: Tab, shared_site: Site) -> None:
    shared_site.engine.fed_token_delay_s = 0.0008
    one.write("read " * 800)
    label = one.page.locator(".kw-progress-label")
    expect(label).to_have_text(re.compile(r"^reading [\d,]+ of 4,\d+ tokens, about \d s left$"))
    one.by("stop").click()
    one.wait_idle()


def test_the_panels_figures_are_those_of_the_api(serve: Serve, tab: OpenTab) -> None:
    site = serve(config={"disk_kv_budget_bytes": 64 * MIB})
    one = tab(site.url).open()
    one.say("alpha " * 80)
    one.messages.nth(0).hover()
    one.messages.nth(0).get_by_test_id("edit").click()
    one.by("editor").fill("alpha " * 80 + "and beta " * 40)
    one.by("editor-send").click()
    expect(one.message(1)).to_contain_text("beta")
    one.wait_idle()
    until(lambda: site.manager.memory_row(LOCAL, one.page.url.split("#")[1]).disk_tokens > 700)
    c = one.page.url.split("#")[1]
    found = one.page.request.get(f"{site.url}/v1/sessions/{c}").json()
    card = one.by("memory-row")
    expect(card).to_contain_text(f"{found['tokens']:,} tokens long")
    disk = found["disk"]
    expect(card).to_contain_text(f"on disk{disk['branch_tokens']:,} tokens, {_size(disk['branch_bytes'])}")
    expect(card).to_contain_text(f"everything kept{disk['tokens']:,} tokens, {_size(disk['used_bytes'])}")
    listed = one.page.request.get(f"{site.url}/v1/sessions").json()["data"]
    assert [row["disk"] for row in listed if row["id"] == c] == [disk]


def _size(count: int) -> str:
    return f"{count / 1024:.1f} KiB" if count < 0.1 * MIB else f"{count / MIB:.1f} MiB"
