"""An answer's thoughts, apart from what it says. Models write them first, between two tags; where the generation prompt
has the first tag already, the answer begins within them."""

from __future__ import annotations

BEGIN, END = "<think>", "</think>"
_BREAK = "\n"  # models and templates set thoughts apart by empty lines, which belong to neither part


def split(text: str, is_open: bool = False) -> tuple[str, str]:
    """(thoughts, what is said) of a finished answer. `is_open`: the prompt had the first tag."""
    body = _body(text, is_open)
    if body is None:
        return "", text
    thoughts, tag, said = body.partition(END)
    return thoughts.strip(_BREAK), said.lstrip(_BREAK) if tag else ""


def split_growing(text: str, is_open: bool = False) -> tuple[str, str]:
    """(thoughts, what is said) of an unfinished answer, as far as they stay, whatever follows."""
    start, body = text.lstrip(), _body(text, is_open)
    if start != BEGIN and BEGIN.startswith(start):
        return "", ""  # it may become the first tag
    if body is None:
        return "", text
    thoughts, tag, said = body.partition(END)
    if tag:
        return thoughts.strip(_BREAK), said.lstrip(_BREAK)
    held = next((n for n in range(len(END) - 1, 0, -1) if body.endswith(END[:n])), 0)
    return body[: len(body) - held].strip(_BREAK), ""


def join(thoughts: str, said: str) -> str:
    """The answer that `split` parts into these."""
    return f"{BEGIN}\n{thoughts}\n{END}\n\n{said}" if thoughts else said


def begin(thoughts: str, said: str, is_open: bool) -> str:
    """The text of an answer that has come as far as this: without what is said, it is still thinking. `is_open`: the
    prompt has the first tag."""
    opening = f"{BEGIN}\n" if thoughts and not is_open else ""
    if not said:
        return opening + thoughts
    return f"{opening}{thoughts}\n{END}\n\n{said}" if thoughts or is_open else said


def opens_thought(prompt: str) -> bool:
    """Whether an answer to this prompt begins within its thoughts."""
    return prompt.rstrip().endswith(BEGIN)


def _body(text: str, is_open: bool) -> str | None:
    """The text behind the first tag; None for an answer without thoughts."""
    core = text.lstrip()
    if core.startswith(BEGIN):
        return core[len(BEGIN) :]
    return text if is_open else None


class ThoughtsApart:
    """What `model_runtime.interface.chat.TurnTemplate` says about thoughts, for a template that sets `has_thoughts`."""

    has_thoughts: bool

    def thoughts_in(self, answer_text: str, is_open: bool = False) -> tuple[str, str]:
        """See `TurnTemplate`."""
        return split(answer_text, is_open) if self.has_thoughts else ("", answer_text)

    def growing_thoughts_in(self, growing_text: str, is_open: bool = False) -> tuple[str, str]:
        """See `TurnTemplate`."""
        return split_growing(growing_text, is_open) if self.has_thoughts else ("", growing_text)

    def with_thoughts(self, thoughts: str, said: str) -> str:
        """See `TurnTemplate`."""
        return join(thoughts, said) if self.has_thoughts else said

    def begun_answer(self, thoughts: str, said: str, is_open: bool) -> str:
        """See `TurnTemplate`."""
        return begin(thoughts, said, is_open) if self.has_thoughts else said
