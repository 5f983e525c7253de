"""Preparing rows: how full they are and how far samples move, against TRL; and how fast it goes.

    pip install --no-deps trl        # the peer, in an environment with the extras train and dev
    pytest -s tests/bench/test_prepare.py

**Packing**: the same lengths by our window and by TRL's `pack_dataset` (best fit decreasing, in
batches of 1,000 samples as its trainer does it). Filled is the share of all places in the rows
that hold a token; a sample is moved by as many rows as it comes before one that the plan has
earlier.

**Speed**: one process tokenises conversations of a task and eight steps, with the whole Tekken
vocabulary; then the rows are read back in batches, in order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table
from train_export import write_export

from train.config import ModelSettings, SftSettings, TinyModel
from train.data import Export, shares
from train.encode import Encoder
from train.packing import pack
from train.prepare import Preparation
from train.tiny import make_tiny_model
from train.tokenizer import load_tokenizer

MAX_LENGTH = 4096
SAMPLES = 20_000
TOKENISED = 1500

Rows = list[list[int]]  # places of samples


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    folder = tmp_path_factory.mktemp("model") / "tekken"
    make_tiny_model(folder, TinyModel(vocab_size=131_072, hidden_size=16, layers=1))
    return ModelSettings(path=str(folder))


def real_lengths(shared: Path, model: ModelSettings, folder: Path) -> list[int]:
    """Of published runs, in tokens."""
    file = shared / "raw" / "fireact_hotpotqa" / "gpt-3.5-turbo-0613.json"
    samples = [
        {
            "trajectory_id": name,
            "messages": run["traj"],
            "loss_flags": [message["role"] == "assistant" for message in run["traj"]],
            "weight": 1.0,
        }
        for name, run in json.loads(file.read_text()).items()
    ]
    encode = Encoder(load_tokenizer(model)[0], MAX_LENGTH)
    export = Export(write_export(folder / "real", samples, rows_per_shard=500))
    outcomes = (encode(sample) for sample in export.samples("train", 0, len(samples)))
    lengths = [len(outcome[0].input_ids) for outcome in outcomes if isinstance(outcome, list)]
    return (lengths * (1 + SAMPLES // len(lengths)))[:SAMPLES]


def ours(window: int) -> Callable[[list[int]], Rows]:
    return lambda lengths: list(pack(range(len(lengths)), lambda i: lengths[i], MAX_LENGTH, window))


def trl(lengths: list[int]) -> Rows:
    import datasets
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    samples = datasets.Dataset.from_dict({"input_ids": [[i] * n for i, n in enumerate(lengths)]})
    packed = pack_dataset(samples, MAX_LENGTH, "bfd").with_format("arrow")[:]
    rows = []
    for ids, parts in zip(packed["input_ids"], packed["seq_lengths"].to_pylist(), strict=True):
        starts = np.cumsum([0, *parts[:-1]])
        rows.append(ids.values.to_numpy()[starts].tolist())
    return rows


def moved(rows: Rows) -> int:
    """How many rows a sample is before one that precedes it in the plan, at most."""
    row_of = np.empty(sum(map(len, rows)), dtype=np.int64)
    for number, row in enumerate(rows):
        row_of[row] = number
    return int((np.maximum.accumulate(row_of) - row_of).max())


def test_packing_against_best_fit_decreasing(
    shared: Path, model: ModelSettings, tmp_path: Path
) -> None:
    pytest.importorskip("trl", reason="the peer is not installed: pip install --no-deps trl")
    drawn = np.random.default_rng(0)
    skewed = np.exp(drawn.normal(np.log(900), 0.9, SAMPLES)).astype(int).clip(50, MAX_LENGTH)
    cases = {
        "published runs": real_lengths(shared, model, tmp_path),
        "log-normal, median 900": skewed.tolist(),
        "uniform up to a row": drawn.integers(1, MAX_LENGTH + 1, SAMPLES).tolist(),
    }
    packers = {"one sample a row": lambda lengths: [[i] for i in range(len(lengths))]} | {
        f"window of {window}": ours(window) for window in (16, 64, 256)
    }
    packers["TRL, best fit decreasing"] = trl
    table = Table(title=f"{SAMPLES:,} samples, rows of {MAX_LENGTH:,}", title_justify="left")
    for column in ("lengths", "packer", "rows", "filled", "moved by, rows", "s"):
        table.add_column(column)
    for name, lengths in cases.items():
        filled: dict[str, float] = {}
        for packer, packed_by in packers.items():
            started = time.perf_counter()
            rows = packed_by(lengths)
            seconds = time.perf_counter() - started
            assert sorted(i for row in rows for i in row) == list(range(SAMPLES))
            filled[packer] = sum(lengths) / (len(rows) * MAX_LENGTH)
            table.add_row(
                name,
                packer,
                f"{len(rows):,}",
                f"{filled[packer]:.1%}",
                f"{moved(rows):,}",
                f"{seconds:.2f}",
            )
        assert filled["window of 64"] > 0.9 * filled["TRL, best fit decreasing"]
    Console(width=110).print(table)


def conversation(number: int, words: list[str]) -> dict[str, Any]:
    """A task and eight steps, some 1,100 tokens."""
    drawn = np.random.default_rng(number)

    def text(count: int) -> str:
        return " ".join(drawn.choice(words, count))

    messages = [{"role": "system", "content": text(60)}, {"role": "user", "content": text(40)}]
    for _ in range(8):
        messages += [
            {"role": "assistant", "content": text(30)},
            {"role": "user", "content": text(70)},
        ]
    return {
        "trajectory_id": str(number),
        "messages": messages,
        "loss_flags": [message["role"] == "assistant" for message in messages],
        "weight": 1.0,
    }


def test_speed(model: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAJLAKE_PREPARED", str(tmp_path / "prepared"))
    monkeypatch.setenv("TRAJLAKE_WORKERS", "1")
    words = [
        w for w in (Path(__file__).parents[2] / "README.md").read_text().split() if "<" not in w
    ]
    samples = [conversation(number, words) for number in range(TOKENISED)]
    folder = write_export(tmp_path / "some", samples, rows_per_shard=500, rows_per_group=100)
    tokenizer, origin = load_tokenizer(model)
    table = Table(title=f"{TOKENISED:,} samples, one process", title_justify="left")
    for column in ("", "samples/s", "tokens/s"):
        table.add_column(column)

    def row(name: str, tokens: int, seconds: float) -> None:
        table.add_row(name, f"{TOKENISED / seconds:,.0f}", f"{tokens / seconds:,.0f}")

    settings = SftSettings(recipe="some", model=model, max_length=8192, packing="window")
    started = time.perf_counter()
    prepared = Preparation(settings, Export(folder), tokenizer, origin).run()
    tokens = prepared.manifest["splits"]["train"]["tokens"]
    row("prepare, packed", tokens, time.perf_counter() - started)

    texts = [json.dumps(sample["messages"]) for sample in samples]
    started = time.perf_counter()
    alone = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    seconds = time.perf_counter() - started
    table.add_row(
        "the tokenizer alone, on the samples' JSON",
        f"{TOKENISED / seconds:,.0f}",
        f"{alone / seconds:,.0f}",
    )

    started = time.perf_counter()
    read = sum(
        share.counts["tokens"]
        for share in shares(
            prepared,
            "train",
            start=0,
            global_batch_size=8,
            micro_batch_size=2,
            rank=0,
            world_size=1,
            pad_id=tokenizer.pad_token_id,
        )
    )
    row("read in batches, as training does", read, time.perf_counter() - started)
    assert read == tokens
    Console(width=110).print(table)
