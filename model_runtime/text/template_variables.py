"""Which variables a chat template reads that nobody sets, and which of several named templates is used."""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import meta
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from model_runtime.text.template_check import environment

# What transformers passes to every template, and the functions that it defines.
_GIVEN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "raise_exception"}
    | {"strftime_now", "range", "dict", "namespace", "lipsum", "cycler", "joiner", "tojson", "loop", "caller"}
)
_NEVER_SET = ("documents",)  # given, but always empty
_USED = ("default", "tool_use")


def template_notes(tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    """Sentences about what the tokenizer's templates can do and Keepwarm does not ask them for."""
    templates = tokenizer.chat_template
    named = templates if isinstance(templates, dict) else {"default": templates or ""}
    unused = sorted(name for name in named if name not in _USED)
    if unused:
        yield f"The chat templates named {', '.join(unused)} are not used: no request chooses them."
    unset: set[str] = set()
    for name, template in named.items():
        if name in _USED:
            unset |= set(unset_variables(str(template), frozenset(tokenizer.special_tokens_map)))
    if unset:
        yield (
            f"The chat template can read {', '.join(sorted(unset))}: without a request's chat_template_kwargs the "
            "template's own defaults apply."
        )


def readable_variables(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """The variables that a request may set: those that the used templates read and that are not set for them."""
    templates = tokenizer.chat_template
    used = [t for name, t in templates.items() if name in _USED] if isinstance(templates, dict) else [templates or ""]
    special_tokens = frozenset(tokenizer.special_tokens_map)
    return tuple(sorted({name for t in used for name in unset_variables(str(t), special_tokens)} - {*_NEVER_SET}))


def unset_variables(template: str, special_tokens: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The variables that a template reads and that are never set for it. None for a template that cannot be parsed:
    its own check refuses it."""
    try:
        names = meta.find_undeclared_variables(environment().parse(template))
    except (TemplateError, RecursionError, ValueError, OverflowError):
        return ()
    return tuple(sorted(names - _GIVEN - special_tokens | names & set(_NEVER_SET)))
