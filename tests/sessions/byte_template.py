"""A chat template over bytes: a token is a byte, plus four control ids. Exact, tiny, and easy to reason about."""

from __future__ import annotations

from collections.abc import Sequence

SYSTEM, USER, ASSISTANT, END = 256, 257, 258, 259


class ByteTemplate:
    """A chat template over bytes. `shift` moves every byte's id, which makes another vocabulary."""

    def __init__(self, shift: int = 0) -> None:
        self._shift = shift

    @property
    def rewrites_history(self) -> str | None:
        return None

    def first_turn(self, system_prompt: str, user_text: str) -> tuple[int, ...]:
        head = (SYSTEM, *self._bytes(system_prompt), END) if system_prompt else ()
        return (*head, USER, *self._bytes(user_text), END, ASSISTANT)

    def next_turn(self, answer_ended_with_stop_token: bool, user_text: str) -> tuple[int, ...]:
        glue = () if answer_ended_with_stop_token else (END,)
        return (*glue, USER, *self._bytes(user_text), END, ASSISTANT)

    def answer(self, text: str) -> tuple[int, ...]:
        return self._bytes(text)

    def whole(self, system_prompt: str, turns: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        assert turns[0][0] == "user", "a conversation begins with its user"
        assert turns[-1][0] == "user", "a generation prompt follows a user turn"
        ids: list[int] = [SYSTEM, *self._bytes(system_prompt), END] if system_prompt else []
        for role, text in turns:
            ids += [USER if role == "user" else ASSISTANT, *self._bytes(text), END]
        return (*ids, ASSISTANT)

    def count(self, text: str) -> int:
        return len(self._bytes(text))

    def plain(self, token_ids: Sequence[int]) -> str:
        low, high = (0, 256) if not self._shift else (self._shift, self._shift + 256)
        return bytes(i - self._shift for i in token_ids if low <= i < high).decode("utf-8", errors="replace")

    def _bytes(self, text: str) -> tuple[int, ...]:
        return tuple(byte + self._shift for byte in text.encode("utf-8"))


class ForgetfulTemplate(ByteTemplate):
    """Strips what earlier answers put between <think> and </think>, as reasoning models' templates do."""

    @property
    def rewrites_history(self) -> str | None:
        return "Earlier reasoning is stripped by this model's chat template."

    def whole(self, system_prompt: str, turns: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        kept = [(role, _without_thought(text) if role == "assistant" else text) for role, text in turns]
        return super().whole(system_prompt, kept)


def _without_thought(text: str) -> str:
    return text.rpartition("</think>")[2]
