"""Do the APIs of other programs stay warm, keep one copy, and does structured output cost next to nothing?

A client of every kind has a conversation of ten turns over loopback. `fed_over_delta`: tokens that were fed over those
that its turns added, from the second turn on, of the worst kind. `kv_over_minimum`: bytes on disk over those of one
copy of the history, of the worst kind, and on the device with forks that are asked once. `first_token_over_reading`:
four requests at once on a new prompt of 4,000 tokens, the last one's first token over that of one alone. Then the same
prompts are answered freely and in a format, in turns, and random schemas once each: their texts and lists have a
greatest length; without one a small model may go on for ever.

    python -m benchmarks.clients [--model embedded] [--turns 10] [--repeats 5] [--schemas 500]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs

from app.access.auth import LOCAL_OWNER
from app.budgets import Budgets
from app.wiring import IdleFeatures, ServiceSettings, open_services
from benchmarks.api import served
from benchmarks.driver import _PROSE
from benchmarks.report import device_name, finish, median, table
from benchmarks.sharing import at_once, forks
from model_runtime.interface.config import ModelConfig
from sessions.manager import SessionManager

ANSWER_TOKENS = 48
RATE_TOKENS = 160
SHARED_REPEATS = 3
Turn = Callable[[httpx.Client, str, str, list[Any]], tuple[dict[str, Any], int]]  # -> (receipt, sampled tokens)


def chat(client: httpx.Client, model: str, text: str, said: list[Any]) -> tuple[dict[str, Any], int]:
    said.append({"role": "user", "content": text})
    body = post(client, "/v1/chat/completions", model=model, messages=said, max_tokens=ANSWER_TOKENS, temperature=0)
    said.append(body["choices"][0]["message"])
    return body["keepwarm"], body["usage"]["completion_tokens"]


def responses_resent(client: httpx.Client, model: str, text: str, said: list[Any]) -> tuple[dict[str, Any], int]:
    said.append({"role": "user", "content": text})
    body = post(client, "/v1/responses", model=model, input=said, max_output_tokens=ANSWER_TOKENS, temperature=0)
    said += body["output"]
    return body["keepwarm"], body["usage"]["output_tokens"]


def responses_named(client: httpx.Client, model: str, text: str, said: list[Any]) -> tuple[dict[str, Any], int]:
    named = {"previous_response_id": said[-1]} if said else {}
    fields = {"model": model, "input": text, "max_output_tokens": ANSWER_TOKENS, "temperature": 0, **named}
    body = post(client, "/v1/responses", **fields)
    said.append(body["id"])
    return body["keepwarm"], body["usage"]["output_tokens"]


def messages(client: httpx.Client, model: str, text: str, said: list[Any]) -> tuple[dict[str, Any], int]:
    said.append({"role": "user", "content": text})
    body = post(client, "/v1/messages", model=model, messages=said, max_tokens=ANSWER_TOKENS, temperature=0)
    said.append({"role": "assistant", "content": body["content"]})
    return body["keepwarm"], body["usage"]["output_tokens"]


def ollama(client: httpx.Client, model: str, text: str, said: list[Any]) -> tuple[dict[str, Any], int]:
    said.append({"role": "user", "content": text})
    options = {"num_predict": ANSWER_TOKENS, "temperature": 0}
    body = post(client, "/api/chat", model=model, messages=said, stream=False, options=options)
    said.append(body["message"])
    return body["keepwarm"], body["eval_count"]


def completions(client: httpx.Client, model: str, text: str, said: list[Any]) -> tuple[dict[str, Any], int]:
    said.append(f"\nQuestion: {text}\nAnswer:")
    fields = {"model": model, "prompt": "".join(said), "max_tokens": ANSWER_TOKENS, "temperature": 0}
    body = post(client, "/v1/completions", **fields)
    said.append(body["choices"][0]["text"])
    return body["keepwarm"], body["usage"]["completion_tokens"]


KINDS: dict[str, Turn] = {
    "chat completions": chat,
    "responses, resent": responses_resent,
    "responses, named": responses_named,
    "Anthropic messages": messages,
    "Ollama chat": ollama,
    "text completions": completions,
}


def post(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answered = client.post(path, json=body)
    if answered.status_code != 200:
        raise SystemExit(f"{path}: {answered.status_code} {answered.text[:300]}")
    found: dict[str, Any] = answered.json()
    return found


def talk(client: httpx.Client, model: str, name: str, turns: int) -> tuple[int, int, int]:
    """(fed, added, tokens of the whole history) by one kind of client."""
    words, said, fed, added, before = _PROSE.split(), [], 0, 0, 0
    for turn in range(turns):
        text = f"{name}, part {turn}: " + " ".join((words * 3)[turn * 7 : turn * 7 + 40])
        cost, sampled = KINDS[name](client, model, text, said)
        prompt = cost["fed"] + cost["reused"]
        if turn:
            fed, added = fed + cost["fed"], added + prompt - before
        before = prompt + sampled - 1  # the last sampled token is not in the KV yet
    return fed, added, before


def settle(manager: SessionManager) -> None:
    """Waits until all KVs are saved."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        rows = manager.memory_view(LOCAL_OWNER).rows
        if all(row.disk_tokens >= row.ledger_tokens - 1 for row in rows):
            return
        time.sleep(0.05)


