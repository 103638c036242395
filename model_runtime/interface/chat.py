"""Chat messages as text, and the protocol that turns them into token ids."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants to call. `arguments` is JSON text exactly as the model wrote it."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of any role. `tool_calls` belong to an assistant's message; `tool_call_id` names the call that a
    tool's message answers. `thoughts` are what an assistant thought before it said `text`, where the two came apart."""

    role: str  # "system" | "developer" | "user" | "assistant" | "tool"
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    thoughts: str = ""


UserInput = str | tuple[ChatMessage, ...]  # the input between two answers: usually one user message, given as text


class RawCodec(Protocol):
    """Texts that are no messages, as ids and back. Control tokens in a text are these tokens. Thread-safe."""

    def ids(self, text: str, is_beginning: bool) -> tuple[int, ...]:
        """A text's own ids; with `is_beginning` behind those that the tokenizer writes before a text."""

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of ids, with their control tokens."""

    def pieces(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """The name of each id in the vocabulary."""


class TurnTemplate(Protocol):
    """Turns text into token ids with the model's own chat template. Control tokens that a user types stay plain text,
    whether or not the tokenizer marks them as special.

    Every method is thread-safe. `system_prompt` "" means the template's own default. `tools` are JSON texts, one
    function each. Raises `TemplateRefused` when the model's template cannot represent the messages.
    """

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools to the model and the calls in an answer can be parsed."""

    @property
    def tools_are_generic(self) -> bool:
        """Whether tools are described in the system prompt, because the model's own template shows none."""

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables that the template reads besides the messages and tools: a switch for thoughts."""

    @property
    def bound(self) -> str:
        """The values of variables with which this one renders: a JSON object, "" for none."""

    def with_variables(self, values: str) -> TurnTemplate:
        """The same template rendered with these values of its variables (a JSON object, "" for none). Raises
        `TemplateRefused` when it cannot be rendered with them."""

    def history_frame(self, system_prompt: str = "", tools: Sequence[str] = ()) -> tuple[str, ...]:
        """What it writes around earlier turns. Where two values of its variables give the same, a later turn appends to
        what was written with the other ones."""

    @property
    def has_thoughts(self) -> bool:
        """Whether answers can begin with thoughts that can be told from the rest."""

    def opens_thought(self, system_prompt: str = "", tools: Sequence[str] = ()) -> bool:
        """Whether the generation prompt has the beginning of a thought."""

    def thoughts_in(self, answer_text: str, is_open: bool = False) -> tuple[str, str]:
        """(thoughts, what is said) of a finished answer; no thoughts where none can be told apart. `is_open`: its
        prompt had the beginning of a thought."""

    def growing_thoughts_in(self, growing_text: str, is_open: bool = False) -> tuple[str, str]:
        """(thoughts, what is said) of an unfinished answer, as far as they stay, whatever follows."""

    def with_thoughts(self, thoughts: str, said: str) -> str:
        """The text of an answer with these thoughts, as `thoughts_in` parts it; without them where none can be told
        apart."""

    def begun_answer(self, thoughts: str, said: str, is_open: bool) -> str:
        """The text of an answer that has come as far as this and goes on. `is_open` as in `thoughts_in`."""

    def first_turn(self, system_prompt: str, user: UserInput, tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of the start of a conversation: system prompt, first user message, generation prompt."""

    def next_turn(
        self,
        answer_ended_with_stop_token: bool,
        user: UserInput,
        system_prompt: str = "",
        tools: Sequence[str] = (),
    ) -> tuple[int, ...]:
        """Ids that a later turn adds after the answer's own ids: closing markup, user message, generation prompt.
        `system_prompt` and `tools` are those of the whole conversation: a template may read them in every turn."""

    def calls_in(self, answer_text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """(content, calls without ids) of a finished answer; the whole text and no calls when it contains none."""

    def content_chars(self, growing_text: str) -> int:
        """How many characters of an unfinished answer are content, whatever follows: up to where a call might begin."""

    @property
    def parts_calls(self) -> bool:
        """Whether each call in an answer has marks of its own, so that an answer can end after its first one."""

    def first_call_chars(self, answer_text: str) -> int:
        """How many characters of a finished answer lead to the end of its first call; all if there is no other one."""

    def with_calls(self, text: str, calls: Sequence[ToolCall]) -> str:
        """The text of an answer that makes these calls, as `calls_in` parses it."""

    def call_grammar(self, tools: Sequence[str], lenient: Collection[str] = (), or_text: bool = False) -> str:
        """A grammar, in llguidance's notation, of answers that call one of these tools, `or_text`: that say anything
        and then call some of them, or none. Of those that are `lenient`, keywords that it does not know are left
        out."""

    def unstable_tokens(self, user_text: str) -> int:
        """How many ids at the end of a turn with `user_text` may change as the user types on: those of its last word
        and the generation prompt. An estimate: the engine crops what was fed too early."""

    def answer(self, text: str, system_prompt: str = "", tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of an answer's text without a stop token, in a conversation with these. Only for answers that were not
        sampled here."""

    def rewrites_history(self, system_prompt: str = "", tools: Sequence[str] = ()) -> str | None:
        """None when a later turn of a conversation with these only appends, else a sentence that says why not. Then use
        `whole`. Raises `TemplateRefused`."""

    def whole(self, system_prompt: str, turns: Sequence[ChatMessage], tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of a whole conversation rendered at once, generation prompt included. The last of `turns` is not the
        assistant's. Only for templates that rewrite history and after a change of tokenizer."""

    @property
    def raw(self) -> RawCodec:
        """The model's tokenizer without the template."""

    def count(self, text: str) -> int:
        """How many tokens a text has on its own."""

    def least_tokens(self, text: str) -> int:
        """A cheap lower bound of `count`: a text that is too long by this bound need not be tokenised. 0 means that no
        bound is known."""

    def plain(self, token_ids: Sequence[int]) -> str:
        """The displayable text of ids, without control tokens."""
