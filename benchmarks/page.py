"""How does the page feel? Long tasks and movement while an answer streams, bytes while it is left alone, waits.

    python -m benchmarks.page [--conversations 10000] [--messages 300]

The real page in Chromium with a scripted engine, so that only the page and its server are measured. Needs Chromium and
the tests' packages. `idle_mb_per_hour` counts requests and responses with their headers, over an hour of the page's
clock, with 33 conversations.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from benchmarks.report import finish, median, table
from tests.app.site import Site, Tab
from tests.polling import until

OWNER = "local"
LATENCY_MS = 400
STEP_MS = 2_500
HOUR_MS = 3_600_000
TEXT = "".join(
    f"## Part {n}\n\nA paragraph with *some* `code` and **more** words, of a length that is usual.\n\n"
    f"- one\n- two\n\n```py\nfor a in range({n}):\n    print(a)\n```\n\n| a | b |\n|---|--:|\n| x | {n} |\n\n"
    for n in range(12)
)
WATCH = """
window.seen = { shift: 0, longest: 0, tasks: 0 };
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.seen.shift += entry.value;
}).observe({ type: "layout-shift", buffered: true });
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    window.seen.tasks += 1;
    window.seen.longest = Math.max(window.seen.longest, entry.duration);
  }
}).observe({ type: "longtask", buffered: true });
"""
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--conversations", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=300)
    arguments = parser.parse_args()
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise SystemExit("Chromium is missing: install it with `apt-get install chromium`.")
    figures: Figures = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        figures |= answering(browser)
        figures |= left_alone(browser)
        figures |= entering(browser)
        figures |= opening(browser, arguments.messages)
        figures |= crowded(browser, arguments.conversations)
        browser.close()
    table(("figure", "value"), [(name, round(value, 4)) for name, value in figures.items()])
    finish("page", figures, "cpu", "scripted")


def answering(browser: Browser) -> Figures:
    """An answer of headings, lists, code and tables, at about 600 characters a second."""
    with site(answer=lambda _: (*TEXT.encode(), 256), token_delay_s=0.0016) as served, tab(browser, served) as one:
        began = time.perf_counter()
        one.open()
        ready_ms = (time.perf_counter() - began) * 1000
        one.page.wait_for_timeout(500)
        load = one.page.evaluate("({ ...window.seen })")
        one.page.evaluate("Object.assign(window.seen, { shift: 0, longest: 0, tasks: 0 })")
        one.write("go")
        one.wait_running()
        one.page.wait_for_selector("[data-testid=send]", timeout=120_000)
        answer = one.page.evaluate("window.seen")
    return {
        "ready_ms": ready_ms,
        "layout_shift_load": load["shift"],
        "longest_task_ms": answer["longest"],
        "long_tasks": answer["tasks"],
        "layout_shift_answer": answer["shift"],
    }


def left_alone(browser: Browser) -> Figures:
    """An hour of the page's clock in which nothing happens."""
    with site() as served, tab(browser, served) as one:
        many(served, 33)
        one.page.clock.install()
        one.open()
        one.say("hello")
        one.page.clock.run_for(10_000)
        one.page.wait_for_timeout(500)
        requests: list[Request] = []

        def finished(request: Request) -> None:  # Playwright takes no built-in function
            requests.append(request)

        one.page.on("requestfinished", finished)
        for _ in range(HOUR_MS // STEP_MS):
            one.page.clock.run_for(STEP_MS)
            one.page.wait_for_timeout(5)
        sizes = [request.sizes() for request in requests]
    sent = sum(one["requestHeadersSize"] + one["requestBodySize"] for one in sizes)
    got = sum(one["responseHeadersSize"] + one["responseBodySize"] for one in sizes)
    return {"idle_mb_per_hour": (sent + got) / 1e6, "idle_received_mb_per_hour": got / 1e6, "idle_requests": len(sizes)}


def entering(browser: Browser) -> Figures:
    """From Enter to the person's own message, and to the answer's first text, at two latencies of the network."""
    figures: Figures = {}
    for latency_ms in (0, LATENCY_MS):
        with site() as served, tab(browser, served) as one:
            one.open()
            one.say("hello")
            session = one.page.context.new_cdp_session(one.page)
            session.send("Network.enable")
            session.send(
                "Network.emulateNetworkConditions",
                {"offline": False, "latency": latency_ms, "downloadThroughput": -1, "uploadThroughput": -1},
            )
            own, first = [], []
            for number in range(5):
                count = one.messages.count()
                one.by("composer").fill(f"number {number}")
                own.append(took_ms(lambda: one.page.keyboard.press("Enter"), one, f"message-{count}"))
                began = time.perf_counter()
                expect(one.message(count + 1)).to_contain_text("You said")
                first.append(own[-1] + (time.perf_counter() - began) * 1000)
                one.wait_idle()
            figures[f"enter_to_message_ms_at_{latency_ms}"] = median(own)
            figures[f"enter_to_text_ms_at_{latency_ms}"] = median(first)
    return figures


def opening(browser: Browser, messages: int) -> Figures:
    """A long conversation: opening it, and showing all of it."""
    with site() as served, tab(browser, served) as one:
        c = served.manager.create_conversation(OWNER).conversation_id
        for number in range(messages // 2):
            served.manager.send(OWNER, c, f"turn {number}").wait(10**9, 0.0)
            until(lambda: served.manager.active_run(OWNER, c) is None)
        one.open()
        name = one.by("conversation").filter(has_text="turn 0").locator(".kw-open")
        name.wait_for()
        open_ms = took_ms(name.click, one, "message-29")
        earlier = one.page.locator(".kw-earlier-button")
        while earlier.is_visible():
            earlier.click()
            one.page.wait_for_timeout(200)
        one.page.evaluate("Object.assign(window.seen, { shift: 0, longest: 0, tasks: 0 })")
        one.by("composer").press_sequentially("a message of some words", delay=20)
        one.write("a long one")
        # Not with `expect`: while it waits, it writes down all that the page shows, which takes hundreds of ms.
        one.page.wait_for_selector("[data-testid=stop]")
        one.page.wait_for_selector("[data-testid=send]")
        return {f"open_{messages}_ms": open_ms, "longest_task_when_long_ms": one.page.evaluate("window.seen.longest")}


def crowded(browser: Browser, count: int) -> Figures:
    """A list of thousands of conversations."""
    with site() as served, tab(browser, served) as one:
        many(served, count)
        began = time.perf_counter()
        one.open()
        ready_ms = (time.perf_counter() - began) * 1000
        expect(one.by("conversation").first).to_be_visible()
        listed_ms = (time.perf_counter() - began) * 1000
        one.page.wait_for_selector(f'[aria-setsize="{count + 1}"]')  # all of them, the new one too
        longest_ms = one.page.evaluate("window.seen.longest")
        began = time.perf_counter()
        one.by("conversation").nth(5).locator(".kw-open").click()
        expect(one.by("title")).to_have_text(f"Conversation {count - 5}")  # below the new one
        open_ms = (time.perf_counter() - began) * 1000
    return {
        f"ready_{count}_ms": ready_ms,
        f"listed_{count}_ms": listed_ms,
        f"longest_task_loading_{count}_ms": longest_ms,
        f"open_among_{count}_ms": open_ms,
    }


def took_ms(act: Callable[[], object], one: Tab, test_id: str) -> float:
    began = time.perf_counter()
    act()
    one.page.wait_for_selector(f"[data-testid={test_id}]")
    return (time.perf_counter() - began) * 1000


def many(served: Site, count: int) -> None:
    """Adds empty conversations with titles, the last one the newest."""
    ids = [served.manager.create_conversation(OWNER).conversation_id for _ in range(1)]
    with served.store.database.write() as db:
        row = dict(next(db.query("SELECT * FROM conversations WHERE id = ?", ids)))
        db.execute("DELETE FROM conversations WHERE id = ?", ids)
        for number in range(count):
            named = {"id": f"{number:032x}", "title": f"Conversation {number}", "title_by": "person"}
            db["conversations"].insert(row | named | {"turn_number": number + 1})


@contextmanager
def site(**engine: object) -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder:
        served = Site(Path(folder), **engine)  # type: ignore[arg-type]
        try:
            yield served
        finally:
            served.close()


@contextmanager
def tab(browser: Browser, served: Site) -> Iterator[Tab]:
    page: Page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.add_init_script(WATCH)
    try:
        yield Tab(page, served.url)
    finally:
        page.context.close()


if __name__ == "__main__":
    main()