def rate(client: httpx.Client, model: str, number: int, form: dict[str, Any]) -> float:
    """Tokens a second after the first piece of text."""
    text = f"Write a long JSON list of the names of rivers, number {number}."
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "stream": True}
    body |= {"max_tokens": RATE_TOKENS, "min_tokens": RATE_TOKENS} if not form else {"max_tokens": RATE_TOKENS}
    body |= {"stream_options": {"include_usage": True}, **form}
    first = last = 0.0
    sampled = 0
    with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        for line in stream.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            sampled = (chunk.get("usage") or {}).get("completion_tokens", sampled)
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                last = time.perf_counter()
                first = first or last
    return (sampled - 1) / (last - first)


def schema(dice: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "integer", "boolean", "enum", "null", *(["object", "array", "anyOf"] if depth < 3 else [])]
    match "object" if depth == 0 else dice.choice(kinds):
        case "object":
            names = dice.sample(["name", "age", "city", "größe", "is_open", "tags", "a b", "id"], dice.randint(1, 4))
            inner = {name: schema(dice, depth + 1) for name in names}
            required = dice.sample(names, dice.randint(0, len(names)))
            others = dice.choice([{}, {"additionalProperties": False}])  # most programs say nothing of others
            return {"type": "object", "properties": inner, "required": required, **others}
        case "array":
            least = dice.randint(0, 2)
            return {"type": "array", "items": schema(dice, depth + 1), "minItems": least, "maxItems": least + 2}
        case "anyOf":
            return {"anyOf": [schema(dice, depth + 1), schema(dice, depth + 1)]}
        case "string":
            return {"type": "string", "maxLength": dice.randint(1, 30)}
        case "integer":
            return {"type": "integer", "minimum": dice.randint(-100, 0), "maximum": dice.randint(1, 100_000)}
        case "enum":
            return {"enum": dice.sample(["red", "green", 3, None, True, "ä"], dice.randint(1, 4))}
        case kind:
            return {"type": kind}


def is_valid(client: httpx.Client, model: str, number: int) -> bool:
    dice = random.Random(number)
    wanted = schema(dice)
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": wanted, "strict": True}}
    asked = [{"role": "user", "content": f"Describe thing number {number} as JSON."}]
    temperature = dice.choice([0, 1.0])
    body = post(
        client, "/v1/chat/completions", model=model, messages=asked, response_format=form, temperature=temperature
    )
    said = body["choices"][0]["message"]["content"]
    try:
        found = json.loads(said)
    except ValueError:
        found = ValueError
    good = found is not ValueError and jsonschema_rs.validator_for(wanted).is_valid(found)
    if not good:
        print(f"# not valid: {said[:200]!r} for {json.dumps(wanted)[:300]}")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--schemas", type=int, default=500)
    options = parser.parse_args()

    rows, forms = [], {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": LIST}}}
    with tempfile.TemporaryDirectory() as folder:
        idle = IdleFeatures(read_ahead=False, titles=False)
        model = ModelConfig(model=options.model)
        settings = ServiceSettings(Path(folder), model, Budgets("4GiB", "4GiB"), idle_work=idle)
        with (
            open_services(settings, lambda line: print(f"# {line}")) as opened,
            served(opened) as url,
            httpx.Client(base_url=url, timeout=600) as client,
        ):
            manager, name = opened.manager, opened.manager.info.name
            for kind in KINDS:
                before = manager.memory_view(LOCAL_OWNER).disk_used_bytes
                fed, added, tokens = talk(client, name, kind, options.turns)
                settle(manager)
                kept = manager.memory_view(LOCAL_OWNER).disk_used_bytes - before
                least = tokens * manager.info.kv_bytes_per_token
                rows.append((kind, fed, added, fed / added, kept / least))
            held, kept_held = forks(client, manager, name)
            together: list[tuple[float, list[float]]] = []
            for number in range(SHARED_REPEATS + 1):  # the first one warms up
                (alone,) = at_once(client, name, 1, f"shelf {number}")
                together.append((alone, [one / alone for one in at_once(client, name, 4, f"rack {number}")]))
            free, structured = [], []
            for number in range(options.repeats):
                free.append(rate(client, name, 2 * number, {}))
                structured.append(rate(client, name, 2 * number + 1, forms))
            valid = sum(is_valid(client, name, number) for number in range(options.schemas))
            device, shown = manager.info.device, f"{name}, {manager.info.quantization}"

    table(("kind of client", "fed", "added", "fed/added", "kept/one copy"), rows)
    table(("a chat and three forks", "on the device/one copy"), [("at once", held), ("later", kept_held)])
    shared = [(f"{alone:.2f} s alone", *sorted(ratios)) for alone, ratios in together[1:]]
    table(("four at once", *("first token/reading",) * 4), shared)
    table(("answers", "tok/s"), [("free", median(free)), ("in a format", median(structured))])
    figures = {
        "fed_over_delta": max(row[3] for row in rows),
        "kv_over_minimum": max(kept_held, *(row[4] for row in rows)),
        "first_token_over_reading": median([row[4] for row in shared]),
        "structured_rate_over_free": median(structured) / median(free),
        "structured_valid_share": valid / options.schemas,
    }
    finish("clients", figures, device_name(device), shown)


LIST = {"type": "array", "items": {"type": "string", "maxLength": 40}, "minItems": 60, "maxItems": 200}

if __name__ == "__main__":
    main()
