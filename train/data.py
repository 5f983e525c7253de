"""What training reads: exports by plan position, prepared rows by number, batches for a rank.

`Export` reads samples or pairs of them, for `train.prepare`. `Prepared` reads the rows that it made
of them, for the trainer: step k (from 1) of a run with global batch size B reads rows (k-1)·B …
k·B-1, and rank r of w reads those ≡ r (mod w). So the global batches are the same at any world
size, and a run is resumed by one integer. Blank rows, which carry no loss, fill up the last step.

A row of a pair is two segments, the chosen side and the rejected one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from udfs.errors import TrainingError

_COLUMNS = ["position", "trajectory_id", "messages", "tools", "loss_flags", "weight"]
SIDES = ("chosen", "rejected")
_PAIR_COLUMNS = ["position", "pair_id", "prompt", "tools", "weight"] + [
    f"{side}{what}" for side in SIDES for what in ("_id", "", "_loss_flags")
]

# One row that is trained on: one segment, or several that must not see each other.
ROW_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("lengths", pa.list_(pa.int32())),  # of its segments, as everything below
        ("weights", pa.list_(pa.float32())),
        ("positions", pa.list_(pa.int64())),
        ("parts", pa.list_(pa.int32())),
        ("trajectory_ids", pa.list_(pa.string())),
    ]
)
# The same where rows are pairs.
PAIR_ROW_SCHEMA = ROW_SCHEMA.append(pa.field("pair_id", pa.string()))
# A row's place follows from its number: changing these needs another PREPARE_VERSION.
ROWS_PER_BATCH = 64
BATCHES_PER_SHARD = 128


@dataclass(frozen=True)
class Sample:
    """One row of an export. `messages` and `tools` are in OpenAI's chat shape."""

    position: int
    trajectory_id: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    loss_flags: list[bool]
    weight: float


@dataclass(frozen=True)
class Pair:
    """One row of an export of pairs: two samples with the same messages before they part.

    Only what the agent wrote after that is flagged for loss. The weight of both is the pair's.
    """

    position: int
    pair_id: str
    chosen: Sample
    rejected: Sample


@dataclass(frozen=True)
class Row:
    """One prepared row of T tokens in S segments.

    `input_ids` and `loss_mask` are [T]; `lengths` in tokens, sample `weights`, positions in the
    export's order, `parts` (of a split sample, from 1; 0: whole) and `trajectory_ids` are [S]. Of a
    pair, S is 2 and there is a `pair_id`.
    """

    number: int
    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    lengths: NDArray[np.int32]
    weights: NDArray[np.float32]
    positions: NDArray[np.int64]
    parts: NDArray[np.int32]
    trajectory_ids: list[str]
    pair_id: str | None = None

    def apart(self) -> list[Row]:
        """Each of its segments as a row of its own."""
        ends = np.cumsum(self.lengths)
        return [
            Row(
                self.number,
                self.input_ids[end - length : end],
                self.loss_mask[end - length : end],
                self.lengths[i : i + 1],
                self.weights[i : i + 1],
                self.positions[i : i + 1],
                self.parts[i : i + 1],
                self.trajectory_ids[i : i + 1],
                self.pair_id,
            )
            for i, (end, length) in enumerate(zip(ends, self.lengths, strict=True))
        ]

    @property
    def token_weight(self) -> NDArray[np.float32]:
        """[T]: where there is loss the sample's weight, of a pair 1; else 0.

        A pair's weight is a factor of its loss, which is no sum over tokens.
        """
        if self.pair_id is not None:
            return self.loss_mask.astype(np.float32)
        return np.where(self.loss_mask, np.repeat(self.weights, self.lengths), np.float32(0))

    @property
    def position_ids(self) -> NDArray[np.int64]:
        """[T]: from 0 in each segment."""
        return np.concatenate([np.arange(length) for length in self.lengths])


