"""The memory panel by mouse, by keyboard and on a phone, on all tiers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from tests.app.site import Site, Tab

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]
MIB = 1024 * 1024
TIERS: dict[str, Any] = {"disk_kv_budget_bytes": 64 * MIB, "host_kv_budget_bytes": 16 * MIB}


def card(one: Tab, title: str) -> Locator:
    return one.by("memory-row").filter(has_text=title)


def tier_of(one: Tab, title: str) -> Locator:
    return card(one, title).locator(".kw-card-head .kw-tier-word")


def unfold(one: Tab, test_id: str) -> None:
    one.by(test_id).locator("summary").click()


def test_every_button_does_what_it_says(serve: Serve, tab: OpenTab) -> None:
    site = serve(config={**TIERS, "usage_interval_s": 600})
    one = tab(site.url).open()
    one.say("alpha " * 50)
    alpha = card(one, "alpha")
    expect(tier_of(one, "alpha")).to_have_text("in memory")
    expect(one.by("plot")).to_contain_text("max: ")  # ends with what is held now, whenever the last point was recorded
    unfold(one, "memory-log")
    places = (("host", "set aside in memory"), ("warm", "in memory"), ("disk", "on disk"), ("warm", "in memory"))
    for button, tier in places:
        alpha.get_by_test_id(button).click()
        expect(tier_of(one, "alpha")).to_have_text(tier)
    alpha.get_by_test_id("pin").click()
    expect(alpha.locator(".kw-pinned")).to_be_visible()
    expect(alpha.get_by_test_id("drop")).to_be_disabled()
    expect(one.by("device-total")).to_contain_text("pinned")
    alpha.get_by_test_id("unpin").click()
    alpha.get_by_test_id("verify").click()
    expect(alpha.get_by_test_id("check")).to_contain_text("Its memory is correct (")
    alpha.get_by_test_id("drop").click()
    expect(tier_of(one, "alpha")).to_have_text("not kept")
    for words in (
        "Moved alpha",
        "back from ",  # host memory or a copy on disk, whichever was faster on this machine
        "from disk",
        "Pinned alpha",
        "Checked alpha",
        "Forgot what alpha",
    ):
        expect(one.by("log")).to_contain_text(words)
    expect(one.by("plot").get_by_role("img")).to_have_attribute("aria-label", re.compile("Bytes held over the last"))
    assert site.manager.memory_view("local").disk_used_bytes == 0


def test_damage_is_seen_without_opening_anything(serve: Serve, tab: OpenTab) -> None:
    site = serve(config=TIERS)
    one = tab(site.url).open()
    one.say("alpha " * 50)
    expect(card(one, "alpha")).to_contain_text("on disk")  # saved
    one.new()
    one.say("beta")
    unfold(one, "memory-all")
    alpha = card(one, "alpha")
    expect(alpha.get_by_test_id("verify")).to_have_count(0)
    kv = max(site.engine.alive, key=lambda one: len(one.marks))  # the longest: that of alpha
    kv.marks[40] ^= 1
    alpha.get_by_test_id("more").click()
    alpha.get_by_test_id("verify").click()
    alpha.get_by_test_id("more").click()
    expect(alpha.get_by_test_id("check")).to_contain_text("Its memory on the device was wrong from token 41 on")
    expect(tier_of(one, "alpha")).to_have_text("on disk")


def test_by_keyboard_and_with_names(serve: Serve, tab: OpenTab) -> None:
    site = serve(config=TIERS, fed_token_delay_s=0.002)
    one = tab(site.url).open()
    one.say("alpha " * 50)
    toggle = card(one, "alpha").get_by_test_id("more")
    expect(toggle).to_have_attribute("aria-expanded", "true")
    expect(toggle).to_have_accessible_name(re.compile("^Less about the memory of alpha"))
    toggle.focus()
    pin = card(one, "alpha").get_by_test_id("pin")
    for _ in range(14):  # past the words with a sentence behind them
        one.page.keyboard.press("Tab")
        if pin.evaluate("(node) => node === document.activeElement"):
            break
    expect(pin).to_be_focused()
    for _ in range(3):
        one.page.keyboard.press("Tab")
    verify = card(one, "alpha").get_by_test_id("verify")
    expect(verify).to_be_focused()
    expect(verify).to_have_accessible_name(re.compile("^Check: alpha"))
    expect(verify).to_have_accessible_description(re.compile("Memory that disagrees is dropped"))
    one.page.keyboard.press("Enter")
    check = card(one, "alpha").get_by_test_id("check")
    expect(check).to_contain_text(re.compile(r"Reading [\d,]+ of \d+ tokens again"))
    expect(check).to_contain_text("Its memory is correct (")
    expect(card(one, "alpha").locator(":focus")).to_have_count(1)  # not lost to the redrawing
    card(one, "alpha").get_by_test_id("more").press("Enter")
    expect(card(one, "alpha").get_by_test_id("verify")).to_have_count(0)
    expect(card(one, "alpha").get_by_test_id("more")).to_be_focused()


def test_what_is_refused_is_said(serve: Serve, tab: OpenTab) -> None:
    site = serve(config={**TIERS, "device_kv_budget_bytes": 6 * MIB})  # half of it may be pinned
    one = tab(site.url).open()
    one.say("alpha " * 400)  # two thirds of what may be pinned
    card(one, "alpha").get_by_test_id("pin").click()
    one.new()
    one.say("beta " * 400)
    card(one, "beta").get_by_test_id("pin").click()
    expect(one.by("problem")).to_contain_text("are pinned already; 3.0 MiB may be pinned")


def test_the_panel_is_pushed_with_a_run(serve: Serve, tab: OpenTab) -> None:
    """Reserved bytes appear while the answer is written, without waiting for the slow poll."""
    site = serve(config=TIERS, token_delay_s=0.01)
    one = tab(site.url).open()
    one.write("a long one")
    expect(one.by("device-total")).to_contain_text(re.compile(r"[\d.]+ [KM]iB set aside"), timeout=2500)
    expect(card(one, "a long one").get_by_test_id("drop")).to_be_disabled()
    one.by("stop").click()
    one.wait_idle()
    expect(one.by("device-total")).not_to_contain_text("set aside")


PLACES = """() => [...document.querySelectorAll(
    "#kw-memory :is(h3, summary, .kw-total, .kw-trend, .kw-process, .kw-saved)")]
  .map((one) => `${one.localName} ${one.className} ${Math.round(one.getBoundingClientRect().top)}`)"""


@pytest.mark.parametrize("width", [1024, 1440])
def test_nothing_in_the_panel_moves_from_the_empty_page_to_the_second_answer(
    serve: Serve, tab: OpenTab, width: int
) -> None:
    site = serve(config={"disk_kv_budget_bytes": 64 * MIB, "usage_interval_s": 0.1}, token_delay_s=0.002)
    one = tab(site.url, viewport={"width": width, "height": 800}).open()
    expect(one.by("process-memory")).not_to_be_empty()
    places = one.page.evaluate(PLACES)
    for text in ("a long one", "another long one"):
        one.write(text)
        expect(one.by("device-total")).to_contain_text("set aside for answers")
        assert one.page.evaluate(PLACES) == places
        one.wait_idle()
        expect(card(one, "a long one")).to_contain_text(re.compile(r"on disk[\d,]+ tokens"))
        assert one.page.evaluate(PLACES) == places
    expect(one.by("saved")).to_contain_text("tokens not read again")
    assert one.page.evaluate(PLACES) == places


def test_when_it_was_used_last_grows_older_by_itself(shared_site: Site, tab: OpenTab) -> None:
    one = tab(shared_site.url)
    one.page.clock.install()
    one.open()
    one.say("alpha")
    expect(card(one, "alpha")).to_contain_text("last usedjust now")
    one.page.context.set_offline(True)  # nothing else is news
    one.page.clock.fast_forward(190_000)
    expect(card(one, "alpha")).to_contain_text("last used3 min ago")


def test_on_a_phone(serve: Serve, tab: OpenTab) -> None:
    site = serve(config=TIERS)
    one = tab(site.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True).open()
    one.say("alpha " * 50)
    one.page.locator("#kw-toggle-right").click()
    expect(card(one, "alpha").get_by_test_id("verify")).to_be_visible()
    for button in card(one, "alpha").get_by_role("button").all():
        box = button.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 360
    card(one, "alpha").get_by_test_id("disk").tap()
    expect(tier_of(one, "alpha")).to_have_text("on disk")
