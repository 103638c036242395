"""What a program says as the system belongs to the conversation: every later response is asked with it, once and
in its order, whatever a person does on the page between. Held by the ids that the engine is asked with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.store.store import Store
from tests.app.conftest import MODEL
from tests.app.site import Site, echo
from tests.sessions.byte_template import SYSTEM
from tests.sessions.session_harness import finish, until

OWNER = "local"
ASKED: list[tuple[int, ...]] = []  # the prompts that the engine got


def recorded(ledger: tuple[int, ...]) -> Sequence[int]:
    ASKED.append(ledger)
    return echo(ledger)


def told() -> list[str]:
    """The marks, as <1>, that the newest prompt has of the system. Nothing else in it may say one."""
    system, whole, role = "", "", 0
    for token in ASKED[-1]:
        role = token if token > 255 else role
        whole += chr(token) if token < 256 else "|"
        system += whole[-1] if role == SYSTEM else ""
    marks = re.findall(r"<\d+>", system)
    assert marks == re.findall(r"<\d+>", whole)
    return marks


class Program:
    """A client of one conversation, the person who has it open, and what must be told."""

    def __init__(self, site: Site, name: str = "") -> None:
        self.site = site
        self.number = 0
        self.expected: list[str] = []
        self.waiting: list[tuple[str, str]] = []  # (id, mark)
        self.has_waiting = False
        self.responses: list[str] = []
        self.name = name or str(self.post("conversations").json()["id"])

    @property
    def own_id(self) -> str:
        return self.name.removeprefix("conv_")

    @property
    def manager(self) -> Any:
        return self.site.manager

    def post(self, path: str, **body: Any) -> httpx.Response:
        answered = httpx.post(f"{self.site.url}/v1/{path}", json=body, timeout=30)
        assert answered.status_code == 200, answered.text
        return answered

    def mark(self, role: str = "developer") -> dict[str, Any]:
        self.number += 1
        self.expected.append(f"<{self.number}>")
        return {"role": role, "content": f"Rule <{self.number}>"}

    def add(self, *more: dict[str, Any]) -> None:
        mark = self.mark()
        added = self.post(f"conversations/{self.name}/items", items=[mark, *more]).json()["data"]
        self.waiting.append((added[0]["id"], self.expected[-1]))
        self.has_waiting = True

    def respond(self, *items: dict[str, Any], **fields: Any) -> None:
        asked = [*items, {"role": "user", "content": "Asked"}]
        body = {"model": MODEL, "conversation": self.name, "input": asked, **fields}
        self.responses.append(str(self.post("responses", **body).json()["id"]))
        self.waiting, self.has_waiting = [], False
        assert told() == self.expected

    def turn(self, begin: Callable[[], Any]) -> None:
        """A person's turn: refused while items wait, and where there is nothing yet."""
        if not self.has_waiting and self.messages():
            finish(begin())
            until(lambda: not self.manager.runs.is_busy(self.own_id))

    def messages(self) -> Any:
        return self.manager.view(OWNER, self.own_id).messages

    def do(self, what: str, place: int) -> None:
        if what == "add":
            self.add()
        elif what == "add more":
            self.add({"role": "user", "content": "Before"}, {"role": "assistant", "content": "Yes"})
        elif what == "unadd" and self.waiting:
            item_id, mark = self.waiting.pop(place % len(self.waiting))
            address = f"{self.site.url}/v1/conversations/{self.name}/items/{item_id}"
            assert httpx.delete(address, timeout=30).status_code == 200
            self.expected.remove(mark)
        elif what == "respond":
            self.respond()
        elif what == "instruct":
            self.respond(instructions=f"Instruction {place}")
        elif what == "respond unnamed":
            self.respond(self.mark("system"), store=False)
        elif what == "say":
            self.turn(lambda: self.manager.send(OWNER, self.own_id, "Said"))
        elif what == "regenerate":
            self.turn(lambda: self.manager.regenerate(OWNER, self.own_id))
        elif what == "edit":
            asked = [one.message_id for one in self.messages() if one.role == "user"]
            self.turn(lambda: self.manager.edit(OWNER, self.own_id, asked[place % len(asked)], f"Edited {place}"))
        elif what == "switch" and not self.has_waiting and (there := self.messages()):
            self.manager.switch_sibling(OWNER, self.own_id, there[place % len(there)].message_id, (-1, 1)[place % 2])
        elif what == "forget" and self.responses:
            name = self.responses.pop(place % len(self.responses))
            httpx.delete(f"{self.site.url}/v1/responses/{name}", timeout=30)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    one = Site(tmp_path_factory.mktemp("site") / "data", headless=True, answer=recorded)
    yield one
    one.close()


