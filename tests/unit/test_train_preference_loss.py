"""The loss of pairs, against one computed a sequence at a time, without padding or batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("transformers", reason="the training extra is not installed")

import torch
from torch.nn.functional import log_softmax
from train_engine import engine_of
from transformers import LlamaConfig, LlamaForCausalLM

from train.data import Row, blank_row, collate
from train.loss import (
    REWARDS,
    Measured,
    accumulate_gradients,
    preference_losses,
    segment_nll,
    weighted_preference,
)

Side = tuple[list[int], list[int]]  # tokens, and 1 where one carries loss
Pair = tuple[Side, Side]

PAIRS: list[Pair] = [
    (([3, 7, 9, 11, 2], [0, 0, 1, 1, 1]), ([3, 7, 8, 2], [0, 0, 1, 1])),
    (([3, 40, 2], [0, 1, 1]), ([3] + [9] * 11, [0, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 0])),
    (([5, 6, 7, 8, 9, 10], [0, 0, 0, 0, 0, 1]), ([5, 6, 7, 8, 9, 11], [0, 0, 0, 0, 0, 1])),
]


def tiny(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.5,
        )
    )


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny(0)


@pytest.fixture
def reference() -> LlamaForCausalLM:
    return tiny(1)


def log_probability(model: LlamaForCausalLM, side: Side) -> torch.Tensor:
    """Of what carries loss."""
    ids, mask = side
    told = log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)
    return sum(
        (told[t - 1, ids[t]] for t in range(1, len(ids)) if mask[t]), torch.zeros(()).double()
    )


def by_hand(
    model: LlamaForCausalLM, reference: LlamaForCausalLM, pairs: Sequence[Pair], **options: Any
) -> tuple[torch.Tensor, list[list[float]]]:
    """The loss and the rewards of each pair, from the equation as it is printed."""
    beta, smoothing = options["beta"], options.get("label_smoothing", 0.0)
    losses, rewards = [], []
    for pair in pairs:
        w, l = (log_probability(model, side) for side in pair)  # noqa: E741
        with torch.no_grad():
            ref_w, ref_l = (log_probability(reference, side) for side in pair)
        lengths = [sum(mask) for _, mask in pair]
        by = lengths if options.get("length_normalised") else [1, 1]
        chosen, rejected = beta * (w - ref_w) / by[0], beta * (l - ref_l) / by[1]
        right = 1 / (1 + torch.exp(rejected - chosen))
        loss = -(1 - smoothing) * torch.log(right) - smoothing * torch.log(1 - right)
        chosen, rejected = chosen.detach(), rejected.detach()
        losses.append(loss + options.get("sft_weight", 0.0) * -w / lengths[0])
        rewards.append([float(chosen > rejected), float(chosen), float(rejected)])
    return torch.stack(losses), rewards


def batch_of(
    pairs: Sequence[Pair],
    reference: LlamaForCausalLM,
    is_flat: bool = False,
    blanks: int = 0,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
) -> dict[str, torch.Tensor]:
    """As the trainer makes it, blank pairs at the end."""
    weights = [*weights[: len(pairs)], *[0.0] * blanks]
    rows = [
        Row(
            number=number,
            input_ids=np.array([i for ids, _ in pair for i in ids], dtype=np.int32),
            loss_mask=np.array([m for _, mask in pair for m in mask], dtype=np.bool_),
            lengths=np.array([len(ids) for ids, _ in pair], dtype=np.int32),
            weights=np.full(2, weights[number], dtype=np.float32),
            positions=np.full(2, number),
            parts=np.zeros(2, dtype=np.int32),
            trajectory_ids=["a", "b"],
            pair_id=str(number),
        )
        for number, pair in enumerate(pairs)
    ]
    rows += [blank_row(0, 2)] * blanks
    if not is_flat:
        rows = [side for row in rows for side in row.apart()]
    batch = collate(rows, 0, is_flat)
    with torch.no_grad():
        nll, _ = segment_nll(reference, batch)
    pair_weight = torch.tensor(weights, dtype=torch.float64).repeat_interleave(2)
    return batch | {"reference_nll": nll, "pair_weight": pair_weight}


def gradients(
    model: LlamaForCausalLM, batches: Sequence[dict[str, torch.Tensor]], size: float, **options: Any
) -> tuple[Measured, torch.Tensor]:
    model.zero_grad()
    measure = partial(weighted_preference, **options)
    found = accumulate_gradients(engine_of(model), batches, size, measure)
    return found, gradient_of(model)


def gradient_of(model: LlamaForCausalLM) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


OPTIONS: list[dict[str, Any]] = [
    {"beta": 0.1},
    {"beta": 0.3, "label_smoothing": 0.2},
    {"beta": 2.0, "length_normalised": True},
    {"beta": 0.1, "sft_weight": 0.7},
]


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.25, 3.0, 1.5]], ids=["mean", "weighted"])
def test_loss_rewards_and_gradients_are_those_of_the_equation(
    model: LlamaForCausalLM,
    reference: LlamaForCausalLM,
    weights: list[float],
    options: dict[str, Any],
    is_flat: bool,
) -> None:
    losses, rewards = by_hand(model, reference, PAIRS, **options)
    size = sum(weights)
    expected = torch.tensor(weights, dtype=torch.float64) @ losses / size
    expected.backward()
    wanted = gradient_of(model)
    # In two batches; the second has a blank pair, which counts nowhere.
    batches = [
        batch_of(PAIRS[:2], reference, is_flat, weights=weights[:2]),
        batch_of(PAIRS[2:], reference, is_flat, blanks=1, weights=weights[2:]),
    ]
    found, gradient = gradients(model, batches, size, **options)

    assert float(found.loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)
    means = dict(zip(REWARDS, (found.sums / size).tolist(), strict=True))
    accuracy, chosen, rejected = np.average(rewards, axis=0, weights=weights)
    assert means["reward_accuracy"] == pytest.approx(accuracy)
    assert means["chosen_reward"] == pytest.approx(chosen, rel=1e-4)
    assert means["rejected_reward"] == pytest.approx(rejected, rel=1e-4)
    assert means["reward_margin"] == pytest.approx(chosen - rejected, rel=1e-4)
    # What the lake is told of a side has no weight in it: rewards are made of it.
    likelihoods = [-float(log_probability(model, side).detach()) for pair in PAIRS for side in pair]
    assert found.segment_nll[:6].tolist() == pytest.approx(likelihoods, rel=1e-5)


def test_a_weight_that_all_have_changes_nothing(
    model: LlamaForCausalLM, reference: LlamaForCausalLM
) -> None:
    plain, light, heavy = (
        gradients(model, [batch_of(PAIRS, reference, weights=[w] * 3)], 3 * w, beta=0.1)
        for w in (1.0, 0.25, 64.0)
    )
    # Powers of two are exact, so this is bit for bit.
    for found, gradient in (light, heavy):
        assert torch.equal(found.loss, plain[0].loss)
        assert torch.equal(gradient, plain[1])


def test_before_the_first_step_nothing_is_preferred(model: LlamaForCausalLM) -> None:
    batches = [batch_of(PAIRS, model)]
    found, gradient = gradients(model, batches, len(PAIRS), beta=0.1)

    assert float(found.loss) == pytest.approx(np.log(2), rel=1e-9)
    assert found.sums.tolist() == [0, 0, 0, 0]
    assert gradient.abs().max() > 1e-3  # and still there is something to learn


def test_a_share_of_blank_pairs_is_worth_nothing(
    model: LlamaForCausalLM, reference: LlamaForCausalLM
) -> None:
    found, gradient = gradients(
        model, [batch_of([], reference, blanks=2)], 1, beta=0.1, sft_weight=1.0
    )

    assert found.loss == 0 and not found.sums.any()
    assert not gradient.any()


def test_smoothing_gives_the_loss_a_minimum() -> None:
    nll = torch.zeros((40, 2), dtype=torch.float64)
    nll[:, 1] = torch.linspace(0, 400, 40)
    tokens = torch.ones_like(nll)

    plain, _ = preference_losses(nll, torch.zeros_like(nll), tokens, beta=0.1)
    smooth, _ = preference_losses(nll, torch.zeros_like(nll), tokens, beta=0.1, label_smoothing=0.1)
    assert int(plain.argmin()) == 39
    assert 0 < int(smooth.argmin()) < 10
