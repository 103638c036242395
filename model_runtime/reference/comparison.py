"""Compares a model as Keepwarm runs it with the same model as transformers alone runs it, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.utils import release_memory
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from model_runtime.engine.passing_thread import in_passing_thread
from model_runtime.forward.probing.compare import comparable
from model_runtime.interface.config import EMBEDDED, ModelConfig
from model_runtime.interface.errors import ModelLoadError, ModelRuntimeError
from model_runtime.loading.embedded import embedded_gguf
from model_runtime.loading.hub.downloads import hub_directory, hub_gguf, hub_repository, looks_like_model_id
from model_runtime.loading.hub.gguf_files import gguf_models, split_choice
from model_runtime.reference.findings import IdsFinding, ModelComparison, ReadingFinding, Verdict
from model_runtime.reference.full_read import full_read, read_as_it_grew
from model_runtime.reference.keepwarm_side import KeepwarmSide, Said, run_keepwarm
from model_runtime.reference.transformers_side import Reference, load_reference, own_config, own_ids

Say = Callable[[str], None]
MOST_TOKENS = 8_448  # past 8,192, the boundary of Llama 3.1 and of many windows
LARGEST, ROOT_MEAN_SQUARE = "largest difference", "root mean square"
_TRIAL_IDS = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far logits may lie apart, in standard deviations of the reference's logits.

    float32 differs by the order of additions alone: 1e-3 at most. Weights of fewer bits, computed in float32, are
    de-quantised by two programs, and a KV may have 16 bits (measured on tiny files: 0.01 and less). In 16 bits every
    activation is rounded, in an order that depends on the kernel, and in 8 bits those that are multiplied by weights:
    0.15, as the check at load allows (`model_runtime.forward.probe.logits_gap`).
    """

    measure: str
    allowed_std: float

    def gap_std(self, found: torch.Tensor, expected: torch.Tensor) -> float:
        """The gap between two sets of logits `(positions, vocabulary)`: the largest of all positions' gaps."""
        width = min(found.shape[-1], expected.shape[-1])  # a padded vocabulary ends with ids that no text has
        found, expected = comparable(found[:, :width], expected[:, :width])
        difference = (found - expected) / expected.std(dim=-1, keepdim=True)
        if self.measure == LARGEST:
            return float(difference.abs().max())
        return float(difference.square().mean(dim=-1).sqrt().max())


EXACT = Tolerance(LARGEST, 1e-3)
FEWER_BITS = Tolerance(ROOT_MEAN_SQUARE, 0.03)
ROUNDED = Tolerance(ROOT_MEAN_SQUARE, 0.15)


def compare_model(config: ModelConfig, say: Say, most_tokens: int = MOST_TOKENS) -> ModelComparison:
    """Runs the model twice, never both in memory, and holds one against the other. Raises `ModelLoadError` where there
    is no model to compare, and `ValueError` for settings that leave no reference."""
    path = _path_of(config, say)
    if path.is_file() and config.quantization in ("nf4", "int8"):
        raise ValueError(
            f"transformers cannot quantise a .gguf file to {config.quantization}, so there is nothing to compare with. "
            "Leave --quantization out."
        )
    say(f"Running it through Keepwarm, with texts of up to {most_tokens:,} tokens: on a CPU this may take minutes.")
    try:
        ours = run_keepwarm(config, own_config(path), most_tokens, say)
    except ModelRuntimeError as error:
        return _refused(config, path, str(error), say)
    try:
        found = _held_against(ours, path, config.model, say)
    except Exception as error:  # whatever transformers raises for a model that it cannot read
        why = _sentence(error)
        return ModelComparison(
            config.model,
            Verdict.NOT_COMPARED,
            f"Not compared: transformers alone cannot run {config.model}: {why}",
            ours.sentence,
            why,
        )
    if found.verdict is not Verdict.DIFFERS or not ours.has_float16_kv or not _may_be_rounded_rows(found):
        return found
    say("That may be the rounding of its float16 KV. Running it through Keepwarm with a KV of float32.")
    try:
        exact = run_keepwarm(config, own_config(path), most_tokens, say, kv_dtype="float32")
        return _told_apart(found, _held_against(exact, path, config.model, say))
    except Exception as error:  # twice the memory, for one
        return replace(found, notes=(*found.notes, f"It could not be run with a KV of float32: {_sentence(error)}"))


