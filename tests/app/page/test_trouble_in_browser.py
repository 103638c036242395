"""The page while nothing can be stored: it shows a sentence at its top, and typed text stays where it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.app.site import Site, Tab

pytestmark = pytest.mark.browser


def test_a_data_directory_that_disappears_and_returns(
    serve: Callable[..., Site], tab: Callable[..., Tab], tmp_path: Path
) -> None:
    site = serve(token_delay_s=0.02)
    one = tab(site.url).open()
    one.say("Hello there")
    expect(one.by("trouble")).to_be_hidden()
    site.engine.token_delay_s = 0.1  # so that it still runs when the directory is gone
    one.write("Are you still there")
    one.wait_running()
    (tmp_path / "data").rename(tmp_path / "away")
    expect(one.by("trouble")).to_contain_text("New messages cannot be stored now, so none are answered. The file ")
    site.engine.token_delay_s = 0.0
    one.wait_idle()
    expect(one.message(-1)).to_contain_text("You said: Are you still there")
    expect(one.messages.nth(3)).to_contain_text("Not stored yet: it is kept in memory until it can be.")

    one.write("And now?")
    expect(one.page.locator("#kw-composer")).to_contain_text("deleted or replaced while the server was running")
    expect(one.by("composer")).to_have_value("And now?")
    expect(one.messages).to_have_count(4)

    (tmp_path / "away").rename(tmp_path / "data")
    expect(one.by("trouble")).to_be_hidden()
    one.page.keyboard.press("Enter")
    expect(one.messages).to_have_count(6)
    one.wait_idle()
    expect(one.message(-1)).to_contain_text("You said: And now?")
    expect(one.messages.nth(3)).not_to_contain_text(re.compile("Not stored"))
    one.reload()
    expect(one.message(3)).to_contain_text("You said: Are you still there")
