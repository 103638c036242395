"""axe-core finds nothing at four widths, in both themes, with every panel, sheet, question and field open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.app.site import Site, Tab

pytestmark = pytest.mark.browser

ANSWER = """## Rivers

Text with `code`, **strong** words, a [link](https://example.invalid), $x^2$ and a note[^1].

- [x] done
- [ ] to do

| name | size |
|:--|--:|
| Rhine | 1,230 |

```python
def flows(n): return "down"  # always
```

> said

[^1]: The note.
"""
PHONE, TABLET, LAPTOP, WIDE = 360, 768, 1024, 1440
Check = Callable[[str], None]


@pytest.fixture
def check(one: Tab) -> Iterator[Check]:
    """`check(state)` runs axe on the page as it is. In the dark theme only what depends on colours is different, and is
    looked at where the page is narrowest and widest. At the end of the test what was found is shown, all together."""
    found: list[str] = []
    one.page.evaluate(Axe().axe_script)

    def run(state: str) -> None:
        width = (one.page.viewport_size or {"width": 0})["width"]
        look(f"{width} px, {state}", "light", {})
        if width in (PHONE, WIDE):
            look(f"{width} px, {state}", "dark", {"runOnly": ["color-contrast"]})

    def look(where: str, theme: str, rules: dict[str, Any]) -> None:
        one.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        report = one.page.evaluate("options => axe.run(document, options)", {"resultTypes": ["violations"], **rules})
        for violation in report["violations"]:
            targets = "; ".join(str(node["target"][0]) for node in violation["nodes"][:3])
            found.append(f"{where}, {theme}: {violation['id']} at {targets}")

    yield run
    one.page.evaluate("document.documentElement.dataset.theme = 'light'")
    assert found == []


@pytest.fixture(params=[PHONE, TABLET, LAPTOP, WIDE])
def width(one: Tab, request: pytest.FixtureRequest) -> Iterator[int]:
    before = one.page.viewport_size
    assert before is not None
    one.page.set_viewport_size({"width": request.param, "height": 900})
    yield request.param
    one.page.set_viewport_size(before)


def test_axe_finds_nothing(one: Tab, shared_site: Site, check: Check, width: int) -> None:
    check("empty")
    shared_site.engine.answer = lambda _: (*ANSWER.encode(), 256)
    one.say("Tell me about `rivers`")
    one.by("regenerate").click()
    expect(one.by("sibling")).to_have_text("2/2")
    one.wait_idle()
    one.page.locator(".kw-receipt").click()
    one.messages.first.hover()
    one.by("edit").click()
    if width >= LAPTOP:
        open_folds(one)
    check("chat, receipt, editor")
    one.page.keyboard.press("Escape")

    one.page.locator("#kw-open-settings").click()
    one.page.locator("#kw-set-temperature input").fill("hot")
    one.page.locator("#kw-settings-save").click()
    expect(one.page.locator("#kw-settings-note")).to_contain_text("Not saved")
    one.page.keyboard.press("Escape")  # asks what becomes of the change
    check("settings")
    one.page.get_by_role("button", name="Discard changes").click()

    if width <= TABLET:
        one.page.locator("#kw-toggle-left").click()
    row = one.by("conversation").first
    row.hover()
    row.get_by_test_id("delete").click()
    check("deleting")
    one.page.keyboard.press("Escape")
    one.by("search").fill("Rhine")
    expect(one.page.locator(".kw-row-found")).to_be_visible()
    row.hover()
    row.get_by_test_id("rename").click()
    check("search, renaming")
    one.page.keyboard.press("Escape")
    one.by("search").fill("")
    if width <= TABLET:
        one.page.get_by_role("button", name="Close conversations").click()

    if width < LAPTOP:
        one.page.locator("#kw-toggle-right").click()
        open_folds(one)
        check("memory")
        one.page.get_by_role("button", name="Close memory").click()


def open_folds(one: Tab) -> None:
    for fold in ("memory-all", "memory-log"):
        if not one.by(fold).evaluate("fold => fold.open"):
            one.by(fold).locator("summary").click()
