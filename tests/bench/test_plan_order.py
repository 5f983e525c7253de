"""The order of training against `datasets.interleave_datasets` with `split_dataset_by_node`.

    pytest -s tests/bench/test_plan_order.py

One lake of 24 sources. Ours: the plan, exported and prepared, read by rank r of w as rows ≡ r
(mod w). The peer's: the same samples as one streaming dataset a source, in eight files each so that
eight ranks can share them, interleaved by the same shares. Both read from the same disk, in this
process, one rank after the other.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from _curation_fixtures import EVERY_SOURCE, RECIPE, Workspace, step, trajectory

from orchestration.export import export
from train.config import ModelSettings, SftSettings, TinyModel
from train.data import Export, Prepared
from train.prepare import Preparation
from train.tiny import make_tiny_model
from train.tokenizer import load_tokenizer

SIZES = {f"big_{i:02d}": 6000 // (i + 1) for i in range(12)} | {
    f"small_{i:02d}": 24 for i in range(12)
}
WORLD_SIZES = (1, 2, 4, 8, 6)
BATCH = 48  # divisible by every world size
FILES = 8


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of one epoch of the lake; nothing held back."""
    workspace = Workspace(tmp_path_factory.mktemp("plan"))
    workspace.write_recipes([RECIPE | {"epochs": 1, "eval_fraction": 0}], [EVERY_SOURCE])
    names = [name for name, size in SIZES.items() for _ in range(size)]
    workspace.write_trajectories(
        trajectory(number, source=source, steps=[step("so it goes " * 150, input=f"Go {number}")])
        for number, source in enumerate(names)
    )
    workspace.build()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAJLAKE_LAKE", str(workspace.lake))
        patch.setenv("TRAJLAKE_EXPORTS", str(workspace.exports))
        return export("default").folder


