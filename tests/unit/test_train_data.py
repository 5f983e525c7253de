"""Exports by position, prepared rows by number, and batches for every rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the training extra is not installed")
pytest.importorskip("mistral_common", reason="the training extra is not installed")

import torch
from train_export import SCHEMA, react_sample, tool_sample, write_export

from train.config import ModelSettings, SftSettings
from train.data import Export, Prepared, collate, shares
from train.prepare import Preparation
from train.sampler import shard_order
from train.tokenizer import load_tokenizer
from udfs.errors import TrainingError

PAD = 3

Prepare = Callable[..., Prepared]


def rows(number: int) -> list[dict[str, Any]]:
    return [(react_sample if i % 3 else tool_sample)(i, weight=1 + i % 4) for i in range(number)]


@pytest.fixture
def prepare(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepares samples with settings of one's own."""
    monkeypatch.setenv("TRAJLAKE_PREPARED", str(tmp_path / "prepared"))

    numbers = count()

    def prepare(samples: list[dict[str, Any]], **changed: Any) -> Prepared:
        model = ModelSettings(path=str(tiny_model))
        settings = SftSettings(recipe="some", model=model, **changed)
        export = Export(write_export(tmp_path / f"some-{next(numbers)}", samples, rows(3)))
        return Preparation(settings, export, *load_tokenizer(model)).run()

    return prepare


# --- order ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "stop"), [(0, 25), (7, 8), (3, 24), (10, 20), (24, 25)])
def test_any_range_of_positions_can_be_read(tmp_path: Path, start: int, stop: int) -> None:
    export = Export(write_export(tmp_path / "some", rows(25)))

    positions = [sample.position for sample in export.samples("train", start, stop)]
    assert positions == list(range(start, stop))