@dataclass(frozen=True)
class Share:
    """What one rank contributes to one optimiser step.

    `batches` have the same count on every rank, and are as `collate` makes them; of pairs, each
    side is a row of its own, the rejected one after the chosen one. `counts` has this rank's `rows`
    (blank ones are none), `segments`, `tokens` (padding is none) and `trained_tokens`. `segments`
    has one line for each of these, in order: its row and place there, where it is from, and Σw; of
    pairs also which side of which pair it is, and the pair's weight.
    """

    step: int  # from 1
    first_row: int
    next_row: int  # of the whole step, over all ranks
    batches: list[dict[str, Tensor]]
    counts: dict[str, int]
    segments: pa.RecordBatch


class Export:
    """An export folder: its manifest, and its rows by plan position.

    Where the folder is a link, the export it leads to now is read to the end, even if a newer one
    takes its place meanwhile.

    Raises:
        TrainingError: there is no export, or its files are not those that the manifest lists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        manifest = self.folder / "manifest.json"
        if not manifest.is_file():
            recipe, _, layout = folder.name.partition(".")
            how = f"`trajlake export {recipe} --layout {layout}`" if layout else "`make build`"
            raise TrainingError(
                f"there is no export at {folder} (no manifest.json). Write one with {how}, or let "
                "TRAJLAKE_EXPORTS and the config's `recipe` point to one."
            )
        content = manifest.read_bytes()
        self.manifest_sha256 = sha256(content).hexdigest()
        self.manifest: dict[str, Any] = json.loads(content)
        self._shards: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
        for shard in self.manifest["shards"]:
            self._shards[shard["split"]].append(shard)
        if not self.count("train"):
            raise TrainingError(f"the export at {folder} holds no training sample: {manifest}")

    @property
    def is_of_pairs(self) -> bool:
        """Whether its rows are preference pairs: then `pairs` reads them, else `samples`."""
        return bool(self.manifest.get("layout") == "pairs")

    def count(self, split: str) -> int:
        """Positions of a split (`train`, `eval`): of the plan, over all epochs, or pairs."""
        return sum(shard["rows"] for shard in self._shards[split])

    def sources(self, split: str) -> pa.ChunkedArray:
        """Of every plan position."""
        shards = [
            pq.read_table(self.folder / shard["path"], columns=["source"])["source"]
            for shard in self._shards[split]
        ]
        return pa.chunked_array([chunk for shard in shards for chunk in shard.chunks])

    @property
    def order_sha256(self) -> str:
        """Stands for the samples and their order: two equal ones train and evaluate alike."""
        shards = {split: [each["sha256"] for each in of] for split, of in self._shards.items()}
        return sha256(json.dumps(shards).encode()).hexdigest()

    def verify(self) -> None:
        """Compare every shard with its checksum and row count.

        Raises:
            TrainingError: a shard is missing or is not what the manifest says.
        """
        for shard in self.manifest["shards"]:
            file = self.folder / shard["path"]
            try:
                found = file_sha256(file)
            except OSError as error:
                raise TrainingError(f"cannot read shard {file}: {error}. Export again.") from error
            rows = pq.read_metadata(file).num_rows if found == shard["sha256"] else None
            if rows != shard["rows"]:
                raise TrainingError(
                    f"{file} is not the shard that {self.folder / 'manifest.json'} lists: "
                    f"sha256 {found}, {rows} rows; expected {shard['sha256']}, {shard['rows']} "
                    "rows. Export again."
                )

    def samples(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """The split's samples at positions `start` to `stop` - 1, a row group at a time.

        Raises:
            TrainingError: a column is missing, the positions are not 0, 1, 2 …, or a row cannot be
                a sample.
        """
        for row, position, file in self._rows(_COLUMNS, split, start, stop):
            yield _sample(row, position, file)

    def pairs(self, split: str, start: int, stop: int) -> Iterator[Pair]:
        """The split's pairs at positions `start` to `stop` - 1, a row group at a time.

        Raises:
            TrainingError: a column is missing, the positions are not 0, 1, 2 …, or a row cannot be
                a pair.
        """
        for row, position, file in self._rows(_PAIR_COLUMNS, split, start, stop):
            chosen, rejected = (_sample(_side(row, side), position, file) for side in SIDES)
            yield Pair(position, row["pair_id"], chosen, rejected)

    def _rows(
        self, columns: list[str], split: str, start: int, stop: int
    ) -> Iterator[tuple[dict[str, Any], int, Path]]:
        """The split's rows at positions `start` to `stop` - 1, with these and their files."""
        first = 0  # position of the shard's first row, then of the row group's
        for shard in self._shards[split]:
            if first + shard["rows"] <= start:
                first += shard["rows"]
                continue
            path = self.folder / shard["path"]
            with pq.ParquetFile(path) as file:
                missing = [name for name in columns if name not in file.schema_arrow.names]
                if missing:
                    raise TrainingError(f"{path} has no column {', '.join(missing)}. Export again.")
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    begin, end = max(start - first, 0), min(stop - first, rows)
                    if begin < end:
                        table = file.read_row_group(group, columns=columns)
                        wanted = table.slice(begin, end - begin).to_pylist()
                        for position, row in enumerate(wanted, start=first + begin):
                            yield row, position, path
                    first += rows
            if first >= stop:
                return


