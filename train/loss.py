"""The losses of one optimiser step, over its global batch, wherever its parts were computed.

Supervised: Σ(w·nll)/Σw over tokens. Of pairs: Σ(w·loss)/Σw over `preference_losses`. The sums run
over the global batch, across accumulation and ranks, so a token (a pair) counts by its weight and
by nothing else: not by the length of its sample, not by the rank or micro-batch it fell into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from train.engine import Engine

# What `preference_losses` gives beside the loss, in order.
REWARDS = ("reward_accuracy", "chosen_reward", "rejected_reward", "reward_margin")


@dataclass(frozen=True)
class Measured:
    """What came of one batch, or of a rank's share of a step (then nothing is differentiable).

    Args:
        loss: a scalar, a sum over the batch.
        segment_nll: Σ(w·nll) of each segment [S], detached.
        sums: further sums over the batch [K], detached, in float64.
    """

    loss: Tensor
    segment_nll: Tensor
    sums: Tensor


Measure = Callable[[nn.Module, dict[str, Tensor]], Measured]


def weighted_nll(model: nn.Module, batch: dict[str, Tensor]) -> Measured:
    """Σ(w·nll) of one batch, in float32. See `token_losses`."""
    losses, columns = token_losses(model, batch)
    detached = losses.detach()
    return Measured(
        losses.sum(), by_segment(detached, columns, batch), losses.new_zeros(0).double()
    )


def token_losses(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """w·nll of the tokens that a batch predicts.

    Args:
        model: a causal language model of transformers, prepared or not.
        batch: `input_ids`, `position_ids` [B, T] int64 and `token_weight` [B, T] float32, where a
            weight belongs to the token predicted. The first token of a row is never predicted; the
            first of every other segment must have no weight. Positions begin anew in a segment,
            which is how transformers keeps segments from seeing each other.

    Returns:
        w·nll [B, C] in float32, and the C columns of `input_ids[:, 1:]` that they are of.

    Logits are computed only for the columns that some row needs: with a large vocabulary they
    would otherwise take more memory than the model.
    """
    weight = batch["token_weight"][:, 1:]
    columns = weight.any(dim=0).nonzero().squeeze(1)
    logits = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        logits_to_keep=columns,
        use_cache=False,
    ).logits
    nll = cross_entropy(
        logits.float().transpose(1, 2), batch["input_ids"][:, 1:][:, columns], reduction="none"
    )
    return weight[:, columns] * nll, columns


def by_segment(values: Tensor, columns: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Sums over the segments of a batch [S] of what `token_losses` gave [B, C]."""
    places = batch["segment"][:, 1:][:, columns]
    sums = values.new_zeros(int(batch["segment"].max()) + 1)
    return sums.index_add(0, places.flatten(), values.flatten())


def total_weight(batches: Sequence[dict[str, Tensor]]) -> float:
    """Σw of one rank's batches, over the tokens that `weighted_nll` predicts."""
    return sum(float(batch["token_weight"][:, 1:].sum(dtype=torch.float64)) for batch in batches)


def segment_nll(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Of each segment of a batch, Σ(w·nll) and Σw, both [S] in float64.

    A continuation of thousands of tokens has a sum in the thousands, of which float32 would keep
    three decimals, while what is learned from is the difference of two such sums.
    """
    losses, columns = token_losses(model, batch)
    weight = batch["token_weight"][:, 1:][:, columns]
    return by_segment(losses.double(), columns, batch), by_segment(weight.double(), columns, batch)


def weighted_preference(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> Measured:
    """Σ(w·loss) over the pairs of one batch, and Σ(w·reward) for each of `REWARDS`.

    Args:
        model: as for `token_losses`.
        batch: what `token_losses` takes, two segments a pair; `reference_nll` and `pair_weight` [S]
            float64. Pairs of weight 0 fill up.
        options: of `preference_losses`.
    """
    nll, tokens = segment_nll(model, batch)
    losses, rewards = preference_losses(
        *(each.view(-1, 2) for each in (nll, batch["reference_nll"], tokens)), **options
    )
    weight = batch["pair_weight"][::2]
    return Measured(
        (weight * losses).sum(), nll.detach(), (weight.unsqueeze(1) * rewards).sum(dim=0)
    )


def preference_losses(
    nll: Tensor,
    reference_nll: Tensor,
    tokens: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    length_normalised: bool = False,
    sft_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The loss of each pair: DPO (Rafailov et al. 2023, equation 7), with what the field adds.

    A side's reward is beta·(log p - log p of the reference), over the tokens that carry loss. The
    loss is -log sigmoid(chosen reward - rejected reward).

    Args:
        nll: of both sides of P pairs [P, 2], chosen first: minus the sum of log p.
        reference_nll: the same of the reference.
        tokens: how many carry loss [P, 2].
        label_smoothing: how likely it is that a pair is the wrong way round (conservative DPO,
            Mitchell 2023): the loss is a mean of both ways. It has a minimum, where the plain one
            pulls the sides apart for ever.
        length_normalised: rewards are divided by the tokens of their side, so that long
            continuations pull no harder (Lambert et al. 2024, "Tulu 3", section 5). beta is then
            larger by about two orders.
        sft_weight: this times the chosen side's nll a token is added (Pang et al. 2024, "Iterative
            Reasoning Preference Optimization", equation 1). DPO looks at the difference only, and
            often makes both sides less likely; this holds the chosen one.

    Returns:
        The losses [P], and for each pair the values of `REWARDS` [P, 4]: whether the chosen reward
        is the higher one, both rewards, and their difference. Finite where a pair has no token.
    """
    tokens = tokens.clamp(min=1)
    gain = reference_nll - nll
    rewards = beta * (gain / tokens if length_normalised else gain)
    margin = rewards[:, 0] - rewards[:, 1]
    losses = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    losses = losses + sft_weight * nll[:, 0] / tokens[:, 0]
    told = torch.stack([(margin > 0).to(margin), *rewards.unbind(1), margin], dim=1)
    return losses, told.detach()


def accumulate_gradients(
    engine: Engine,
    batches: Sequence[dict[str, Tensor]],
    size: float,
    measure: Measure = weighted_nll,
) -> Measured:
    """Add the gradient of a step's loss to the model's.

    Args:
        batches: this rank's share of the step, as `train.data.collate` makes them; the same count
            on every rank.
        size: what the sum over all ranks is divided by, > 0: Σw.
        measure: what is summed.

    Engines average gradients over the ranks, where a sum is needed: hence the factor of the world
    size.

    Returns:
        This rank's part of the loss, divided by `size`; the segments of all its batches; the sums.
    """
    accelerator = engine.accelerator
    segments: list[Tensor] = []
    sums: list[Tensor] = []
    loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for number, batch in enumerate(batches, start=1):
        on_device = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with engine.part(is_last=number == len(batches)):
            measured = measure(engine.model, on_device)
            part = measured.loss / size
            engine.backward(part * accelerator.num_processes)
        loss += part.detach()
        segments.append(measured.segment_nll)
        sums.append(measured.sums)
    return Measured(loss, torch.cat(segments), torch.stack(sums).sum(dim=0))
