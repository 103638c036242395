"""Each setting does what its name says."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from model_runtime.decoding.sampling import Sampler, logprobs_of
from model_runtime.interface.sampling_params import SamplingParams

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03]))
CPU = torch.device("cpu")


def shares(ledger: tuple[int, ...] = (), **settings: float) -> list[float]:
    """How often each token comes in 4,000 draws."""
    params = SamplingParams(**{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 5, **settings})  # type: ignore[arg-type]
    sampler = Sampler(params, ledger, CPU)
    counts = torch.zeros(5)
    for _ in range(4000):
        counts[sampler.pick(LOGITS.clone())] += 1
    return [float(c) / 4000 for c in counts]


def test_plain_sampling_follows_the_probabilities() -> None:
    assert shares() == pytest.approx([0.5, 0.25, 0.15, 0.07, 0.03], abs=0.03)


def test_top_k_keeps_the_best_and_their_proportion() -> None:
    assert shares(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0, 0], abs=0.03)


def test_top_p_keeps_the_token_that_crosses_the_line() -> None:
    assert shares(top_p=0.7) == pytest.approx([2 / 3, 1 / 3, 0, 0, 0], abs=0.03)
    assert shares(top_p=0.76)[2] > 0
    assert shares(top_p=0.01)[0] == 1


def test_min_p_is_a_share_of_the_best() -> None:
    found = shares(min_p=0.2)
    assert found[3] == found[4] == 0
    assert found[2] > 0


def test_temperature_flattens_and_sharpens() -> None:
    assert shares(temperature=0.3)[0] > 0.8
    assert shares(temperature=3.0)[0] < 0.35


def test_greedy_takes_the_best() -> None:
    assert Sampler(SamplingParams(temperature=0), (), CPU).choose(LOGITS.clone()) == 0


def test_a_repetition_penalty_counts_the_ledger_and_what_was_sampled() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=1.5)
    sampler = Sampler(params, (0,), CPU)
    logits = torch.tensor([4.0, 3.0, 2.5, -1.0, -2.0])
    assert sampler.choose(logits.clone()) == 1  # 4 / 1.5 falls below 3
    assert sampler.choose(logits.clone()) == 0  # now 3 / 1.5 falls below 4 / 1.5
    alone = torch.tensor([-1.0, -1.2, -math.inf, -math.inf, -math.inf])
    assert Sampler(params, (0,), CPU).choose(alone) == 1  # negative scores are multiplied


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"max_new_tokens": 0},
        {"seed": -1},
        {"stop_strings": ("",)},
        {"stop_strings": tuple("abcdefghijklmnopq")},
    ],
)
def test_settings_out_of_range_are_refused_with_a_sentence(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must|allowed"):
        SamplingParams(**settings)  # type: ignore[arg-type]


def test_presence_and_frequency_penalties_count_this_answer_alone() -> None:
    logits = torch.tensor([4.0, 3.9, 3.0, 0.0, 0.0])
    presence = Sampler(SamplingParams(temperature=0, presence_penalty=0.5), (0, 1), CPU)
    assert [presence.choose(logits.clone()) for _ in range(4)] == [0, 1, 0, 0]  # taken once a token
    frequency = Sampler(SamplingParams(temperature=0, frequency_penalty=0.5), (0, 1), CPU)
    assert [frequency.choose(logits.clone()) for _ in range(5)] == [0, 1, 0, 1, 0]
    liked = Sampler(SamplingParams(temperature=0, frequency_penalty=-1.0), (), CPU)
    assert [liked.choose(logits.clone()) for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("window", [0, 1, 2, 3, 7])
def test_with_a_window_penalties_are_over_the_last_tokens_alone(window: int) -> None:
    """Each step is that of a sampler whose whole history are the tokens in the window."""
    generator = torch.Generator().manual_seed(5)
    penalties = {"repetition_penalty": 1.5, "presence_penalty": 0.4, "frequency_penalty": 0.3}
    said = [0, 1, 1, 2]
    sampler = Sampler(SamplingParams(temperature=0, penalty_window=window, **penalties), said, CPU)
    for _ in range(40):
        logits = torch.randn(5, generator=generator)
        expected = logits.clone()
        for token, times in Counter(said[max(0, len(said) - window) :]).items():
            score = expected[token]
            expected[token] = (score * 1.5 if score < 0 else score / 1.5) - 0.4 - 0.3 * times
        said.append(sampler.choose(logits))
        torch.testing.assert_close(logits, expected)


def test_log_probabilities_are_told_as_the_model_gave_them() -> None:
    told = logprobs_of(torch.log_softmax(LOGITS, dim=-1), 1, 2, lambda one_id: "abcde"[one_id])
    assert (told.chosen.text, told.chosen.logprob) == ("b", pytest.approx(math.log(0.25)))
    assert [(one.text, one.logprob) for one in told.top] == [
        ("a", pytest.approx(math.log(0.5))),
        ("b", pytest.approx(math.log(0.25))),
    ]
    assert logprobs_of(LOGITS, 4, 0, str).top == ()


@pytest.mark.parametrize(
    "wrong", [{"presence_penalty": 2.5}, {"frequency_penalty": -3.0}, {"top_logprobs": 21}, {"top_logprobs": -1}]
)
def test_penalties_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be between"):
        SamplingParams(**wrong)  # type: ignore[arg-type]


def test_penalties_count_every_token_of_a_long_answer() -> None:
    params = SamplingParams(temperature=0, frequency_penalty=0.5, presence_penalty=0.25)
    sampler = Sampler(params, (), CPU)
    logits = torch.linspace(1, 0, 1000)
    chosen = [sampler.choose(logits.clone()) for _ in range(1500)]
    for token_id in (0, 1, 400):  # each was taken before its neighbours were taken once more
        assert chosen.count(token_id) >= 1
    expected = torch.linspace(1, 0, 1000)
    counts = torch.zeros(1000)
    for token_id in chosen:
        penalised = expected - 0.5 * counts - 0.25 * (counts > 0)
        assert token_id == int(penalised.argmax())
        counts[token_id] += 1


def test_a_draw_is_what_multinomial_draws() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=1.0, top_k=0, seed=9), (), CPU)
    generator = torch.Generator().manual_seed(9)
    for _ in range(50):
        expected = torch.multinomial(torch.softmax(LOGITS, 0), 1, generator=generator)
        assert sampler.choose(LOGITS.clone()) == int(expected)


def test_a_logit_bias_is_added_before_anything_else() -> None:
    assert shares(logit_bias=((0, -100.0),))[0] == 0  # type: ignore[arg-type]
    assert shares(logit_bias=((4, 100.0),))[4] == 1  # type: ignore[arg-type]
    by_log_2 = shares(logit_bias=((1, math.log(2)),))  # type: ignore[arg-type]
    assert by_log_2[0] == pytest.approx(by_log_2[1], abs=0.03)
    biased = Sampler(SamplingParams(temperature=0, logit_bias=((2, 5.0),)), (), CPU)
    assert not biased.is_greedy
    assert biased.choose(LOGITS.clone()) == 2


def ends(count: int, **settings: object) -> list[int]:
    """The first greedy tokens of an answer in which the model's stop token 0 is always the likeliest, then 1."""
    sampler = Sampler(SamplingParams(temperature=0, **settings), (), CPU, {0})  # type: ignore[arg-type]
    return [sampler.choose(LOGITS.clone()) for _ in range(count)]


