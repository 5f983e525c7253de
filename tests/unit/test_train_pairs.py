"""Pairs on their way to batches: what carries loss, what is refused, in which order they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("transformers", reason="the training extra is not installed")
pytest.importorskip("mistral_common", reason="the training extra is not installed")

import duckdb
from train_export import preference_pair, react_sample, write_export, write_pairs

from train import prepare
from train.config import DpoSettings, ModelSettings
from train.data import Prepared, shares
from train.objectives import pair_order
from train.prepare import Preparation, open_export
from train.tokenizer import load_tokenizer
from udfs.errors import TrainingError

Prepare = Callable[..., Prepared]


@pytest.fixture
def prepare_pairs(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepares pairs, with settings of one's own."""
    monkeypatch.setenv("TRAJLAKE_EXPORTS", str(tmp_path / "exports"))
    monkeypatch.setenv("TRAJLAKE_PREPARED", str(tmp_path / "prepared"))
    monkeypatch.setenv("TRAJLAKE_WORKERS", "1")

    def run(pairs: list[dict[str, Any]], **changed: Any) -> Prepared:
        write_pairs(tmp_path / "exports" / "some.pairs", pairs)
        model = ModelSettings(path=str(tiny_model))
        settings = DpoSettings(objective="dpo", recipe="some", model=model, **changed)
        return Preparation(settings, open_export(settings), *load_tokenizer(model), 3).run()

    return run


def test_loss_is_on_what_the_agent_wrote_after_the_two_part(
    prepare_pairs: Prepare, tiny_model: Path
) -> None:
    prepared = prepare_pairs([preference_pair(7)])
    tokenizer, _ = load_tokenizer(ModelSettings(path=str(tiny_model)))
    chosen, rejected = prepared.row("train", 0).apart()

    # Neither the step that both have, nor what is observed, nor the masked output.
    assert tokenizer.decode(chosen.input_ids[chosen.loss_mask]) == (
        '<|tool_call|>{"name": "lookup", "arguments": {"word": "naïve"}}</s>'
        "Word 7 means simple. 素朴</s>"
    )
    assert tokenizer.decode(rejected.input_ids[rejected.loss_mask]) == "Nobody knows word 7.</s>"
    # Up to the first token with loss, both are the same to the model.
    before = int(rejected.loss_mask.argmax())
    assert before == int(chosen.loss_mask.argmax()) > 40
    assert chosen.input_ids[:before].tolist() == rejected.input_ids[:before].tolist()
    assert "Go on." in tokenizer.decode(chosen.input_ids[:before])


def test_a_pair_is_refused_as_a_whole_and_listed_with_the_reason(prepare_pairs: Prepare) -> None:
    pairs = [preference_pair(number) for number in range(8)]
    pairs[1]["rejected"][0]["content"] = "word " * 400
    pairs[2]["chosen"][4]["content"] = "It ends here.</s><|user|>Or not."
    pairs[3]["rejected"] = pairs[3]["chosen"]
    pairs[3]["rejected_loss_flags"] = [True, False, True, False, True]
    pairs[5]["rejected_loss_flags"] = [False]
    pairs[6]["weight"] = 0
    prepared = prepare_pairs(pairs, max_length=300)

    assert {
        (line["pair_id"], line["trajectory_id"], line["reason"], line["detail"].partition(":")[0])
        for line in prepared.manifest["refused"]
    } == {
        ("pair-1", "bad-1", "too_long", "rejected"),
        ("pair-2", "good-2", "control_token", "chosen"),
        (
            "pair-3",
            "good-3",
            "same_tokens",
            "both sides are the same to the model, so neither can be preferred",
        ),
        ("pair-5", "bad-5", "nothing_to_learn", "rejected"),
        ("pair-6", "good-6", "nothing_to_learn", "chosen"),
    }
    assert prepared.manifest["splits"]["train"]["refused_positions"] == 5
    assert prepared.pair_ids("train") == ["pair-0", "pair-4", "pair-7"]
    assert duckdb.sql(
        f"select row, position, pair_id, side, trajectory_id from '{prepared.folder}/rows.parquet' "
        "where row = 1 order by segment"
    ).fetchall() == [(1, 4, "pair-4", "chosen", "good-4"), (1, 4, "pair-4", "rejected", "bad-4")]


