"""Makes the pictures of the README and the docs: the real page with the shipped model in a real Chromium.

    make screenshots

Look at every one of them before it is committed.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = DOCS / "images"
DESKTOP, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
ANSWER_MS = 120_000
TALKS = (
    ("Give me three names for a small grey cat.",),
    ("What is a prime number?",),
    (
        "Tell me two facts about rivers.",
        "Give me five ideas for a rainy afternoon at home.",
        "Write a Python function that reverses a string, with an example.",
    ),
)


def main() -> None:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise SystemExit("Chromium is missing: install it with `apt-get install chromium`.")
    PICTURES.mkdir(exist_ok=True)
    with served() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        where = talk(browser, url)
        for draw in (lambda theme: desktop(browser, where, theme), lambda theme: phone(browser, url, where, theme)):
            draw("light")
            draw("dark")
        browser.close()


@contextmanager
def served() -> Iterator[str]:
    """`keepwarm serve` with the shipped model and an empty data directory. Yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "app", "serve", "--port", "0", "--data-dir", f"{folder}/data"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="")
                if found := re.search(r"Keepwarm is ready: (\S+)", line):
                    yield found[1]
                    break
            else:
                raise SystemExit("The server ended before it was ready.")
        finally:
            process.terminate()
            process.communicate(timeout=60)


def talk(browser: Browser, url: str) -> str:
    """Holds the conversations. Returns the address of the last one."""
    page = opened(browser, url, DESKTOP, "light")
    for number, messages in enumerate(TALKS):
        if number:
            page.get_by_test_id("new").click()
            page.wait_for_selector("[data-testid=welcome]:visible")
        for message in messages:
            page.get_by_test_id("composer").fill(message)
            page.keyboard.press("Enter")
            page.wait_for_selector("[data-testid=stop]")
            page.wait_for_selector("[data-testid=send]", timeout=ANSWER_MS)
    page.wait_for_timeout(6_000)  # what was kept is saved meanwhile, and the plot has a few points
    where = page.url
    page.context.close()
    return where


def desktop(browser: Browser, where: str, theme: str) -> None:
    """The last conversation between both sidebars."""
    page = opened(browser, where, DESKTOP, theme)
    keep(page, DOCS / "screenshot.webp" if theme == "light" else PICTURES / f"desktop-{theme}.webp")
    if theme == "light":
        page.locator(".kw-receipt").last.click()
        page.locator(".kw-receipt-details:visible").scroll_into_view_if_needed()
        keep(page, PICTURES / "receipt.webp")
    page.context.close()


def phone(browser: Browser, url: str, where: str, theme: str) -> None:
    """The empty state, the chat, and the memory over it, side by side."""
    page = opened(browser, url, PHONE, theme, is_phone=True)
    shots = [shot(page)]
    page.goto("about:blank")
    page.goto(where)
    page.wait_for_selector("html[data-keepwarm=ready]")
    page.wait_for_timeout(1_000)
    shots.append(shot(page))
    page.locator("#kw-toggle-right").click()
    page.wait_for_timeout(1_000)
    shots.append(shot(page))
    page.context.close()
    gap = 24
    ground = (226, 222, 212) if theme == "light" else (60, 56, 52)
    whole = Image.new("RGB", (sum(one.width for one in shots) + gap * 4, shots[0].height + gap * 2), ground)
    left = gap
    for one in shots:
        whole.paste(one, (left, gap))
        left += one.width + gap
    save(whole, PICTURES / f"phone-{theme}.webp")


def opened(browser: Browser, url: str, size: dict[str, int], theme: str, is_phone: bool = False) -> Page:
    context = browser.new_context(
        viewport=size,  # type: ignore[arg-type]
        color_scheme=theme,  # type: ignore[arg-type]
        is_mobile=is_phone,
        has_touch=is_phone,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("html[data-keepwarm=ready]")
    page.wait_for_timeout(1_500)  # the sidebars are filled
    return page


def shot(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def keep(page: Page, path: Path) -> None:
    save(shot(page), path)


def save(image: Image.Image, path: Path) -> None:
    """Every colour as it is, in a third of the bytes that a PNG takes."""
    image.save(path, lossless=True, method=6)
    print(f"{path}: {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