def _side(row: dict[str, Any], side: str) -> dict[str, Any]:
    """One side of a pair, as the row of a sample."""
    return {
        "position": row["position"],
        "trajectory_id": row[f"{side}_id"],
        "messages": row["prompt"] + row[side],
        "tools": row["tools"],
        "loss_flags": [False] * len(row["prompt"]) + row[f"{side}_loss_flags"],
        "weight": row["weight"],
    }


def _sample(row: dict[str, Any], position: int, file: Path) -> Sample:
    where = f"{file}, position {position}, trajectory {row['trajectory_id']}"
    if row["position"] != position:
        raise TrainingError(f"{where}: the row says position {row['position']}. Export again.")
    messages, flags, weight = row["messages"], row["loss_flags"], row["weight"]
    if len(flags) != len(messages):
        raise TrainingError(f"{where}: {len(flags)} loss flags for {len(messages)} messages")
    if any(
        flag and message["role"] != "assistant"
        for flag, message in zip(flags, messages, strict=True)
    ):
        raise TrainingError(f"{where}: a message that is not the agent's is flagged for loss")
    if not 0 <= weight <= float(np.finfo(np.float32).max):
        raise TrainingError(f"{where}: weight {weight} is not a finite number ≥ 0 (float32)")
    return Sample(
        position=position,
        trajectory_id=row["trajectory_id"],
        messages=[_message(message) for message in messages],
        tools=json.loads(row["tools"]) if row["tools"] else None,
        loss_flags=flags,
        weight=weight,
    )


def _message(row: dict[str, Any]) -> dict[str, Any]:
    """A message as chat templates expect it: no null fields, arguments decoded.

    Parquet gives every message every field. Arguments travel as JSON text; a template that writes
    them as JSON would quote that text a second time. What is no JSON object stays text.
    """
    message = {key: value for key, value in row.items() if value is not None}
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)
        return message
    message["tool_calls"] = [
        {
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": _arguments(call["function"]["arguments"]),
            },
        }
        | ({"id": call["id"]} if call["id"] is not None else {})
        for call in message["tool_calls"]
    ]
    return message


def _arguments(text: str | None) -> Any:
    try:
        decoded = json.loads(text or "{}")
    except json.JSONDecodeError:
        return text
    return decoded if isinstance(decoded, dict) else text