def _held_against(ours: KeepwarmSide, path: Path, model: str, say: Say) -> ModelComparison:
    release_memory()
    say("Running it through transformers alone.")
    return in_passing_thread(lambda: _compared(ours, path, model))


def _may_be_rounded_rows(found: ModelComparison) -> bool:
    """Whether nothing but logits differs, and by no more than 16 bits explain."""
    is_close = all(r.error is None and r.gap_std <= ROUNDED.allowed_std for r in found.readings)
    return is_close and all(i.agrees for i in found.ids) and any(not r.agrees for r in found.readings)


def _told_apart(rounded: ModelComparison, exact: ModelComparison) -> ModelComparison:
    """What a KV of float16 rounds, apart from everything else: a small model can answer a rounded row with a large
    change (0.06 standard deviations in one of random weights, 6e-5 with a KV of float32)."""
    if exact.verdict not in (Verdict.EXACT, Verdict.AGREES):
        return rounded
    gap_std = max(reading.gap_std for reading in rounded.readings)
    sentence = (
        f"Agrees within the rounding of its float16 KV: {gap_std:.2g} standard deviations, {ROUNDED.allowed_std:g} "
        f"allowed ({ROUNDED.measure}). With a KV of float32: {exact.sentence[0].lower()}{exact.sentence[1:]}"
    )
    return replace(exact, verdict=Verdict.AGREES, sentence=sentence, keepwarm=rounded.keepwarm)


def tolerance_of(ours: KeepwarmSide, reference: Reference) -> Tolerance:
    """By the precision of both sides."""
    if ours.dtype != torch.float32 or ours.has_integer_activations:
        return ROUNDED
    return EXACT if ours.is_float32 and not reference.has_rounded_weights else FEWER_BITS


def _path_of(config: ModelConfig, say: Say) -> Path:
    """The directory or file that the name means. Raises `ModelLoadError`."""
    if config.model == EMBEDDED:
        return embedded_gguf(config.cache_dir, say)
    path = Path(config.model).expanduser()
    model_id, choice = split_choice(config.model)
    if path.exists() or not looks_like_model_id(model_id):
        return path
    repository = hub_repository(model_id, say)
    if choice is not None or (gguf_models(repository.files) and not repository.has_safetensors):
        return hub_gguf(repository, choice, lambda model: None)
    return hub_directory(repository, lambda described: None)


def _compared(ours: KeepwarmSide, path: Path, model: str) -> ModelComparison:
    reference = load_reference(path, ours.dtype, ours.device, ours.config, ours.quantization_config, ours.nf4_experts)
    notes = [*ours.left_out, *reference.notes]
    ids = tuple(_ids(ours, reference, notes))
    tolerance = tolerance_of(ours, reference)
    readings = tuple(_reading(said, reference, tolerance) for said in ours.said)
    wrong = [*(f"the ids of the {i.what}" for i in ids if not i.agrees)]
    wrong += [f"the logits of the {r.what}" for r in readings if not r.agrees]
    verdict, sentence = _verdict(readings, tolerance, wrong, reference.unused)
    return ModelComparison(
        model, verdict, sentence, ours.sentence, reference.sentence, None, ids, readings, (*notes, *reference.unused)
    )


def _verdict(
    readings: tuple[ReadingFinding, ...], tolerance: Tolerance, wrong: list[str], unused: tuple[str, ...]
) -> tuple[Verdict, str]:
    worst = max(readings, key=lambda r: (not r.agrees, r.gap_std))
    measured = f"{worst.gap_std:.2g} standard deviations, {tolerance.allowed_std:g} allowed ({tolerance.measure})"
    if wrong or unused:
        where = f": {', '.join(wrong[:4])}{' and more' if len(wrong) > 4 else ''}" if wrong else f": {unused[0]}"
        return Verdict.DIFFERS, f"Differs{where.rstrip('.')}. The largest gap of logits is {measured}."
    if tolerance is EXACT:
        return Verdict.EXACT, f"Exact: the largest gap of logits is {measured}."
    return Verdict.AGREES, f"Agrees within the rounding of this precision: {measured}."


