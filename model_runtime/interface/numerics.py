"""Everything that a KV's numbers depend on, as one line of text: equal lines mean equal rows."""

from __future__ import annotations

_SEPARATOR, _IS = "; ", ": "
_SAID = {
    "weights": "the model's weights were changed",
    "rope": "the model's position settings were changed",
    "quantization": "the quantization was changed from {before} to {now}",
    "dtype": "the precision of the computation was changed from {before} to {now}",
    "activations": "the precision of activations was changed from {before} to {now}",
    "levels": "the way in which levels are multiplied by activations was changed from {before} to {now}",
    "kv": "the precision of keys and values was changed from {before} to {now}",
    "kernel": "the kernels that compute it were changed",
    "cold": "the precision of saved memory was changed from {before} to {now}",
    "format": "Keepwarm was upgraded to another format of saved memory",
}
_LONG_ROPE = ("positions", "long")  # a part of a segment's fingerprint, not of a model's
_DEFAULTS = {"format": "1", "activations": "float32"}  # the value of a missing part; "exact" for every other part


def line(**parts: str) -> str:
    """One line with the parts in the order given, such as `quantization: int4; dtype: bfloat16`."""
    return _SEPARATOR.join(name + _IS + value.replace(";", ",") for name, value in parts.items())


def with_part(numerics: str, name: str, value: str) -> str:
    """The line with one more part at its end."""
    return numerics + _SEPARATOR + line(**{name: value})


def with_long_rope(numerics: str) -> str:
    """The line of rows with the long frequencies of long RoPE. Without this part they have the short ones, or the
    model has only one set."""
    return with_part(numerics, *_LONG_ROPE)


def is_long_rope(numerics: str) -> bool:
    """Whether rows of this line have the long frequencies of long RoPE."""
    name, value = _LONG_ROPE
    return _parts(numerics).get(name) == value


def kv_precision(numerics: str) -> str:
    """The dtype of rows on the device: what they were rounded to, else what they were computed in. "" if the line does
    not say."""
    parts = _parts(numerics)
    return parts.get("kv", parts.get("dtype", ""))


def cold_precision(numerics: str) -> str:
    """The precision of saved rows: "exact" or "int8"."""
    return _parts(numerics).get("cold", "exact")


def activations(numerics: str) -> str:
    """What weights were multiplied by, where there is a choice: "int8", "int16" or "float32"."""
    return _value(_parts(numerics), "activations")


def settings(numerics: str) -> str:
    """The parts that the user may have chosen, such as "quantization int4, kv float16"."""
    return ", ".join(f"{name} {value}" for name, value in _parts(numerics).items() if name not in ("weights", "rope"))


def difference(before: str, now: str) -> str:
    """A clause that says what changed between two lines; "" if nothing did or the lines do not say. If the weights
    changed, nothing else is named."""
    old, new = _parts(before), _parts(now)
    if "weights" not in old or "weights" not in new:
        return ""
    changed = _changed(old, new)
    said = [_SAID[name].format(before=_value(old, name), now=_value(new, name)) for name in changed]
    return " and ".join(said)


def is_upgrade(before: str, now: str) -> bool:
    """Whether only Keepwarm's own file format changed."""
    return _changed(_parts(before), _parts(now)) == ["format"]


def _changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    changed = [name for name in _SAID if _value(old, name) != _value(new, name)]
    return ["weights"] if "weights" in changed else changed


def _value(parts: dict[str, str], name: str) -> str:
    return parts.get(name, _DEFAULTS.get(name, "exact"))


def _parts(numerics: str) -> dict[str, str]:
    pairs = (part.partition(_IS) for part in numerics.split(_SEPARATOR))
    return {name: value for name, is_pair, value in pairs if is_pair}