def test_no_stop_token_is_drawn_before_the_least_length() -> None:
    assert ends(3) == [0, 0, 0]
    assert ends(4, min_new_tokens=2) == [1, 1, 0, 0]
    assert ends(4, min_new_tokens=2, stop_token_ids=(1,)) == [2, 2, 0, 0]
    assert ends(3, ignore_eos=True) == [1, 1, 1]
    assert ends(3, ignore_eos=True, stop_token_ids=(1,)) == [1, 1, 1]  # the request's own still ends it
    assert ends(3, ignore_eos=True, min_new_tokens=1, stop_token_ids=(1,)) == [2, 1, 1]


def test_it_is_greedy_again_once_the_least_length_is_reached() -> None:
    sampler = Sampler(SamplingParams(temperature=0, min_new_tokens=2), (), CPU, {0})
    seen = []
    for _ in range(3):
        seen.append(sampler.is_greedy)
        sampler.choose(LOGITS.clone())
    assert seen == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"min_new_tokens": 600}, "at least 600 and at most 512"),
        ({"logit_bias": ((1, 101.0),)}, "between -100 and 100"),
        ({"logit_bias": tuple((n, 1.0) for n in range(1025))}, "At most 1,024 tokens"),
        ({"stop_token_ids": (-1,)}, "must not be negative"),
    ],
)
def test_wrong_settings_are_sentences(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SamplingParams(**settings)  # type: ignore[arg-type]
