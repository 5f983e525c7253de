"""From an export to rows of tokens, once: what `train.sft` and `train.dpo` read.

    python -m train.prepare --config train/configs/tiny.yaml
    python -m train.prepare --config train/configs/tiny.yaml --set packing=window --inspect 2
    python -m train.prepare --config train/configs/dpo-tiny.yaml --inspect 1

Writes `<TRAJLAKE_PREPARED>/<export>-<key>`, whose key follows from everything that decides its
content; where that is there, nothing is done. A run begins with the same.

    <export>-<key>/
    ├── prepared.json          what it was made from, counts, samples refused, checksums
    ├── train-00000.arrow …    rows: tokens, masks, segments (`train.data.ROW_SCHEMA`)
    ├── eval-00000.arrow …
    └── rows.parquet           one line per segment: which samples are in which row

Samples are tokenised in chunks, by as many processes as TRAJLAKE_WORKERS says; a chunk that is
done stays when the command is killed, and the next one goes on from there. Then the segments are
packed in the order of the plan, by one process. Of pairs, each is a row: two segments, chosen and
rejected.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from orchestration.printing import note, text
from train.chunks import Chunk, Segment, encode_chunks, read_chunk, record_batch
from train.config import Settings, load_settings
from train.data import (
    BATCHES_PER_SHARD,
    PAIR_ROW_SCHEMA,
    ROW_SCHEMA,
    ROWS_PER_BATCH,
    SIDES,
    Export,
    Prepared,
    file_sha256,
    shard_name,
)
from train.encode import Encoder, marks_outputs
from train.packing import pack
from train.printing import row_text
from train.tokenizer import load_tokenizer, tokenizer_sha256
from udfs.errors import TrainingError, TrajlakeError
from udfs.folders import atomic_folder
from udfs.settings import exports_folder, prepared_folder

_Rows = Sequence[Sequence[Segment]]

# Any change of what is written for the same export and settings: count this up.
PREPARE_VERSION = 2

# Plan positions that are tokenised at a time: some seconds of work.
CHUNK_POSITIONS = 2048

_SPLITS = ("train", "eval")

_LINEAGE_SCHEMA = pa.schema(
    [
        ("prepared_key", pa.string()),
        ("split", pa.string()),
        ("row", pa.int64()),
        ("segment", pa.int32()),  # place in the row, from 0
        ("position", pa.int64()),
        ("part", pa.int32()),
        ("trajectory_id", pa.string()),
        ("tokens", pa.int32()),
        ("trained_tokens", pa.int32()),
        ("weight", pa.float32()),
    ]
)
_PAIR_LINEAGE_SCHEMA = _LINEAGE_SCHEMA.append(pa.field("pair_id", pa.string())).append(
    pa.field("side", pa.string())
)


@dataclass
class _Counts:
    """What came of a split."""

    positions: int
    rows: int = 0
    segments: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    refused: dict[str, dict[str, Any]] = field(default_factory=dict)  # by trajectory, or pair


class Preparation:
    """An export, a tokenizer and the settings that make rows of them.

    Args:
        settings: of a run; those that decide the rows are in `made_from`.
        export: of the recipe.
        tokenizer: with the chat template that conversations are written by.
        template_origin: where the template is from, for a reader.
        chunk_positions: how many plan positions are tokenised at a time.
    """

    def __init__(
        self,
        settings: Settings,
        export: Export,
        tokenizer: PreTrainedTokenizerBase,
        template_origin: str,
        chunk_positions: int = CHUNK_POSITIONS,
    ) -> None:
        self._settings = settings
        self._export = export
        self._tokenizer = tokenizer
        self._chunk_positions = chunk_positions
        marks = marks_outputs(str(tokenizer.chat_template))
        self.template = {"origin": template_origin, "outputs": "marked" if marks else "by prefixes"}
        self.made_from = {
            "prepare_version": PREPARE_VERSION,
            "order_sha256": export.order_sha256,
            "tokenizer_sha256": tokenizer_sha256(tokenizer),
            "max_length": settings.max_length,
            "too_long": settings.too_long,
            "packing": settings.packing,
            "packing_window": settings.packing_window if settings.packing == "window" else None,
            **({"rows": "pairs"} if export.is_of_pairs else {}),
        }
        self.key = sha256(json.dumps(self.made_from, sort_keys=True).encode()).hexdigest()
        self.folder = prepared_folder() / f"{settings.export_name}-{self.key[:16]}"
        self._chunks = self.folder.with_name(f".{self.folder.name}-chunks")

    def run(self) -> Prepared:
        """Write the folder unless it is there, and open it.

        Several processes may call this at once: one works, and the others wait.

        Raises:
            TrainingError: the export is damaged, or no sample can be trained on.
            WorkerError: a worker process was killed.
        """
        if not self.folder.exists():
            with self._only_one_at_a_time():
                if not self.folder.exists():
                    self._write()
        return Prepared(self.folder)

    @contextmanager
    def _only_one_at_a_time(self) -> Iterator[None]:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with (self.folder.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self) -> None:
        self._export.verify()
        self._chunks.mkdir(exist_ok=True)
        chunks = [
            Chunk(
                split,
                start,
                min(start + self._chunk_positions, self._export.count(split)),
                self._chunks / f"{split}-{self._chunk_positions}-{start:012d}.arrow",
            )
            for split in _SPLITS
            for start in range(0, self._export.count(split), self._chunk_positions)
        ]
        encode_chunks(
            self._export,
            Encoder(self._tokenizer, self._settings.max_length, self._settings.too_long),
            [chunk for chunk in chunks if not chunk.file.exists()],
        )
        with atomic_folder(self.folder) as folder:
            counts = {}
            schema = _PAIR_LINEAGE_SCHEMA if self._export.is_of_pairs else _LINEAGE_SCHEMA
            with pq.ParquetWriter(folder / "rows.parquet", schema) as lineage:
                for split in _SPLITS:
                    of_split = [chunk for chunk in chunks if chunk.split == split]
                    counts[split] = self._write_rows(folder, split, of_split, lineage)
            self._write_manifest(folder, counts)
        shutil.rmtree(self._chunks)

    def _write_rows(
        self, folder: Path, split: str, chunks: Sequence[Chunk], lineage: pq.ParquetWriter
    ) -> _Counts:
        """Pack a split's segments, and write its shards."""
        settings = self._settings
        counts = _Counts(positions=self._export.count(split))
        segments = _segments(chunks, counts)
        rows: Iterator[Sequence[Segment]]
        if settings.packing == "window":
            rows = pack(segments, len, settings.max_length, settings.packing_window)
        elif self._export.is_of_pairs:
            rows = zip(segments, segments, strict=True)  # they come as chosen, rejected, chosen, …
        else:
            rows = ([segment] for segment in segments)
        schema = PAIR_ROW_SCHEMA if self._export.is_of_pairs else ROW_SCHEMA
        batches = iter(lambda: list(islice(rows, ROWS_PER_BATCH)), [])
        for number, first in enumerate(batches):
            with pa.ipc.new_file(str(folder / shard_name(split, number)), schema) as shard:
                for batch in chain([first], islice(batches, BATCHES_PER_SHARD - 1)):
                    shard.write_batch(_row_batch(batch, counts.rows, schema))
                    lineage.write_batch(
                        self._lineage_batch(batch, split, counts.rows, lineage.schema)
                    )
                    counts.rows += len(batch)
                    counts.segments += sum(len(row) for row in batch)
                    counts.tokens += sum(len(each) for row in batch for each in row)
                    counts.trained_tokens += sum(
                        each.trained_tokens for row in batch for each in row
                    )
        return counts

    def _lineage_batch(
        self, rows: _Rows, split: str, first: int, schema: pa.Schema
    ) -> pa.RecordBatch:
        lines = (
            (
                self.key,
                split,
                number,
                place,
                each.position,
                each.tokens.part,
                each.trajectory_id,
                len(each),
                each.trained_tokens,
                each.weight,
                *((each.pair_id, SIDES[place]) if self._export.is_of_pairs else ()),
            )
            for number, row in enumerate(rows, start=first)
            for place, each in enumerate(row)
        )
        return record_batch(schema, zip(*lines, strict=True))

    def _write_manifest(self, folder: Path, counts: dict[str, _Counts]) -> None:
        refused = [row for split in _SPLITS for row in counts[split].refused.values()]
        train = counts["train"]
        if not train.rows:
            units = _units(self._export.is_of_pairs)
            raise TrainingError(
                f"none of the {train.positions} {units} of {self._export.folder} can be trained "
                f"on: {reasons(train.refused.values())}. The first: {refused[0]}"
            )
        manifest = {
            "key": self.key,
            "recipe": self._settings.recipe,
            "made_from": self.made_from,
            "export_manifest_sha256": self._export.manifest_sha256,
            "template": self.template,
            "splits": {
                split: {
                    "positions": found.positions,
                    "refused_positions": sum(r["positions"] for r in found.refused.values()),
                    "segments": found.segments,
                    "rows": found.rows,
                    "tokens": found.tokens,
                    "trained_tokens": found.trained_tokens,
                    "efficiency": _efficiency(
                        found, self._settings.max_length * self._settings.sequences_per_row
                    ),
                }
                for split, found in counts.items()
            },
            "refused": refused,
            "files": [
                {"path": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}
                for file in sorted(folder.iterdir())
            ],
        }
        (folder / "prepared.json").write_text(
            json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def _segments(chunks: Iterable[Chunk], counts: _Counts) -> Iterator[Segment]:
    """The segments of chunks in their order; what was refused is counted."""
    for chunk in chunks:
        for outcome in read_chunk(chunk.file):
            if isinstance(outcome, Segment):
                yield outcome
                continue
            said = {name: value for name, value in asdict(outcome).items() if value is not None}
            line = {"split": chunk.split, "positions": 0} | said
            unit = outcome.pair_id or outcome.trajectory_id
            counts.refused.setdefault(unit, line)["positions"] += 1


def _row_batch(rows: _Rows, first: int, schema: pa.Schema) -> pa.RecordBatch:
    columns: tuple[Iterable[Any], ...] = (
        range(first, first + len(rows)),
        (np.concatenate([each.tokens.input_ids for each in row]) for row in rows),
        (np.concatenate([each.tokens.loss_mask for each in row]) for row in rows),
        ([len(each) for each in row] for row in rows),
        ([each.weight for each in row] for row in rows),
        ([each.position for each in row] for row in rows),
        ([each.tokens.part for each in row] for row in rows),
        ([each.trajectory_id for each in row] for row in rows),
        (row[0].pair_id for row in rows),
    )
    return record_batch(schema, columns[: len(schema)])


def _efficiency(counts: _Counts, places: int) -> float | None:
    """The share of all `places` in each row that hold a token."""
    return round(counts.tokens / (counts.rows * places), 4) if counts.rows else None


def reasons(refused: Iterable[dict[str, Any]]) -> str:
    """Why samples were refused, and how often, in one line."""
    counts: Counter[str] = Counter()
    for row in refused:
        counts[row["reason"]] += row["positions"]
    return ", ".join(f"{count:,} × {reason}" for reason, count in counts.most_common())


def _units(is_of_pairs: bool) -> str:
    return "pairs" if is_of_pairs else "samples"


def open_export(settings: Settings) -> Export:
    """The export that a run is trained on.

    Raises:
        TrainingError: there is none, or its rows are not what the run learns from.
    """
    export = Export(exports_folder() / settings.export_name)
    if export.is_of_pairs != (settings.objective == "dpo"):
        raise TrainingError(
            f"{export.folder} has rows of the layout {export.manifest.get('layout')!r}, which "
            f"train.{settings.objective} does not read. Export the recipe again."
        )
    return export


def summary(prepared: Prepared) -> str:
    """What was prepared, in a few lines."""
    manifest = prepared.manifest
    lines = [
        f"chat template: {manifest['template']['origin']}; what the agent wrote is "
        f"{'marked' if manifest['template']['outputs'] == 'marked' else 'found by prefixes'}"
    ]
    for split, found in manifest["splits"].items():
        if found["rows"]:
            lines.append(
                f"{split}: {found['positions']:,} {_units(prepared.is_of_pairs)}, "
                f"{found['rows']:,} rows, "
                f"{found['tokens']:,} tokens ({found['trained_tokens']:,} carry loss), "
                f"{found['efficiency']:.1%} of the rows' length"
            )
    if manifest["refused"]:
        listed = prepared.folder / "prepared.json"
        lines.append(f"refused (listed in {listed}): {reasons(manifest['refused'])}")
    return "\n".join([*lines, f"prepared: {prepared.folder}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.prepare", description="Turn an export into rows of tokens."
    )
    parser.add_argument("--config", type=Path, required=True, help="a run's YAML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting"
    )
    parser.add_argument(
        "--inspect", type=int, default=0, metavar="N", help="show the first N training rows"
    )
    options = parser.parse_args(arguments)
    try:
        settings = load_settings(options.config, options.set)
        export = open_export(settings)
        if settings.model.tiny is not None:
            from train.tiny import make_tiny_model  # imports models; workers import this module

            make_tiny_model(Path(settings.model.path), settings.model.tiny)
        tokenizer, template_origin = load_tokenizer(settings.model)
        prepared = Preparation(settings, export, tokenizer, template_origin).run()
    except TrajlakeError as error:
        note(f"error: {error}")
        return 1
    console = Console(soft_wrap=True, highlight=False)
    for number in range(min(options.inspect, prepared.count("train"))):
        console.print(row_text(prepared.row("train", number), tokenizer, settings.max_length))
    console.print(text(summary(prepared)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
