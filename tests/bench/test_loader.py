"""How fast training is fed, against `datasets` and against what one H100 takes.

    pytest -s tests/bench/test_loader.py

The same tokens are read by `train.data.shares`, in the order of the plan, and by `datasets`, which
streams one Parquet file a source and interleaves them by probabilities; both give padded batches
of tensors. One process, files in the cache of the system.

What an H100 takes is arithmetic: 6 floating-point operations a parameter and token (Kaplan et al.
2020, "Scaling Laws for Neural Language Models", section 2.1), 989 TFLOP/s in bfloat16 by its data
sheet, of which 40% are used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.utils.rnn import pad_sequence
from train_export import write_export

from train.config import ModelSettings, SftSettings, TinyModel
from train.data import Export, Prepared, shares
from train.prepare import Preparation
from train.tiny import make_tiny_model
from train.tokenizer import load_tokenizer

SAMPLES = 4_000
SOURCES = 8
MICRO_BATCH = 2
PARAMETERS = 8e9
H100_TOKENS_PER_S = 989e12 * 0.4 / (6 * PARAMETERS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prepared, int]]:
    """Rows of one sample each, of a few hundred tokens, and the padding token."""
    folder = tmp_path_factory.mktemp("loader")
    make_tiny_model(folder / "model", TinyModel(hidden_size=16, layers=1))
    drawn = np.random.default_rng(7)
    samples = []
    for number in range(SAMPLES):
        words = " ".join(map(str, drawn.integers(0, 1_000_000, int(drawn.lognormal(4, 0.6)) + 1)))
        messages = [
            {"role": "user", "content": f"Remember {number}."},
            {"role": "assistant", "content": words},
        ]
        samples.append(
            {
                "trajectory_id": str(number),
                "source": f"source-{number % SOURCES}",
                "messages": messages,
                "loss_flags": [False, True],
                "weight": 1.0,
            }
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAJLAKE_PREPARED", str(folder / "prepared"))
        export = Export(write_export(folder / "some", samples, rows_per_shard=1_000))
        model = ModelSettings(path=str(folder / "model"))
        tokenizer, origin = load_tokenizer(model)
        settings = SftSettings(recipe="some", model=model, max_length=8192)
        yield Preparation(settings, export, tokenizer, origin).run(), tokenizer.pad_token_id


def ours(prepared: Prepared, pad_id: int) -> Iterator[tuple[int, int]]:
    """Samples and tokens of each step."""
    for share in shares(
        prepared,
        "train",
        start=0,
        global_batch_size=8,
        micro_batch_size=MICRO_BATCH,
        rank=0,
        world_size=1,
        pad_id=pad_id,
    ):
        yield share.counts["segments"], share.counts["tokens"]


def peer(files: list[str], pad_id: int) -> Iterator[tuple[int, int]]:
    """The same of each batch."""
    import datasets

    streams = [
        datasets.load_dataset("parquet", data_files=file, split="train", streaming=True)
        for file in files
    ]
    mixed = datasets.interleave_datasets(
        streams, probabilities=[1 / SOURCES] * SOURCES, seed=7
    ).with_format("torch")  # the quickest of its formats: others give lists of numbers
    stream = iter(mixed)
    while rows := list(islice(stream, MICRO_BATCH)):
        ids = [row["input_ids"] for row in rows]
        mask = [row["loss_mask"].float() for row in rows]
        pad_sequence(ids, batch_first=True, padding_value=pad_id)
        pad_sequence(mask, batch_first=True)
        pad_sequence([torch.arange(len(each)) for each in ids], batch_first=True)
        yield len(rows), sum(map(len, ids))


def rates(stream: Callable[[], Iterator[tuple[int, int]]]) -> tuple[float, float]:
    """Samples and tokens a second, best of three."""
    found = []
    for _ in range(3):
        started = time.perf_counter()
        samples, tokens = map(sum, zip(*stream(), strict=True))
        seconds = time.perf_counter() - started
        found.append((samples / seconds, tokens / seconds))
    return max(found)


def test_feeding(prepared: tuple[Prepared, int], tmp_path: Path) -> None:
    rows, pad_id = prepared
    files = []
    for source in range(SOURCES):
        of_source = [rows.row("train", number) for number in range(source, SAMPLES, SOURCES)]
        table = pa.table(
            {
                "input_ids": [row.input_ids for row in of_source],
                "loss_mask": [row.loss_mask for row in of_source],
            }
        )
        files.append(str(tmp_path / f"{source}.parquet"))
        pq.write_table(table, files[-1])

    mine = rates(lambda: ours(rows, pad_id))
    theirs = rates(lambda: peer(files, pad_id))
    table = Table(title=f"{SAMPLES:,} samples of {SOURCES} sources", title_justify="left")
    for column in ("", "samples/s", "tokens/s", "H100s fed, 8B model"):
        table.add_column(column)
    for name, (samples, tokens) in (("prepared rows", mine), ("datasets, interleaved", theirs)):
        fed = tokens / H100_TOKENS_PER_S
        table.add_row(name, f"{samples:,.0f}", f"{tokens:,.0f}", f"{fed:,.0f}")
    table.add_row("ratio", *(f"{a / b:.1f}" for a, b in zip(mine, theirs, strict=True)))
    Console(width=110).print(table)
    assert mine > theirs