class Prepared:
    """A folder that `train.prepare` wrote: rows by number, memory-mapped.

    Raises:
        TrainingError: `folder` is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "prepared.json").read_bytes())
        except FileNotFoundError:
            raise TrainingError(
                f"nothing is prepared at {folder} (no prepared.json). Write it with "
                "`python -m train.prepare --config …`."
            ) from None
        self._opened: tuple[str, pa.RecordBatchFileReader] | None = None

    def count(self, split: str) -> int:
        """Rows of a split (`train`, `eval`)."""
        return int(self.manifest["splits"][split]["rows"])

    @property
    def is_of_pairs(self) -> bool:
        """Whether each row is a preference pair."""
        return bool(self.manifest["made_from"].get("rows") == "pairs")

    def first_positions(self, split: str) -> pa.ChunkedArray:
        """Of every row, the plan position of its first segment."""
        return self._of_rows(split, "position")

    def pair_ids(self, split: str) -> list[str]:
        """Of every row, where rows are pairs."""
        return list(self._of_rows(split, "pair_id").to_pylist())

    def _of_rows(self, split: str, column: str) -> pa.ChunkedArray:
        return pq.read_table(
            self.folder / "rows.parquet",
            columns=[column],
            filters=[("split", "=", split), ("segment", "=", 0)],
        )[column]

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            TrainingError: a file is missing or is not what `prepared.json` says.
        """
        for listed in self.manifest["files"]:
            file = self.folder / listed["path"]
            try:
                found = file_sha256(file)
            except OSError as error:
                found = str(error)
            if found != listed["sha256"]:
                raise TrainingError(
                    f"{file} is not the file that {self.folder / 'prepared.json'} lists: sha256 "
                    f"{found}, expected {listed['sha256']}. Delete {self.folder} and prepare again."
                )

    def row(self, split: str, number: int) -> Row:
        """One row, from 0 to `count` - 1."""
        batch_number, place = divmod(number, ROWS_PER_BATCH)
        shard, of_shard = divmod(batch_number, BATCHES_PER_SHARD)
        batch = self._shard(shard_name(split, shard)).get_batch(of_shard)
        arrays = {
            name: batch.column(name)[place].values.to_numpy(zero_copy_only=False)
            for name in ROW_SCHEMA.names
            if name not in ("row", "trajectory_ids")
        }
        texts = {
            name: batch.column(name)[place].as_py()
            for name in ("trajectory_ids", "pair_id")
            if name in batch.schema.names
        }
        return Row(number, **arrays, **texts)

    def _shard(self, name: str) -> pa.RecordBatchFileReader:
        if self._opened is None or self._opened[0] != name:
            self._opened = name, pa.ipc.open_file(pa.memory_map(str(self.folder / name)))
        return self._opened[1]


def file_sha256(file: Path) -> str:
    """The checksum of a file."""
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def shard_name(split: str, number: int) -> str:
    """The file of a split's shard, in a prepared folder."""
    return f"{split}-{number:05d}.arrow"


def shares(
    prepared: Prepared,
    split: str,
    *,
    start: int,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    pad_id: int,
    is_flat: bool = False,
    order: Sequence[int] | NDArray[np.int64] | None = None,
    rows_in_order: int | None = None,
) -> Iterator[Share]:
    """One rank's shares of all steps from row `start` to the end of the split.

    `start` is a multiple of `global_batch_size`, which `world_size · micro_batch_size` divides.
    `order` has the rows of this rank one after the other, of the `rows_in_order` (null: those of
    the split) that all ranks have; null: those ≡ `rank` (mod `world_size`). With an order, a
    share's `first_row` and `next_row` count rows over all ranks and are not their numbers.
    """
    total = prepared.count(split) if rows_in_order is None else rows_in_order
    mine = range(rank, total, world_size) if order is None else order
    splits_rows = prepared.is_of_pairs and not is_flat
    per_rank = global_batch_size // world_size
    for first in range(start, total, global_batch_size):
        end = min(first + global_batch_size, total)
        place = first // world_size
        rows = [prepared.row(split, int(number)) for number in mine[place : place + per_rank]]
        counts = {
            "rows": len(rows),
            "segments": sum(len(row.lengths) for row in rows),
            "tokens": sum(len(row.input_ids) for row in rows),
            "trained_tokens": sum(int(row.loss_mask.sum()) for row in rows),
        }
        segments = _segments(rows, prepared.is_of_pairs)
        blank = blank_row(pad_id, segments=len(SIDES) if prepared.is_of_pairs else 1)
        rows += [blank] * (per_rank - len(rows))
        micro = [rows[i : i + micro_batch_size] for i in range(0, len(rows), micro_batch_size)]
        if splits_rows:
            micro = [[side for row in some for side in row.apart()] for some in micro]
        yield Share(
            step=first // global_batch_size + 1,
            first_row=first,
            next_row=end,
            batches=[collate(some, pad_id, is_flat) for some in micro],
            counts=counts,
            segments=segments,
        )