@pytest.fixture(scope="module")
def by_source(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The same rows as files of one source each."""
    folder = tmp_path_factory.mktemp("sources")
    rows = pa.concat_tables(
        [pq.read_table(file) for file in sorted((exported / "data").glob("train-*"))]
    )
    sources = np.array(rows["source"].to_pylist())
    files: dict[str, list[str]] = {}
    for source in SIZES:
        of_source = rows.take(np.flatnonzero(sources == source))
        for number in range(FILES):
            file = folder / f"{source}-{number}.parquet"
            pq.write_table(of_source.take(np.arange(number, of_source.num_rows, FILES)), file)
            files.setdefault(source, []).append(str(file))
    return files


@pytest.fixture(scope="module")
def prepared(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The export as rows of tokens, one a sample."""
    folder = tmp_path_factory.mktemp("rows")
    make_tiny_model(folder / "model", TinyModel(hidden_size=16))
    model = ModelSettings(path=str(folder / "model"))
    settings = SftSettings(recipe="default", model=model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAJLAKE_PREPARED", str(folder))
        return Preparation(settings, Export(exported), *load_tokenizer(model)).run()


def ours(prepared: Prepared, world_size: int, start: int = 0) -> list[list[str]]:
    """Global batches from row `start` on, each put together from what the ranks read."""
    total = prepared.count("train")
    ranks = [iter(range(start + rank, total, world_size)) for rank in range(world_size)]
    batches: list[list[str]] = []
    while numbers := [i for ranked in ranks for i in islice(ranked, BATCH // world_size)]:
        rows = [prepared.row("train", number) for number in sorted(numbers)]
        batches.append([row.trajectory_ids[0] for row in rows])
    return batches


class Peer:
    """The peer's stream of one rank, as its documentation puts it together."""

    def __init__(self, files: dict[str, list[str]], rank: int, world_size: int) -> None:
        import datasets
        from datasets.distributed import split_dataset_by_node

        sources = [
            datasets.load_dataset(
                "parquet", data_files=each, split="train", streaming=True
            ).select_columns(["trajectory_id", "source", "messages"])
            for each in files.values()
        ]
        total = sum(SIZES.values())
        mixed = datasets.interleave_datasets(
            sources,
            probabilities=[size / total for size in SIZES.values()],
            seed=42,
            stopping_strategy="all_exhausted_without_replacement",
        )
        self.stream = split_dataset_by_node(mixed, rank=rank, world_size=world_size)

    def rows(self) -> Iterator[dict[str, Any]]:
        yield from self.stream


def worst_window(sources: list[str], length: int = 1000) -> float:
    """How far a window is off a source's share at most, in samples."""
    order = np.array(sources)
    worst = 0.0
    for source in np.unique(order):
        had = np.concatenate([[0], np.cumsum(order == source)])
        share = length * had[-1] / len(order)
        worst = max(worst, float(abs(had[length:] - had[:-length] - share).max()))
    return worst


def same_source(one: list[str], other: list[str]) -> float:
    return float(np.mean([a == b for a, b in zip(one, other, strict=False)]))


def rounds(streams: list[Iterator[Any]], count: int) -> list[Any]:
    """What ranks that step together read in `count` rounds, fewer where one has ended."""
    return [row for stream in streams for row in islice(stream, count)]


def test_the_plan_against_interleave_datasets(
    exported: Path, prepared: Prepared, by_source: dict[str, list[str]]
) -> None:
    total = sum(SIZES.values())
    table = Table(title=f"{total:,} samples, {len(SIZES)} sources", title_justify="left")
    for column in ("", "plan", "interleave_datasets + split_dataset_by_node"):
        table.add_column(column)

    def row(name: str, *values: Any) -> None:
        table.add_row(name, *(str(value) for value in values))

    # One epoch, all of it, on one rank: order, share and speed.
    opened = Export(exported)
    started = time.perf_counter()
    plan = [(s.trajectory_id, s.messages) for s in opened.samples("train", 0, total)]
    ours_s = time.perf_counter() - started
    started = time.perf_counter()
    tokens = sum(len(prepared.row("train", number).token_weight) for number in range(total))
    rows_s = time.perf_counter() - started
    assert tokens > 100 * total
    planned = pa.concat_tables(
        [pq.read_table(f, columns=["source"]) for f in sorted((exported / "data").glob("train-*"))]
    )["source"].to_pylist()
    started = time.perf_counter()
    peer = list(Peer(by_source, 0, 1).rows())
    peer_s = time.perf_counter() - started
    row("samples per second, one rank", f"{total / ours_s:,.0f}", f"{len(peer) / peer_s:,.0f}")
    row("the same as prepared tokens and weights", f"{total / rows_s:,.0f}", "–")
    row(
        "a window of 1,000 is off a share by at most",
        f"{worst_window(planned):.1f} samples",
        f"{worst_window([each['source'] for each in peer]):.1f} samples",
    )
    assert worst_window(planned) < 2
    assert len({trajectory_id for trajectory_id, _ in plan}) == total

    # Global batches at other world sizes.
    one = ours(prepared, 1)
    for world_size in WORLD_SIZES:
        assert ours(prepared, world_size) == one, world_size
    alone = {each["trajectory_id"] for each in peer[:BATCH]}
    eight = [Peer(by_source, rank, 8).rows() for rank in range(8)]
    together = {each["trajectory_id"] for each in rounds(eight, BATCH // 8)}
    row(
        "of a first batch of 48 at 8 ranks, also in that of 1",
        f"{len(set(one[0]) & set(ours(prepared, 8)[0]))}",
        f"{len(alone & together)}",
    )

    # What two ranks see at the same time.
    ours_ranks = [planned[rank::8] for rank in range(8)]
    peer_ranks = [[each["source"] for each in Peer(by_source, rank, 8).rows()] for rank in (0, 1)]
    shares = Counter(planned)
    chance = sum((count / total) ** 2 for count in shares.values())
    row(
        f"ranks 0 and 1 read the same source (by chance {chance:.0%})",
        f"{same_source(*ours_ranks[:2]):.0%}",
        f"{same_source(*peer_ranks):.0%}",
    )

    # Half of it at 8 ranks, the rest at 4.
    steps = total // BATCH // 2
    first = [i for batch in ours(prepared, 8)[:steps] for i in batch]
    rest = [i for batch in ours(prepared, 4, steps * BATCH) for i in batch]
    repeated, skipped = len(set(first) & set(rest)), total - len(set(first) | set(rest))
    assert (repeated, skipped) == (0, 0)

    before = [Peer(by_source, rank, 8) for rank in range(8)]
    peer_first = [
        each["trajectory_id"] for each in rounds([p.rows() for p in before], steps * BATCH // 8)
    ]
    after = [Peer(by_source, rank, 4) for rank in range(4)]
    for old, new in zip(before, after, strict=False):
        new.stream.load_state_dict(old.stream.state_dict())
    peer_rest = [each["trajectory_id"] for p in after for each in p.rows()]
    row(
        "resumed at 4 ranks after half at 8: repeated, never seen",
        f"{repeated}, {skipped}",
        f"{len(set(peer_first) & set(peer_rest)):,}, "
        f"{total - len(set(peer_first) | set(peer_rest)):,}",
    )
    Console(width=120).print(table)
