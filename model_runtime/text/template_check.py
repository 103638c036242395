"""Checks that a chat template renders short conversations within bounds of time and memory, before it is used.

A template is a program of the model's author. Jinja's sandbox keeps it away from the machine, but not from a loop of
10**10 turns or a string of 3 GB. A template that can only loop over its messages is accepted as it is; any other one is
rendered in a process of its own first, with limits that the kernel enforces.
"""

from __future__ import annotations

import json
import subprocess
import sys

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser

from model_runtime.interface.errors import ModelLoadError

TRIAL_CPU_S = 5
TRIAL_TIMEOUT_S = 60.0  # of wall-clock time: the machine may be busy
TRIAL_MEMORY_BYTES = 1 << 30
MOST_OUTPUT_CHARS = 1 << 24
LARGE_NUMBER = 1000  # as a literal: a template counts messages
_WIDENING = frozenset({"center", "expandtabs", "format", "indent", "ljust", "rjust", "wordwrap", "zfill"})
_DEEPEST_LOOPS = 2

_TRIAL = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({TRIAL_MEMORY_BYTES}, {TRIAL_MEMORY_BYTES}))
resource.setrlimit(resource.RLIMIT_CPU, ({TRIAL_CPU_S}, {TRIAL_CPU_S}))
from jinja2.sandbox import ImmutableSandboxedEnvironment
def refuse(message="", *_): raise ValueError(message)
given = json.load(sys.stdin)
environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
)
environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
environment.globals.update(raise_exception=refuse, strftime_now=lambda form: "2026-01-01")
for messages in given["conversations"]:
    try:
        template = environment.from_string(given["template"])
        said = template.render(
            messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>", tools=None, documents=None
        )
    except MemoryError:
        sys.exit(3)
    except Exception:
        continue  # what this template cannot do is found out elsewhere
    if len(said) > {MOST_OUTPUT_CHARS}:
        sys.exit(3)
"""
_CONVERSATIONS = [
    [{"role": role, "content": "one two"} for role in roles]
    for roles in (
        ("user",),
        ("system", "user"),
        ("user", "assistant", "user"),
        ("system", "user", "assistant", "user", "assistant", "user"),
    )
]


def check_template(template: str) -> None:
    """Raises `ModelLoadError` when the template needs more time or memory for a short conversation than any honest
    one."""
    if not _may_explode(template):
        return
    given = json.dumps({"template": template, "conversations": _CONVERSATIONS})
    try:
        trial = subprocess.run(  # noqa: S603 - our own program; the template is data on its input
            [sys.executable, "-I", "-c", _TRIAL],
            input=given.encode("utf-8", "surrogatepass"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TRIAL_TIMEOUT_S,
            check=False,
        )
        has_failed = trial.returncode != 0
    except subprocess.TimeoutExpired:
        has_failed = True
    if has_failed:
        raise ModelLoadError(
            "This model's chat template takes more time or memory for a short conversation than a template may: it is "
            "damaged or hostile. Choose another model."
        )


def _may_explode(template: str) -> bool:
    """Whether its cost may grow faster than with the messages: large literals, loops over ranges or three deep,
    repeated or widened strings, variables that double, macros that call macros."""
    try:
        tree = environment().parse(template)
    except (TemplateError, RecursionError, ValueError, OverflowError):
        return True
    if any(isinstance(node.value, int) and abs(node.value) > LARGE_NUMBER for node in tree.find_all(nodes.Const)):
        return True
    if any(tree.find_all((nodes.Mul, nodes.Pow))):
        return True
    called = {call.node.name for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name)}
    methods = {call.node.attr for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Getattr)}
    filters = {filtered.name for filtered in tree.find_all(nodes.Filter)}
    if "range" in called or "cycler" in called or (methods | filters) & _WIDENING:
        return True
    return _loops_deep(tree) > _DEEPEST_LOOPS or any(map(_doubles, tree.find_all(nodes.Assign))) or _recurses(tree)


def string_constants(template: str) -> tuple[str, ...]:
    """The texts that a template may compare others with, as far as it can be parsed."""
    try:
        constants = environment().parse(template).find_all(nodes.Const)
    except (TemplateError, RecursionError, ValueError, OverflowError):
        return ()
    return tuple(dict.fromkeys(found.value for found in constants if isinstance(found.value, str) and found.value))


def environment() -> Environment:
    """Parses templates as transformers does."""
    return Environment(extensions=["jinja2.ext.loopcontrols", _Generation])  # noqa: S701 - it renders nothing


class _Generation(Extension):
    """`{% generation %}`, by which some templates mark the assistant's part."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _loops_deep(node: nodes.Node) -> int:
    deepest = max((_loops_deep(child) for child in node.iter_child_nodes()), default=0)
    return deepest + isinstance(node, nodes.For)


def _doubles(assign: nodes.Assign) -> bool:
    """Whether the value mentions its own target twice."""
    if isinstance(assign.target, nodes.NSRef):
        name = (assign.target.name, assign.target.attr)
        own = [
            one
            for one in assign.node.find_all(nodes.Getattr)
            if isinstance(one.node, nodes.Name) and (one.node.name, one.attr) == name
        ]
        return len(own) > 1
    names = {name.name for name in (assign.target, *assign.target.find_all(nodes.Name)) if isinstance(name, nodes.Name)}
    used = [name.name for name in (assign.node, *assign.node.find_all(nodes.Name)) if isinstance(name, nodes.Name)]
    return any(used.count(name) > 1 for name in names)


def _recurses(tree: nodes.Template) -> bool:
    """Whether a macro calls a macro: depth and breadth may both grow."""
    macros = {macro.name for macro in tree.find_all(nodes.Macro)}
    return any(
        isinstance(call.node, nodes.Name) and call.node.name in macros
        for macro in tree.find_all(nodes.Macro)
        for call in macro.find_all(nodes.Call)
    )