def steps_of(prepared: Prepared, world_size: int, start: int = 0) -> list[list[list[int]]]:
    """Per step, the token ids of its rows over all ranks, sorted; blank rows are left out."""
    ranks = [
        shares(
            prepared,
            "train",
            start=start,
            global_batch_size=6,
            micro_batch_size=1,
            rank=rank,
            world_size=world_size,
            pad_id=PAD,
        )
        for rank in range(world_size)
    ]
    steps = []
    for step in zip(*ranks, strict=True):
        assert [len(share.batches) for share in step] == [6 // world_size] * world_size
        batches = [batch for share in step for batch in share.batches]
        read = [b["input_ids"][0].tolist() for b in batches if b["token_weight"].any()]
        assert len(read) == sum(share.counts["rows"] for share in step)
        steps.append(sorted(read))
    return steps


@pytest.mark.parametrize("packing", ["none", "window"])
def test_global_batches_are_the_same_at_any_world_size(prepare: Prepare, packing: str) -> None:
    samples = rows(60 if packing == "window" else 21)
    samples[7]["loss_flags"] = [False] * len(samples[7]["loss_flags"])
    prepared = prepare(samples, packing=packing, max_length=250)
    alone = steps_of(prepared, world_size=1)

    total = prepared.count("train")
    assert packing == "window" or total == 20  # the refused one has no row
    assert [len(step) for step in alone] == [6] * (total // 6) + [total % 6] * bool(total % 6)
    assert total % 6 and total > 12
    for world_size in (2, 3, 6):
        assert steps_of(prepared, world_size) == alone
    assert steps_of(prepared, world_size=2, start=12) == alone[2:]


def test_unpacked_rows_are_in_the_order_of_the_plan(prepare: Prepare) -> None:
    prepared = prepare(rows(150))

    assert [prepared.row("train", i).positions.tolist() for i in range(150)] == [
        [position] for position in range(150)
    ]


def test_an_order_of_ones_own_is_read_once_by_the_ranks_together(prepare: Prepare) -> None:
    samples = [row | {"source": "a" if number % 3 else "b"} for number, row in enumerate(rows(22))]
    prepared = prepare(samples)
    positions = prepared.first_positions("train").to_pylist()
    sources = [samples[position]["source"] for position in positions]
    orders = [shard_order(sources, Counter(sources), 0, rank, 2) for rank in range(2)]
    read: list[list[int]] = [[], []]
    for rank, order in enumerate(orders):
        for share in shares(
            prepared,
            "train",
            start=0,
            global_batch_size=4,
            micro_batch_size=1,
            rank=rank,
            world_size=2,
            pad_id=PAD,
            order=order,
        ):
            assert len(share.batches) == 2
            ids = [batch["input_ids"][0].tolist() for batch in share.batches]
            read[rank] += [row for row in ids if len(row) > 1]

    everything = [prepared.row("train", number).input_ids.tolist() for number in range(22)]
    assert sorted(read[0] + read[1]) == sorted(everything)
    assert read[0] == [everything[number] for number in orders[0]]


# --- batches ----------------------------------------------------------------------------------


def test_a_pack_keeps_weights_and_positions_of_its_segments(prepare: Prepare) -> None:
    apart = prepare(rows(6))
    row = prepare(rows(6), packing="window").row("train", 0)
    singles = [apart.row("train", i) for i in range(6)]

    assert apart.count("train") == 6
    assert row.positions.tolist() == list(range(6))
    assert row.input_ids.tolist() == [i for single in singles for i in single.input_ids]
    assert row.position_ids.tolist() == [
        i for single in singles for i in range(len(single.input_ids))
    ]
    assert row.token_weight.tolist() == [w for single in singles for w in single.token_weight]
    assert row.weights.tolist() == [1, 2, 3, 4, 1, 2]
    starts = np.cumsum(row.lengths) - row.lengths
    assert not row.token_weight[starts].any()


def test_a_micro_batch_is_padded_and_padding_is_not_counted(prepare: Prepare) -> None:
    prepared = prepare([react_sample(1), tool_sample(1)])
    lengths = [len(prepared.row("train", i).input_ids) for i in range(2)]
    [share] = shares(
        prepared,
        "train",
        start=0,
        global_batch_size=2,
        micro_batch_size=2,
        rank=0,
        world_size=1,
        pad_id=PAD,
    )

    assert share.batches[0]["input_ids"].shape == (2, max(lengths))
    assert share.counts["tokens"] == sum(lengths)
    assert (share.batches[0]["input_ids"] == PAD).sum() == max(lengths) - min(lengths)


def test_a_flat_batch_has_no_padding(prepare: Prepare) -> None:
    prepared = prepare([react_sample(1), tool_sample(1)])
    both = [prepared.row("train", i) for i in range(2)]
    flat = collate(both, PAD, is_flat=True)

    for name in ("input_ids", "position_ids", "token_weight"):
        expected = np.concatenate([getattr(row, name) for row in both])
        assert torch.equal(flat[name][0], torch.from_numpy(expected).to(flat[name].dtype))


# --- folders that are not as they should be ---------------------------------------------------


def test_a_missing_folder_says_how_to_prepare_one(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nothing is prepared at .*train\.prepare"):
        Prepared(tmp_path / "some-0")


@pytest.mark.parametrize("name", ["train-00000.arrow", "rows.parquet"])
def test_a_changed_file_is_noticed(prepare: Prepare, name: str) -> None:
    prepared = prepare(rows(5))
    prepared.verify()
    file = prepared.folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    with pytest.raises(TrainingError, match=rf"{name} is not the file .* prepare again"):
        prepared.verify()
    file.unlink()
    with pytest.raises(TrainingError, match="No such file"):
        prepared.verify()


# --- exports that are not as they should be ---------------------------------------------------


def test_a_missing_export_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"there is no export at .*make build"):
        Export(tmp_path / "default")


def test_a_changed_shard_is_noticed(tmp_path: Path) -> None:
    folder = write_export(tmp_path / "some", rows(12))
    export = Export(folder)
    export.verify()
    shard = folder / "data" / "train-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")

    with pytest.raises(TrainingError, match=r"train-00001-of-00002\.parquet is not the shard"):
        export.verify()
    shard.unlink()
    with pytest.raises(TrainingError, match="cannot read shard"):
        export.verify()


def test_an_export_from_before_a_column_is_refused(tmp_path: Path) -> None:
    older = SCHEMA.remove(SCHEMA.get_field_index("weight"))
    write_export(tmp_path / "default", [react_sample(0)], schema=older)

    with pytest.raises(TrainingError, match=r"no column weight\. Export again"):
        list(Export(tmp_path / "default").samples("train", 0, 1))


def test_a_newer_export_does_not_change_the_one_being_read(tmp_path: Path) -> None:
    older, newer = (
        write_export(tmp_path / name, rows(9)[::turn]) for name, turn in (("a", 1), ("b", -1))
    )
    link = tmp_path / "default"
    link.symlink_to(older)
    export = Export(link)
    link.unlink()
    link.symlink_to(newer)

    assert next(export.samples("train", 0, 1)).trajectory_id == "tool-0"
    export.verify()


def test_an_export_without_training_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no training sample"):
        Export(write_export(tmp_path / "empty", []))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"position": 3}, "the row says position 3"),
        ({"loss_flags": [True]}, "1 loss flags for 4 messages"),
        ({"loss_flags": [True, True, False, True]}, "not the agent's is flagged"),
        ({"weight": float("nan")}, "weight nan"),
        ({"weight": -1.0}, "weight -1.0"),
        ({"weight": 1e39}, "weight 1e+39"),
    ],
)
def test_a_row_that_cannot_be_a_sample_is_named(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    export = Export(write_export(tmp_path / "some", [react_sample(7) | change]))

    with pytest.raises(TrainingError) as error:
        list(export.samples("train", 0, 1))
    assert said in str(error.value)
    assert "position 0, trajectory react-7" in str(error.value)


def test_order_decides_the_identity_of_the_plan(tmp_path: Path) -> None:
    one = Export(write_export(tmp_path / "one", rows(3)))
    same = Export(write_export(tmp_path / "same", rows(3)))
    turned = Export(write_export(tmp_path / "turned", rows(3)[::-1]))

    assert one.order_sha256 == same.order_sha256 != turned.order_sha256
