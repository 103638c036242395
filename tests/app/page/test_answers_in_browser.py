"""Nothing that a model writes becomes its own element, attribute, request or script (real Chromium)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import expect

from app.page.markdown.growing import GrowingAnswer
from tests.app.page.markdown.hostile import ANSWERS, PAYLOADS, documents
from tests.app.page.markdown.trees import MATH, PARSER
from tests.app.site import Site, Tab

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]

PLAIN = (
    *("p", "blockquote", "ul", "li", "thead", "tbody", "tr", "table", "hr", "br", "em", "strong", "s"),
    *("h1", "h2", "h3", "h4", "h5", "h6"),
)
# Element -> attributes, and what their values must look like.
ALLOWED: dict[str, dict[str, str]] = {
    **{tag: {"dir": "auto"} for tag in PLAIN},
    "ol": {"start": r"\d{1,9}", "dir": "auto"},
    "code": {},
    "pre": {"tabindex": "0"},
    "sup": {},
    "div": {"class": "kw-table|kw-code|kw-note-text", "tabindex": "0", "dir": "auto|ltr"},
    "td": {"class": "(kw-align-(left|center|right))?( ?kw-wide)?", "dir": "auto"},
    "th": {"class": "(kw-align-(left|center|right))?( ?kw-wide)?", "scope": "col"},
    "a": {
        "href": r"(https?://|mailto:)[^\s<>\"]+",
        "rel": "noopener noreferrer",
        "target": "_blank",
        "referrerpolicy": "no-referrer",
        "class": "kw-picture",
        "dir": "auto",
        "title": "Picture, not loaded: .*",
    },
    "span": {
        "class": "token (comment|string|number|keyword|function|class-name)|kw-task|kw-math(-source)?( kw-math-block)?",
        "role": "checkbox",
        "aria-checked": "true|false",
        "aria-disabled": "true",
        "aria-label": "done|to do",
        "tabindex": "0",
        "title": r"[\s\S]*",  # a formula's source, shown as text by the browser
        "dir": "auto",
    },
    "button": {
        "type": "button",
        "class": "kw-code-copy|kw-note-link",
        "aria-label": "Copy code",
        "title": "Copy code|Show the note",
    },
    "math": {"display": "block"},
    **{tag: {".*": r"true|false|normal|box|prefix|infix|postfix|[0-2]|[0-3]?(\.\d+)?em"} for tag in MATH},
}
OWN_ROUTES = ("/ask", "/keepwarm/")

# Draws blocks in a row of the real thread; gives what is not allowed, and what the drawing looks like.
DRAW = """
async ({ steps, allowed }) => {
  const { drawAnswer } = await import("/keepwarm/answer.js");
  const thread = document.querySelector(".kw-thread");
  thread.innerHTML = '<div class="message-row bot-row"><div class="kw-message"><div class="md"></div></div></div>';
  const body = thread.querySelector(".md");
  for (const blocks of steps) drawAnswer(body, blocks);
  const grown = body.innerHTML;
  const wrong = [];
  const fits = (pattern, text) => new RegExp(`^(?:${pattern})$`).test(text);
  for (const node of body.querySelectorAll("*")) {
    const tag = node.localName;
    const rules = allowed[tag];
    const space = node.namespaceURI.split("/").at(-1);
    if (!rules || space === "svg") wrong.push(`<${space}:${tag}>`);
    else for (const { name, value } of node.attributes) {
      const rule = Object.entries(rules).find(([known]) => fits(known, name));
      if (!rule || !fits(rule[1], value)) wrong.push(`<${tag} ${name}="${value}">`);
    }
    const { position } = getComputedStyle(node);
    if (position !== "static" && !(tag === "div" && node.className === "kw-code") && tag !== "button") {
      wrong.push(`${tag} is ${position}`);
    }
  }
  const box = document.getElementById("kw-scroll").getBoundingClientRect();
  const outside = body.getBoundingClientRect();
  if (outside.left < box.left || outside.right > box.right + 1) wrong.push("wider than the page");
  const fresh = document.createElement("div");
  drawAnswer(fresh, steps.at(-1));
  if (fresh.innerHTML !== grown) wrong.push(`grown: ${grown}\\nfresh: ${fresh.innerHTML}`);
  const text = body.textContent;
  thread.replaceChildren();
  return { wrong, hacked: window.hacked ?? null, text };
}
"""


def steps_of(document: str, cuts: list[int]) -> list[list[str]]:
    growing = GrowingAnswer(PARSER)
    return [
        [block.json for block in growing.draw(document[:end])]
        for end in [*sorted(min(cut, len(document)) for cut in cuts), len(document)]
    ]


def holds(tab: Tab, document: str, cuts: list[int]) -> None:
    found: dict[str, Any] = tab.page.evaluate(DRAW, {"steps": steps_of(document, cuts), "allowed": ALLOWED})
    assert found["wrong"] == []
    assert found["hacked"] is None


def only_own_requests(tab: Tab, since: int) -> None:
    """No request to another host, and none to a route that the page does not need."""
    for url in tab.requests[since:]:
        parts = urlsplit(url)
        assert url.startswith(tab.url)
        assert parts.path.startswith(OWN_ROUTES) or parts.path == "/health"


def try_many(serve: Serve, tab: OpenTab, examples: int) -> None:
    one = tab(serve().url).open()
    since = len(one.requests)
    for text in (*ANSWERS.values(), *PAYLOADS):
        holds(one, text, list(range(1, len(text), 7)))

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(documents, st.lists(st.integers(0, 400), max_size=6))
    def any_document_holds(document: str, cuts: list[int]) -> None:
        holds(one, document, cuts)

    any_document_holds()
    only_own_requests(one, since)
    assert (
        one.page.evaluate(
            "document.querySelectorAll('#kw :is(iframe, object, embed, video, audio, base, img, script)').length"
        )
        == 0
    )


def test_nothing_but_allowed_elements(serve: Serve, tab: OpenTab) -> None:
    try_many(serve, tab, 150)


@pytest.mark.long
def test_nothing_but_allowed_elements_long(serve: Serve, tab: OpenTab) -> None:
    try_many(serve, tab, 5_000)


def test_a_forged_tree_is_held_by_the_page_alone(one: Tab) -> None:
    """The page has its own list: even a deceived server could not make it build anything else."""
    evil = "javascript:window.hacked=1"
    forged = [
        ["script", {}, ["window.hacked=1"]],
        ["img", {"src": "x", "onerror": "window.hacked=2"}, []],
        ["svg", {}, [["a", {"href": evil}, ["x"]]]],
        ["link", {"href": evil, "onclick": evil}, ["x"]],
        ["link", {"href": " \\tjavascript:window.hacked=1"}, ["x"]],
        ["link", {"href": "http://leak.invalid", "style": "position:fixed", "ping": "http://leak.invalid"}, ["x"]],
        ["paragraph", {"style": "position:fixed", "id": "kw", "onmouseover": evil}, ["x"]],
        ["code_block", {"onload": evil}, [["token", {"class": "kw-backdrop"}, ["x"]]]],
        ["math", {"display": "block", "href": evil}, [["mrow", {"href": evil, "style": "x", "width": "4000em"}, []]]],
        ["mi", {"onclick": evil}, [["annotation-xml", {}, ["x"]]]],
        ["numbers", {"start": "1 onclick"}, []],
        ["cell", {"align": "kw-covered"}, []],
        ["heading", {"level": "1><img>"}, []],
        ["constructor", {}, ["x"]],
        ["__proto__", {}, ["x"]],
        ["toString", {}, ["x"]],
    ]
    blocks = [json.dumps(tree) for tree in forged]
    found = one.page.evaluate(DRAW, {"steps": [blocks], "allowed": ALLOWED})
    assert found["wrong"] == []
    assert found["hacked"] is None


def test_hostile_answers_on_the_page(serve: Serve, tab: OpenTab) -> None:
    """From engine through database and server to the page, and once more after a reload."""
    cases = list(ANSWERS.values())
    said: list[str] = []

    def answer(_: tuple[int, ...]) -> tuple[int, ...]:
        return (*said[-1].encode(), 256)

    site = serve(answer=answer, context_limit_tokens=40_000)
    one = tab(site.url).open()
    since = len(one.requests)
    for number, case in enumerate(cases):
        if number == 14:  # the page shows thirty messages at first
            one.new()
        said.append(case)
        one.say(f"case {number}")
    only_own_requests(one, since)
    one.reload()
    since = len(one.requests)
    expect(one.messages).to_have_count(2 * (len(cases) - 14))
    wrong = one.page.evaluate(
        "(allowed) => [...document.querySelectorAll('.bot-row .md *')].map((node) => node.localName)"
        ".filter((tag) => !(tag in allowed))",
        ALLOWED,
    )
    assert wrong == []
    assert one.page.evaluate("window.hacked ?? null") is None
    only_own_requests(one, since)
    # Every panel can still be reached: nothing lies above it.
    for selector in ("[data-testid=new]", "[data-testid=composer]", "[data-testid=title]"):
        assert one.page.evaluate(
            "(selector) => { const node = document.querySelector(selector); const box = node.getBoundingClientRect();"
            " return node.contains(document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2)); }",
            selector,
        )
    assert one.page.evaluate("document.querySelector('meta[http-equiv=x-dns-prefetch-control]').content") == "off"


def test_a_growing_answer_keeps_what_is_done(one: Tab, shared_site: Site) -> None:
    """Elements above the end are not touched while an answer grows: a selection in them stays."""
    text = "# Title\n\nFirst **words** here.\n\n" + "".join(f"- item {number} with `code`\n" for number in range(60))
    shared_site.engine.answer = lambda _: (*text.encode(), 256)
    shared_site.engine.token_delay_s = 0.004
    one.write("go")
    expect(one.message(1)).to_contain_text("item 2 ")
    one.page.evaluate(
        "() => { const bold = document.querySelector('.bot-row strong'); window.kept = [bold, bold.closest('.md')"
        ".querySelector('li')]; getSelection().selectAllChildren(bold); }"
    )
    expect(one.message(1)).to_contain_text("item 9 ")
    assert one.page.evaluate("kept.every((node) => node.isConnected)")
    assert one.page.evaluate("String(getSelection())") == "words"
    one.page.keyboard.press("Escape")
    one.wait_idle()
    assert one.page.evaluate("kept.every((node) => node.isConnected)")


def test_code_is_copied_as_it_was_written(serve: Serve, tab: OpenTab) -> None:
    code = "if a < b:\n    return '<b>'"
    text = f"```python\n{code}\n```"
    one = tab(
        serve(answer=lambda _: (*text.encode(), 256)).url, permissions=["clipboard-read", "clipboard-write"]
    ).open()
    one.say("go")
    one.message(1).hover()
    one.page.get_by_role("button", name="Copy code").click()
    expect(one.page.get_by_role("button", name="Copied")).to_be_visible()
    assert one.page.evaluate("navigator.clipboard.readText()") == code


@pytest.mark.parametrize("width", [360, 1440])
def test_words_in_tables_stay_whole(serve: Serve, tab: OpenTab, width: int) -> None:
    cells = [
        "internationalisation",
        "a cell of several words that has to wrap",
        "1,000.00",
        "unbreakable_identifier_name",
    ]
    text = f"| {' | '.join(cells)} |\n| :-- | :-: | --: | --- |\n| {' | '.join(cells)} |\n"
    one = tab(serve(answer=lambda _: (*text.encode(), 256)).url, viewport={"width": width, "height": 800}).open()
    one.say("go")
    lines = one.page.evaluate(
        "[...document.querySelectorAll('.bot-row td')].map((cell) => {"
        " const range = document.createRange(); range.selectNodeContents(cell);"
        " return new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size; })"
    )
    assert lines[0] == lines[2] == lines[3] == 1
    assert lines[1] <= 4
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    aligned = one.page.evaluate(
        "[...document.querySelectorAll('.bot-row td')].map((cell) => getComputedStyle(cell).textAlign)"
    )
    assert aligned[:3] == ["left", "center", "right"]


def test_what_a_person_wrote_is_shown_letter_by_letter(one: Tab) -> None:
    text = "a\n    b  c\n\td *e* `f` <b>g</b> &lt; $x$ [h](http://i)"
    one.say(text)
    assert one.message(0).inner_text() == text
    assert one.message(0).locator("*").count() == 0
    assert one.messages.nth(0).get_attribute("aria-label") == "You"
    assert one.messages.nth(1).get_attribute("aria-label") == "Answer"