CASES = {
    "regenerated": ["add", "instruct", "regenerate", "instruct"],
    "regenerated without instructions": ["add", "instruct", "regenerate", "respond"],
    "edited": ["add", "respond", "respond", "edit", "instruct"],
    "edited where it was said": ["respond", "add", "respond", "edit", "respond"],
    "edited above what was said": ["respond", "respond", "add", "add more", "respond", "edit", "add", "respond"],
    "another branch, and back": ["respond", "add", "respond", "edit", "respond", "switch", "respond"],
    "said with store: false": ["add", "respond unnamed", "edit", "instruct", "respond unnamed"],
    "forgotten": ["add", "instruct", "forget", "regenerate", "instruct", "forget", "edit", "respond"],
    "deleted before an answer": ["respond", "add", "add", "unadd", "respond", "edit", "respond"],
}
ACTIONS = ["add", "add more", "unadd", "respond", "instruct", "respond unnamed", "say", "regenerate", "edit", "switch"]


@pytest.mark.parametrize("actions", CASES.values(), ids=CASES)
def test_each_response_is_told_all_of_it(site: Site, actions: list[str]) -> None:
    program = Program(site)
    for action in actions:
        program.do(action, 0)


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from([*ACTIONS, "forget"]), st.integers(0, 5)), min_size=4, max_size=10))
def test_whatever_happens_between(site: Site, actions: list[tuple[str, int]]) -> None:
    program = Program(site)
    for action, place in [*actions, ("respond", 0), ("edit", 0), ("instruct", 0)]:
        program.do(action, place)


def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    one = Site(tmp_path / "data", headless=True, answer=recorded)
    before = Program(one)
    for action in ("add", "respond", "add", "respond", "regenerate"):
        before.do(action, 0)
    one.close()
    other = Site(tmp_path / "data", headless=True, answer=recorded)
    try:
        after = Program(other, before.name)
        after.number, after.expected = before.number, before.expected
        for action in ("edit", "instruct", "add", "respond"):
            after.do(action, 0)
    finally:
        other.close()


def test_a_chain_that_leaves_the_conversation_has_what_stood_before_it(site: Site) -> None:
    program = Program(site)
    for action in ("add", "respond", "add", "respond"):
        program.do(action, 0)
    chained = {"model": MODEL, "input": "Elsewhere"}
    first, second = program.responses
    for name, count in ((first, 1), (second, 2)):
        program.post("responses", previous_response_id=name, **chained)
        assert told() == program.expected[:count]
    program.do("respond", 0)


def test_nothing_of_another_owner_is_told(tmp_path: Path) -> None:
    one = Site(tmp_path / "data", headless=True, answer=recorded, require_key=True)
    try:
        keys = [{"authorization": f"Bearer {one.store.keys.add(name)[1]}"} for name in ("ada", "bea")]
        said = {"items": [{"role": "developer", "content": "Rule <1>"}]}
        name = httpx.post(f"{one.url}/v1/conversations", json=said, headers=keys[0], timeout=30).json()["id"]
        asked = {"model": MODEL, "input": "Asked", "conversation": name}
        for headers, status in ((keys[1], 404), (keys[0], 200), (keys[1], 404)):
            answered = httpx.post(f"{one.url}/v1/responses", json=asked, headers=headers, timeout=30)
            assert answered.status_code == status, answered.text
        del asked["conversation"]
        assert httpx.post(f"{one.url}/v1/responses", json=asked, headers=keys[1], timeout=30).status_code == 200
        assert told() == []
    finally:
        one.close()


def test_what_earlier_versions_kept_with_an_answer_is_the_conversations(tmp_path: Path) -> None:
    one = Site(tmp_path / "data", headless=True, answer=recorded)
    program = Program(one)
    program.do("add", 0)
    program.do("instruct", 0)
    one.close()
    with (store := Store(tmp_path / "data")).database.write() as db:
        db.execute("UPDATE responses SET id = 'unnamed_1'")
        db.execute("ALTER TABLE conversations DROP COLUMN system_items")
        db.execute("DELETE FROM _sqlite_migrations WHERE name = 'system_items'")
    store.close()
    other = Site(tmp_path / "data", headless=True, answer=recorded)
    try:
        after = Program(other, program.name)
        after.number, after.expected = program.number, program.expected
        for action in ("regenerate", "instruct"):
            after.do(action, 0)
        with other.store.database.read() as db:
            assert db.execute("SELECT count(*) FROM responses WHERE id GLOB 'unnamed_*'").fetchone()[0] == 0
    finally:
        other.close()


@pytest.mark.parametrize("text", ["Mine, edited", "Rule twice?"])
def test_an_edit_replaces_what_the_person_said_alone(site: Site, text: str) -> None:
    program = Program(site)
    program.do("respond", 0)
    program.respond(program.mark())
    asked = program.messages()[2]
    assert (asked.system_text, asked.text) == ("Rule <1>", "Asked")
    finish(site.manager.edit(OWNER, program.own_id, asked.message_id, text))
    assert told() == ["<1>"]
    edited = program.messages()[2]
    assert (edited.system_text, edited.text) == ("Rule <1>", text)