def test_a_weight_is_of_a_pair_and_not_of_its_tokens(prepare_pairs: Prepare) -> None:
    prepared = prepare_pairs([preference_pair(1) | {"weight": 2.5}, preference_pair(2)])
    settings = {"start": 0, "global_batch_size": 2, "micro_batch_size": 2, "pad_id": 0}
    (share,) = shares(prepared, "train", rank=0, world_size=1, **settings)
    (batch,) = share.batches

    assert share.segments["pair_weight"].to_pylist() == [2.5, 2.5, 1.0, 1.0]
    assert share.segments["weight"].to_pylist() == share.segments["trained_tokens"].to_pylist()
    assert batch["token_weight"].unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("is_flat", [False, True])
def test_every_pair_is_read_once_an_epoch_whatever_the_world(
    prepare_pairs: Prepare, is_flat: bool
) -> None:
    prepared = prepare_pairs([preference_pair(number) for number in range(10)])
    order = pair_order(prepared.pair_ids("train"), seed=5, epochs=2)

    def steps(world_size: int, start: int = 0) -> list[list[str]]:
        """Per step, the pairs that all ranks read."""
        ranks = [
            shares(
                prepared,
                "train",
                start=start,
                global_batch_size=8,
                micro_batch_size=2,
                rank=rank,
                world_size=world_size,
                pad_id=0,
                is_flat=is_flat,
                order=order[rank::world_size],
                rows_in_order=len(order),
            )
            for rank in range(world_size)
        ]
        read = []
        for step in zip(*ranks, strict=True):
            for share in step:
                assert len(share.batches) == 8 // world_size // 2
                for batch in share.batches:
                    # Two pairs are four segments: rows of their own, or one row of all.
                    assert int(batch["segment"].max()) == 3
                    assert len(batch["input_ids"]) == (1 if is_flat else 4)
                sides = share.segments.column("side").to_pylist()
                assert sides == ["chosen", "rejected"] * share.counts["rows"]
            read.append(sorted(i for s in step for i in s.segments["pair_id"].to_pylist()[::2]))
        return read

    alone = steps(1)
    assert [len(step) for step in alone] == [8, 8, 4]
    names = sorted(f"pair-{number}" for number in range(10))
    assert sorted(name for step in alone for name in step) == sorted(2 * names)
    assert steps(2) == steps(4) == alone
    assert steps(2, start=8) == alone[1:]


def test_an_epoch_after_the_first_has_an_order_of_its_own() -> None:
    names = [f"{number:x}" for number in range(50)]
    order = pair_order(names, seed=3, epochs=3)
    first, second, third = (order[i : i + 50].tolist() for i in (0, 50, 100))

    assert first == list(range(50))
    # What the manifest says, in other words.
    said = sorted(names, key=lambda name: (md5(f"3|2|{name}".encode()).hexdigest(), name))
    assert [names[row] for row in second] == said
    assert sorted(third) == first and second != third != first
    assert pair_order(names, seed=4, epochs=2)[50:].tolist() != second


def test_pairs_can_be_inspected(
    prepare_pairs: Prepare, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_pairs([preference_pair(1)])
    config = tmp_path / "dpo.yaml"
    said = {"objective": "dpo", "recipe": "some", "model": {"path": str(tiny_model)}}
    config.write_text(json.dumps(said))

    assert prepare.main(["--config", str(config), "--inspect", "1"]) == 0
    shown = capsys.readouterr().out
    assert "── position 0, trajectory good-1, chosen of pair-1, " in shown
    assert "── position 0, trajectory bad-1, rejected of pair-1, " in shown
    assert "⟦Nobody knows word 1.</s>⟧" in shown
    assert "train: 1 pairs, 1 rows" in shown


def test_an_export_of_samples_is_no_export_of_pairs(
    prepare_pairs: Prepare, tiny_model: Path, tmp_path: Path
) -> None:
    settings = DpoSettings(
        objective="dpo", recipe="plain", model=ModelSettings(path=str(tiny_model))
    )
    with pytest.raises(TrainingError, match="`trajlake export plain --layout pairs`"):
        open_export(settings)
    write_export(tmp_path / "exports" / "plain.pairs", [react_sample(1)])
    with pytest.raises(TrainingError, match=r"which train\.dpo does not read"):
        open_export(settings)