def _ids(ours: KeepwarmSide, reference: Reference, notes: list[str]) -> Iterator[IdsFinding]:
    template = None if reference.tokenizer.chat_template and not ours.is_preset else ours.chat_template
    if template:
        notes.append("Both sides use Keepwarm's chat template: the tokenizer has none, or another one was asked for.")
    for turn in ours.turns:
        try:
            theirs = own_ids(reference.tokenizer, template, turn)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            notes.append(f"The ids of the {turn.what} were not compared: the template refuses it ({error}).")
            continue
        if theirs is None:
            notes.append(f"The ids of the {turn.what} were not compared: the template does not write the answer once.")
        else:
            yield IdsFinding(turn.what, turn.token_ids, theirs)


def _reading(said: Said, reference: Reference, tolerance: Tolerance) -> ReadingFinding:
    """The same ledger in one uncached read. Its greedy tokens are the reference's own as long as all before them were
    Keepwarm's, so they end with the first that differs."""
    if not said.sampled:
        error = said.error or "Keepwarm sampled no token."
        return ReadingFinding(
            said.what, len(said.ledger), float("nan"), tolerance.allowed_std, tolerance.measure, (), (), error
        )
    expected = read_as_it_grew(reference.model, (*said.ledger, *said.sampled[:-1]), len(said.sampled)).cpu()
    picked = [int(token) for token in expected.argmax(dim=-1)]
    equal = next((n for n, pair in enumerate(zip(said.sampled, picked, strict=True)) if len(set(pair)) > 1), None)
    return ReadingFinding(
        what=said.what,
        ledger_tokens=len(said.ledger),
        gap_std=tolerance.gap_std(said.logits, expected),
        allowed_std=tolerance.allowed_std,
        measure=tolerance.measure,
        keepwarm_tokens=_pieces(reference.tokenizer, said.sampled),
        transformers_tokens=_pieces(reference.tokenizer, picked if equal is None else picked[: equal + 1]),
        error=said.error,
    )


def _pieces(tokenizer: PreTrainedTokenizerFast, ids: object) -> tuple[str, ...]:
    return tuple(_piece(tokenizer, int(token_id)) for token_id in ids)  # type: ignore[attr-defined]


def _piece(tokenizer: PreTrainedTokenizerFast, token_id: int) -> str:
    """A token as text; a part of a character as the vocabulary writes it."""
    own = str(tokenizer.convert_ids_to_tokens(token_id))
    if own.startswith("▁"):  # decoded alone, it would lose its space
        return own.replace("▁", " ")
    text = str(tokenizer.decode([token_id]))
    return own if not text or "\ufffd" in text else text


def _refused(config: ModelConfig, path: Path, refusal: str, say: Say) -> ModelComparison:
    """Whether transformers alone can run what Keepwarm refused."""
    say("Keepwarm refuses it. Trying transformers alone.")
    try:
        theirs = in_passing_thread(lambda: _tried(path))
        can = "transformers alone can run it"
    except Exception as error:
        theirs = _sentence(error)
        can = f"transformers alone cannot run it either: {theirs}"
    return ModelComparison(config.model, Verdict.REFUSED, f"Refused: {refusal} {can.rstrip('.')}.", "", theirs, refusal)


def _tried(path: Path) -> str:
    if not path.exists():
        raise ModelLoadError(f"There is no file or directory {path}.")
    reference = load_reference(path, torch.float32, "cpu", None, None)
    if not torch.isfinite(full_read(reference.model, _TRIAL_IDS)).all():
        raise ModelLoadError("It computes no valid numbers.")
    return reference.sentence


def _sentence(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line[:300] if line.endswith(".") else f"{line[:300]}."
