"""The loss: Σ(w·nll)/Σw over the tokens of one optimiser step, wherever they were computed.

The sums run over the global batch, across accumulation and ranks, so a token counts by its weight
and by nothing else: not by the length of its sample, not by the rank or micro-batch it fell into.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def weighted_nll(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Σ(w·nll) of one batch: a scalar, in float32. See `token_losses`."""
    losses, _ = token_losses(model, batch)
    return losses.sum()


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


def total_weight(batches: Sequence[dict[str, Tensor]]) -> float:
    """Σw of one rank's batches, over the tokens that `weighted_nll` predicts."""
    return sum(float(batch["token_weight"][:, 1:].sum(dtype=torch.float64)) for batch in batches)


def accumulate_gradients(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    global_weight: float,
) -> tuple[Tensor, list[Tensor]]:
    """Add the gradient of Σ(w·nll)/`global_weight` to the model's.

    Args:
        batches: this rank's share of the step, as `train.data.collate` makes them; the same count
            on every rank.
        global_weight: Σw over the shares of all ranks, > 0.

    Data-parallel training averages gradients over the ranks, where a sum is needed: hence the
    factor of the world size. Ranks exchange gradients once, at the last batch.

    Returns:
        This rank's part of the loss, and for each batch Σ(w·nll) of its segments, a vector each.
    """
    by_segment: list[Tensor] = []
    loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for number, batch in enumerate(batches, start=1):
        on_device = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with accelerator.no_sync(model) if number < len(batches) else nullcontext():
            losses, columns = token_losses(model, on_device)
            nll = losses.sum() / global_weight
            accelerator.backward(nll * accelerator.num_processes)
        loss += nll.detach()
        sums = torch.zeros(int(batch["segment"].max()) + 1, device=losses.device)
        places = on_device["segment"][:, 1:][:, columns]
        by_segment.append(sums.index_add(0, places.flatten(), losses.detach().flatten()))
    return loss, by_segment
