"""The weighted loss over a global batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("transformers", reason="the training extra is not installed")

import torch
from train_engine import engine_of
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from train.data import Row, collate
from train.loss import accumulate_gradients, total_weight, weighted_nll
from train.model import check_packing
from udfs.errors import TrainingError

Batch = dict[str, torch.Tensor]


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
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


def batch_of(rows: Sequence[tuple[list[int], list[float]]]) -> Batch:
    """Token ids and weights, padded on the right."""
    width = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows]),
        "position_ids": torch.arange(width).repeat(len(rows), 1),
        "token_weight": torch.tensor([w + [0.0] * (width - len(w)) for _, w in rows]),
        "segment": torch.arange(len(rows)).unsqueeze(1).expand(-1, width),
    }


ROWS: list[tuple[list[int], list[float]]] = [
    ([3, 7, 9, 11, 2], [0, 0, 1, 1, 1]),
    ([3, 8, 40], [0, 0.5, 0.5]),
    ([3, 5, 6, 7, 8, 9, 10, 2], [0, 0, 0, 2, 2, 0, 0, 2]),
    ([3], [0]),  # a blank row
]
BLANK: Batch = batch_of([([3], [0.0]), ([3], [0.0])])


def by_hand(model: LlamaForCausalLM, rows: Sequence[tuple[list[int], list[float]]]) -> float:
    """Σ(w·nll)/Σw by numpy, a row and a token at a time, without padding."""
    total = weights = 0.0
    for ids, weight in rows:
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().detach().numpy()
        for t in range(1, len(ids)):
            scores = logits[t - 1]
            nll = np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[ids[t]]
            total += weight[t] * nll
            weights += weight[t]
    return total / weights


def gradients(model: LlamaForCausalLM, batches: Sequence[Batch]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    weight = total_weight(batches)
    loss = accumulate_gradients(engine_of(model), batches, weight).loss
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return float(loss), torch.cat(found)


def test_the_loss_is_the_weighted_mean_over_tokens(model: LlamaForCausalLM) -> None:
    loss, _ = gradients(model, [batch_of(ROWS)])

    assert loss == pytest.approx(by_hand(model, ROWS), rel=1e-5)


def test_accumulating_equals_one_big_batch(model: LlamaForCausalLM) -> None:
    together, one_gradient = gradients(model, [batch_of(ROWS)])
    apart, sum_of_gradients = gradients(
        model, [batch_of(ROWS[2:3]), BLANK, batch_of(ROWS[:2]), batch_of(ROWS[3:])]
    )

    assert apart == pytest.approx(together, rel=1e-6)
    torch.testing.assert_close(sum_of_gradients, one_gradient, rtol=1e-4, atol=1e-6)


def test_a_weight_counts_as_often_as_it_says(model: LlamaForCausalLM) -> None:
    doubled = [(ids, [2 * w for w in weight]) for ids, weight in ROWS[:1]]
    weighted, one = gradients(model, [batch_of(doubled + ROWS[1:2])])
    repeated, other = gradients(model, [batch_of([ROWS[0], ROWS[0], ROWS[1]])])

    assert weighted == pytest.approx(repeated, rel=1e-6)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert weighted != pytest.approx(by_hand(model, ROWS[:2]), rel=1e-3)


def test_gradient_checkpointing_changes_no_gradient(model: LlamaForCausalLM) -> None:
    layers = list(model.model.layers)
    seen: list[int] = []
    for layer in layers:
        layer.self_attn.register_forward_hook(lambda *_: seen.append(1))
    kept, expected = gradients(model, [batch_of(ROWS)])
    assert len(seen) == len(layers)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, found = gradients(model, [batch_of(ROWS)])

    assert len(seen) == 3 * len(layers)  # once more for the loss, and once for its gradient
    assert again == kept
    assert torch.equal(found, expected)


def test_unweighted_it_is_the_models_own_loss(model: LlamaForCausalLM) -> None:
    rows = [(ids, [float(w > 0) for w in weight]) for ids, weight in ROWS]
    batch = batch_of(rows)
    labels = batch["input_ids"].masked_fill(batch["token_weight"] == 0, -100)
    mask = torch.tensor([[i < len(ids) for i in range(labels.shape[1])] for ids, _ in rows])
    own = model(input_ids=batch["input_ids"], attention_mask=mask, labels=labels).loss

    assert gradients(model, [batch])[0] == pytest.approx(own.item(), rel=1e-6)


def test_a_blank_batch_gives_zero_gradients_not_none(model: LlamaForCausalLM) -> None:
    nll = weighted_nll(model, BLANK).loss
    nll.backward()

    assert nll == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


# --- packed rows ------------------------------------------------------------------------------


def packed(*segments: tuple[list[int], list[float]]) -> Row:
    """A row of segments; each has one weight, where it has any."""
    ids = [i for tokens, _ in segments for i in tokens]
    return Row(
        number=0,
        input_ids=np.array(ids, dtype=np.int32),
        loss_mask=np.array([w > 0 for _, weight in segments for w in weight]),
        lengths=np.array([len(tokens) for tokens, _ in segments], dtype=np.int32),
        weights=np.array([max(weight) for _, weight in segments], dtype=np.float32),
        positions=np.arange(len(segments)),
        parts=np.zeros(len(segments), dtype=np.int32),
        trajectory_ids=[str(i) for i in range(len(segments))],
    )


PACKS = [packed(*ROWS[:2]), packed(ROWS[2], ROWS[3], ROWS[0])]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("is_flat", [False, True])
def test_packed_equals_unpacked(model: LlamaForCausalLM, attention: str, is_flat: bool) -> None:
    model.set_attn_implementation(attention)
    apart, expected = gradients(model, [batch_of([row]) for row in [*ROWS, ROWS[0]]])
    together, found = gradients(model, [collate(PACKS, 0, is_flat)])

    assert together == pytest.approx(apart, rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_segments_of_a_row_do_not_see_each_other(model: LlamaForCausalLM, attention: str) -> None:
    model.set_attn_implementation(attention)
    row = packed(*ROWS[:3])
    other = packed(ROWS[0], ([41, 42, 43], [0, 0.5, 0.5]), ROWS[2])
    before, after = (
        model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits[0]
        for batch in (collate([each], 0) for each in (row, other))
    )

    assert torch.equal(before[:5], after[:5]) and torch.equal(before[8:], after[8:])
    assert not torch.allclose(before[5:8], after[5:8])


def test_a_model_that_carries_a_state_along_the_row_is_not_packed(model: LlamaForCausalLM) -> None:
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2))

    check_packing(model)
    with pytest.raises(TrainingError, match="see each other"):
        check_packing(mamba)