def _segments(rows: Sequence[Row], is_of_pairs: bool) -> pa.RecordBatch:
    sizes = [len(row.lengths) for row in rows]
    starts = [np.cumsum(row.lengths) - row.lengths for row in rows]
    of_segments = [
        (np.add.reduceat(row.loss_mask, at, dtype=np.int64), at)
        for row, at in zip(rows, starts, strict=True)
    ]
    trained = np.concatenate([np.zeros(0, np.int64), *(counts for counts, _ in of_segments)])
    weights = np.concatenate([np.zeros(0), *(row.weights for row in rows)])
    columns = {
        "row": pa.array(np.repeat([row.number for row in rows], sizes).astype(np.int64)),
        "segment": pa.array([i for size in sizes for i in range(size)], pa.int32()),
        "position": pa.array([p for row in rows for p in row.positions], pa.int64()),
        "part": pa.array([p for row in rows for p in row.parts], pa.int32()),
        "trajectory_id": pa.array([i for row in rows for i in row.trajectory_ids], pa.string()),
        "trained_tokens": pa.array(trained),
        "weight": pa.array(trained.astype(np.float64) if is_of_pairs else trained * weights),
    }
    if is_of_pairs:
        columns["pair_id"] = pa.array([row.pair_id for row in rows for _ in SIDES], pa.string())
        columns["side"] = pa.array([side for _ in rows for side in SIDES], pa.string())
        columns["pair_weight"] = pa.array(weights)
    return pa.RecordBatch.from_pydict(columns)


def collate(rows: Sequence[Row], pad_id: int, is_flat: bool = False) -> dict[str, Tensor]:
    """Rows as one batch: `input_ids`, `position_ids` [B, T] int64, `token_weight` [B, T] float32,
    and `segment` [B, T] int64: which of the batch's segments a token is of, from 0.

    There is no attention mask: transformers keeps segments apart by their positions, which begin
    anew in each. Padding is on the right and goes on counting, as if it belonged to the last
    segment: no token attends to what comes after it, and a batch of rows of one segment each needs
    no mask at all.

    Args:
        rows: of different lengths; B of them.
        pad_id: the token that fills up.
        is_flat: one after the other as a single row, without padding; FlashAttention's functions
            for segments take no other form.
    """
    width = max(len(row.input_ids) for row in rows)
    names = ("input_ids", "position_ids", "token_weight", "segment")
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    first = 0
    for row in rows:
        positions = row.position_ids
        missing = 0 if is_flat else width - len(positions)
        padding = np.arange(missing) + positions[-1] + 1
        parts["input_ids"].append(_tensor(row.input_ids, np.full(missing, pad_id), torch.int64))
        parts["position_ids"].append(_tensor(positions, padding, torch.int64))
        parts["token_weight"].append(_tensor(row.token_weight, np.zeros(missing), torch.float32))
        segment = np.repeat(np.arange(first, first + len(row.lengths)), row.lengths)
        parts["segment"].append(_tensor(segment, np.full(missing, segment[-1]), torch.int64))
        first += len(row.lengths)
    if is_flat:
        return {name: torch.cat(each).unsqueeze(0) for name, each in parts.items()}
    return {name: torch.stack(each) for name, each in parts.items()}


def _tensor(values: NDArray[Any], padding: NDArray[Any], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.concatenate([values, padding])).to(dtype)


def blank_row(pad_id: int, segments: int) -> Row:
    """A row without loss, whose segments are of one token."""
    return Row(
        number=-1,
        input_ids=np.full(segments, pad_id, dtype=np.int32),
        loss_mask=np.zeros(segments, dtype=np.bool_),
        lengths=np.ones(segments, dtype=np.int32),
        weights=np.zeros(segments, dtype=np.float32),
        positions=np.full(segments, -1, dtype=np.int64),
        parts=np.zeros(segments, dtype=np.int32),
        trajectory_ids=[],
    )
