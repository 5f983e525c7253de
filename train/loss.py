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
    """Σ(w·nll) of one batch: a scalar, in float32.

    Args:
        model: a causal language model of transformers, prepared or not.
        batch: `input_ids`, `position_ids` [B, T] int64 and `token_weight` [B, T] float32, where a
            weight belongs to the token predicted. The first token of a row is never predicted; the
            first of every other segment must have no weight. Positions begin anew in a segment,
            which is how transformers keeps segments from seeing each other.

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
    return (weight[:, columns] * nll).sum()


def total_weight(batches: Sequence[dict[str, Tensor]]) -> float:
    """Σw of one rank's batches, over the tokens that `weighted_nll` predicts."""
    return sum(float(batch["token_weight"][:, 1:].sum(dtype=torch.float64)) for batch in batches)


def accumulate_gradients(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    global_weight: float,
) -> Tensor:
    """Add the gradient of Σ(w·nll)/`global_weight` to the model's; return this rank's part of it.

    Args:
        batches: this rank's share of the step; the same count on every rank.
        global_weight: Σw over the shares of all ranks, > 0.

    Data-parallel training averages gradients over the ranks, where a sum is needed: hence the
    factor of the world size. Ranks exchange gradients once, at the last batch.
    """
    loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for number, batch in enumerate(batches, start=1):
        on_device = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with accelerator.no_sync(model) if number < len(batches) else nullcontext():
            nll = weighted_nll(model, on_device) / global_weight
            accelerator.backward(nll * accelerator.num_processes)
        loss += nll.detach()
    return loss
