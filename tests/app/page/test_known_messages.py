"""Of a conversation and of the list, a page is sent what it does not have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.access.public_link import Share
from app.page.chat import Chat
from app.page.panels import FIRST_ROWS, Panels
from app.process_memory import ProcessMeter
from tests.sessions.session_harness import ADA, SessionHarness, finish


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[SessionHarness]:
    harness = SessionHarness(tmp_path / "data")
    yield harness
    harness.close()


def test_messages_that_the_page_has_come_as_their_tokens(harness: SessionHarness) -> None:
    chat, c = Chat(harness.manager), harness.conversation()
    harness.say(c, "One")
    harness.say(c, "Two")

    def opened(have: list[str]) -> list[Any]:
        return chat.act(ADA, {"action": "open", "conversation_id": c, "have": ",".join(have)})["messages"]  # type: ignore[no-any-return]

    whole = opened([])
    tokens = [message["token"] for message in whole]
    assert len(set(tokens)) == 4
    assert opened(tokens) == tokens
    assert opened([tokens[2], "no such token", ""]) == [whole[0], whole[1], tokens[2], whole[3]]
    finish(harness.manager.regenerate(ADA, c))
    changed = opened(tokens)
    assert changed[:3] == tokens[:3]
    assert (changed[3]["sibling_number"], changed[3]["sibling_count"]) == (2, 2)
    assert changed[3]["token"] != tokens[3]


def test_a_long_list_comes_in_two_parts_and_a_short_one_whole(harness: SessionHarness) -> None:
    panels = Panels(harness.manager, Share(), ProcessMeter())

    def listed(**fields: object) -> dict[str, Any] | None:
        return panels.ask(ADA, {"ask": "pulse", **fields}).get("list")

    harness.conversation()
    with harness.store.database.write() as db:
        row = dict(next(db.query("SELECT * FROM conversations")))
        for number in range(FIRST_ROWS - 1):
            db["conversations"].insert(
                row | {"id": f"{number:032x}", "title": f"Number {number}", "turn_number": number + 1}
            )
    short = listed()
    assert short is not None
    assert (len(short["all"]), "part" in short) == (FIRST_ROWS, False)
    with harness.store.database.write() as db:
        db["conversations"].insert(row | {"id": "f" * 32, "title": "Newest", "turn_number": 999})
    part, whole = listed(), listed(whole=True)
    assert part is not None
    assert whole is not None
    assert (part["part"], part["token"], len(part["all"])) == (True, "", FIRST_ROWS)
    assert (len(whole["all"]), "part" in whole) == (FIRST_ROWS + 1, False)
    assert part["all"] == whole["all"][:FIRST_ROWS]
    assert listed(list=whole["token"]) is None
    assert "part" not in (listed(search="Number") or {})
