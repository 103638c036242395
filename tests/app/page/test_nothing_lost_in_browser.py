"""What a person wrote, chose or asked for is not lost silently: settings, drafts, addresses, running answers."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import expect

from tests.app.site import Site, Tab

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]


def beside(one: Tab) -> Tab:
    """Another tab of the same browser."""
    return Tab(one.page.context.new_page(), one.url)


def open_settings(one: Tab) -> None:
    one.page.locator("#kw-open-settings").click()
    expect(one.page.locator("#kw-settings")).to_be_visible()


def save(one: Tab, **fields: str) -> None:
    open_settings(one)
    for name, value in fields.items():
        one.page.locator(f"#kw-set-{name.replace('_', '-')}").locator("input, textarea").fill(value)
    one.page.locator("#kw-settings-save").click()
    expect(one.page.locator("#kw-settings-note")).to_have_text(re.compile("^Saved"))
    one.page.keyboard.press("Escape")
    expect(one.page.locator("#kw-settings")).to_be_hidden()


def shown_setting(one: Tab, name: str) -> str:
    open_settings(one)
    value = one.page.locator(f"#kw-set-{name}").locator("input, textarea").input_value()
    one.page.keyboard.press("Escape")
    return value


def test_settings_of_an_empty_conversation_stay(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve().url).open()
    save(one, system_prompt="Be brief.", temperature="0.25")
    one.reload()
    assert shown_setting(one, "system-prompt") == "Be brief."
    one.open()  # the address of the page, not of the conversation
    assert shown_setting(one, "system-prompt") == "Be brief."
    one.by("new").click()
    assert shown_setting(one, "temperature") == "0.25"
    other = beside(one).open()
    other.write("from the other tab")
    expect(other.message(1)).to_contain_text("from the other tab")
    expect(one.by("conversation")).to_have_count(2)
    assert shown_setting(one, "system-prompt") == "Be brief."
    expect(one.messages).to_have_count(0)
    one.page.close()
    assert shown_setting(beside(other).open(), "system-prompt") == "Be brief."  # no tab shows it any more


def test_a_message_into_a_deleted_conversation_is_answered_and_kept(one: Tab, shared_site: Site) -> None:
    one.say("alpha")
    old = one.page.url
    shared_site.manager.delete("local", old.split("#")[1])
    one.write("beta")
    expect(one.by("problem")).to_have_text(re.compile("deleted in another tab .* still here"))
    expect(one.by("composer")).to_have_value("beta")
    expect(one.message(1)).to_have_text("You said: alpha")  # what is shown can still be copied
    one.page.get_by_role("button", name="Continue in a new conversation").click()
    expect(one.by("welcome")).to_be_visible()
    expect(one.by("composer")).to_have_value("beta")
    assert one.page.url != old
    one.page.keyboard.press("Enter")
    expect(one.message(1)).to_have_text("You said: beta")


def test_a_conversation_deleted_elsewhere_is_said_before_anything_is_written(one: Tab, shared_site: Site) -> None:
    one.say("alpha")
    where = one.page.url
    shared_site.manager.delete("local", where.split("#")[1])
    expect(one.by("problem")).to_contain_text("deleted in another tab")
    expect(one.message(1)).to_have_text("You said: alpha")


def test_a_conversation_deleted_here_is_not_called_deleted_elsewhere(one: Tab, shared_site: Site) -> None:
    one.page.evaluate(
        """() => { window.said = []; new MutationObserver(() =>
           window.said.push(document.querySelector('[data-testid=problem]').textContent))
           .observe(document.querySelector('[data-testid=problem]'), {childList: true, subtree: true}) }"""
    )
    one.say("alpha")
    one.by("conversation").first.hover()
    one.by("delete").first.click()
    one.by("delete-sure").click()
    expect(one.by("welcome")).to_be_visible()
    one.page.wait_for_timeout(300)
    assert "deleted" not in "".join(one.page.evaluate("window.said"))


def test_an_answer_whose_conversation_is_deleted_elsewhere_ends(one: Tab, shared_site: Site) -> None:
    shared_site.engine.token_delay_s = 0.02
    one.write("a long one")
    one.wait_running()
    shared_site.manager.delete("local", one.page.url.split("#")[1])
    one.wait_idle()
    expect(one.by("problem")).to_contain_text("deleted in another tab")


def test_an_address_survives_the_log_in_and_a_log_out_reaches_every_tab(serve: Serve, tab: OpenTab) -> None:
    site = serve(password="a kettle")
    one = tab(site.url)
    one.page.goto(site.url)
    one.log_in("a kettle")
    one.wait_ready()
    one.say("alpha")
    where = one.page.url
    one.new()
    one.by("composer").fill("half a thought")
    other = beside(one).open(where)
    expect(other.message(0)).to_have_text("alpha")
    other.page.get_by_role("button", name="Log out").click()
    other.page.get_by_role("button", name="Log out", exact=True).click()
    expect(other.page.get_by_label("Password")).to_be_visible()
    expect(one.page.get_by_role("alert")).to_contain_text("You were logged out in another tab")
    expect(one.page.locator("body")).not_to_contain_text("half a thought")
    one.log_in("wrong")
    expect(one.page.get_by_role("alert")).to_have_text("This is not the password.")
    one.log_in("a kettle")
    one.wait_ready()
    expect(one.by("composer")).to_have_value("half a thought")
    other.page.goto("about:blank")
    other.page.context.clear_cookies(name="keepwarm_login")
    other.page.goto(where)
    expect(other.page.get_by_label("Password")).to_be_visible()
    other.log_in("a kettle")
    other.wait_ready()
    expect(other.message(0)).to_have_text("alpha")
    assert other.page.url == where


def test_a_log_out_reaches_another_device_that_is_looked_at(serve: Serve, tab: OpenTab) -> None:
    site = serve(password="a kettle")
    one, other = tab(site.url), tab(site.url)
    one.page.goto(site.url)
    one.log_in("a kettle")
    one.wait_ready().say("alpha")
    other.page.context.add_cookies(one.page.context.cookies())  # type: ignore[arg-type]
    other.open(one.page.url)
    expect(other.message(1)).to_have_text("You said: alpha")
    one.page.get_by_role("button", name="Log out").click()
    one.page.get_by_role("button", name="Log out", exact=True).click()
    expect(one.page.get_by_label("Password")).to_be_visible()
    look(other)
    expect(other.page.get_by_role("alert")).to_contain_text("on another device")
    expect(other.page.locator("body")).not_to_contain_text("alpha")
    other.page.go_back()
    expect(other.page.locator("body")).not_to_contain_text("alpha")


def look(one: Tab) -> None:
    """Has the page ask for news at once, as when a person comes back to its tab."""
    one.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    one.page.wait_for_timeout(150)


def test_without_a_network_what_was_written_stays(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve().url).open()
    one.say("alpha")
    one.page.context.set_offline(True)
    one.write("beta")
    expect(one.by("problem")).to_contain_text("The server does not answer. What you wrote is still here")
    expect(one.by("composer")).to_have_value("beta")
    expect(one.message(1)).to_have_text("You said: alpha")
    one.page.context.set_offline(False)
    one.page.keyboard.press("Enter")
    expect(one.message(3)).to_have_text("You said: beta")
    expect(one.page.locator(".kw-problem-box")).to_be_hidden()


def test_an_open_tab_goes_on_after_a_restart_of_the_server(serve: Serve, tab: OpenTab) -> None:
    site = serve()
    one = tab(site.url).open()
    one.say("alpha")
    one.by("composer").fill("half a thought")
    site.close()
    for _ in range(3):
        look(one)
    expect(one.by("problem")).to_contain_text("The server does not answer")
    expect(one.message(1)).to_have_text("You said: alpha")
    serve(port=int(site.url.rpartition(":")[2]))
    look(one)
    expect(one.page.locator(".kw-problem-box")).to_be_hidden()
    one.by("composer").press("Enter")
    expect(one.message(3)).to_have_text("You said: half a thought")
    one.reload()
    expect(one.message(3)).to_have_text("You said: half a thought")


def test_a_programs_limits_are_not_the_persons(one: Tab, shared_site: Site) -> None:
    body = {"model": "Scripted-1B", "messages": [{"role": "user", "content": "Hello"}], "prompt_cache_key": "mine"}
    limits = {"max_tokens": 4, "stop": [" nothing"], "temperature": 0.25}
    httpx.post(f"{shared_site.url}/v1/chat/completions", json={**body, **limits}, timeout=30).raise_for_status()
    one.choose("Hello")
    one.write("say it all")
    expect(one.message(3)).to_have_text("You said: say it all")
    assert shown_setting(one, "max-new-tokens") == "512"
    assert shown_setting(one, "stop-strings") == ""


def test_escape_stops_an_answer_only_from_the_chat(one: Tab, shared_site: Site) -> None:
    shared_site.engine.token_delay_s = 0.02
    one.say("alpha")
    one.write("a long one")
    expect(one.message(3)).to_contain_text("word1")
    one.page.keyboard.press("Control+k")
    expect(one.by("search")).to_be_focused()
    one.page.keyboard.press("Escape")  # in the empty search field
    one.wait_running()
    row = one.by("conversation").first
    row.hover()
    row.get_by_test_id("rename").click()
    one.page.keyboard.press("Escape")
    row.get_by_test_id("open").focus()
    one.page.keyboard.press("Escape")
    open_settings(one)
    one.page.keyboard.press("Escape")
    expect(one.page.locator("#kw-settings")).to_be_hidden()
    one.wait_running()
    one.by("composer").focus()
    one.page.keyboard.press("Escape")
    one.wait_idle()
    expect(one.messages.nth(3)).to_contain_text("Stopped")


@pytest.mark.parametrize("way", ["Escape", "Close settings", "beside"])
def test_every_way_out_of_unsaved_settings_asks(one: Tab, way: str) -> None:
    open_settings(one)
    sheet = one.page.locator("#kw-settings")
    one.page.locator("#kw-set-seed input").fill("7")
    if way == "Escape":
        one.page.keyboard.press("Escape")
    elif way == "beside":
        one.page.mouse.click(700, 880)
    else:
        sheet.get_by_role("button", name=way).click()
    expect(sheet.get_by_role("alertdialog")).to_be_visible()
    one.page.keyboard.press("Enter")  # "Keep editing" has the focus
    expect(sheet.get_by_role("alertdialog")).to_be_hidden()
    expect(one.page.locator("#kw-set-seed input")).to_have_value("7")
    one.page.keyboard.press("Escape")
    sheet.get_by_role("button", name="Discard changes").click()
    expect(sheet).to_be_hidden()
    assert shown_setting(one, "seed") == ""


def test_settings_are_saved_for_the_conversation_that_they_were_opened_in(one: Tab, shared_site: Site) -> None:
    one.say("alpha")
    alpha = one.page.url.split("#")[1]
    one.new()
    one.say("beta")
    beta = one.page.url.split("#")[1]
    open_settings(one)
    one.page.locator("#kw-set-system-prompt textarea").fill("For beta.")
    one.page.go_back()
    expect(one.by("title")).to_have_text("alpha")
    expect(one.page.locator("#kw-settings h2")).to_have_text("Settings of “beta”")
    one.page.locator("#kw-settings-save").click()
    expect(one.page.locator("#kw-settings-note")).to_have_text(re.compile("^Saved"))
    prompts = [shared_site.manager.view("local", c).settings.system_prompt for c in (alpha, beta)]
    assert prompts == ["", "For beta."]


def test_wrong_settings_are_marked_at_their_fields(one: Tab) -> None:
    open_settings(one)
    wrong = {"seed": "1.5", "top-k": "2.5", "max-new-tokens": "999999", "temperature": "warm"}
    for name, value in wrong.items():
        one.page.locator(f"#kw-set-{name} input").fill(value)
    one.page.locator("#kw-settings-save").click()
    for name, value in wrong.items():
        field = one.page.locator(f"#kw-set-{name}")
        expect(field.get_by_role("alert")).to_contain_text(re.compile("whole number|at most 8,192|a number like"))
        expect(field.locator("input")).to_have_attribute("aria-invalid", "true")
        expect(field.locator("input")).to_have_value(value)
    expect(one.page.locator("#kw-settings-note")).to_have_text(re.compile("^Not saved"))
    expect(one.page.locator("#kw-set-temperature input")).to_be_focused()  # the first of them
    for name in wrong:
        one.page.locator(f"#kw-set-{name} input").fill("1")
    one.page.locator("#kw-set-system-prompt textarea").fill("too long " * 2000)
    one.page.locator("#kw-settings-save").click()
    expect(one.page.locator("#kw-set-system-prompt").get_by_role("alert")).to_contain_text("system prompt")
    one.page.locator("#kw-set-system-prompt textarea").fill("")
    one.page.locator("#kw-set-seed input").fill(str(2**63 - 1))  # more than a script's numbers hold
    one.page.locator("#kw-settings-save").click()
    expect(one.page.locator("#kw-settings-note")).to_have_text(re.compile("^Saved"))
    one.page.keyboard.press("Escape")
    assert shown_setting(one, "seed") == str(2**63 - 1)
