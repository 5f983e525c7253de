"""Full text: an index of what trajectories say, kept beside the database file.

A document is a trajectory, in three fields: `query` (what the user asked), `agent` (thoughts,
outputs and calls of tools), `seen` (inputs and observations). The index holds words and numbers of
trajectories, no texts. It is added to where the lake has new trajectories, and what is gone is
taken out; it may be deleted at any time, and is made again. While it is being made, pages say how
far it is.

    trajlake.duckdb.ui/<lake and version of the index>/
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tantivy

from orchestration.ui.rows import KEY, Hits, Rows
from orchestration.ui.tables import State, Tables, Unavailable
from udfs.settings import lake_root

# A change of what is indexed, or how, is another index.
_VERSION = 1

FIELDS = ("query", "agent", "seen")

# So many hits, the best ones, go into a list; how many there are is counted all the same.
MOST_HITS = 10_000

# Of a field of one trajectory, so many characters are indexed.
_CHARACTERS = 1_000_000

_LONGEST_QUERY = 1_000
_BATCH_ROWS = 256
_HEAP_BYTES = 128 * 1024 * 1024

# What has been added can be found after so many seconds or documents.
_COMMIT_S = 5.0
_COMMIT_DOCUMENTS = 50_000

_RELOAD_S = 0.5
_AGAIN_S = 5.0
_RANGES = 64
_DELETED = 1_000

_TEXTS = f"""
    select
        {KEY} as key,
        left(user_query, {_CHARACTERS}) as query,
        left(array_to_string(list_concat(
            list_transform(
                steps,
                lambda s: case
                    when contains(s.output, s.thought) then s.output
                    else concat_ws(chr(10), s.thought, s.output)
                end
            ),
            list_transform(
                flatten(list_transform(steps, lambda s: s.tool_calls)),
                lambda c: concat_ws(' ', c.name, c.arguments)
            )
        ), chr(10)), {_CHARACTERS}) as agent,
        left(array_to_string(list_concat(
            list_transform(steps, lambda s: nullif(s.input, user_query)),
            list_transform(
                flatten(list_transform(steps, lambda s: s.observations)), lambda o: o.content
            )
        ), chr(10)), {_CHARACTERS}) as seen
    from trajectories
    where {KEY} in (select key from wanted_keys)
"""

Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Progress:
    """How far the index is.

    Attributes:
        indexed, wanted: trajectories in it, of those that are to be.
        is_working: whether it is being added to by this process.
        problem: why it is not; None where all is well.
    """

    indexed: int
    wanted: int
    is_working: bool
    problem: str | None

    @property
    def is_complete(self) -> bool:
        """Whether everything can be found."""
        return self.indexed >= self.wanted and not self.is_working

    def __str__(self) -> str:
        """A sentence for a reader."""
        if self.is_complete:
            return f"All {self.wanted:,} trajectories are in the full-text index."
        share = f"{self.indexed:,} of {self.wanted:,} trajectories are in the full-text index"
        if self.problem:
            return f"{share}, and results are of these. {self.problem}"
        return f"{share}; results are of these. It is being added to: load the page again."


class SearchIndex:
    """The index of one lake, for any number of threads."""

    def __init__(self, tables: Tables, folder: Path) -> None:
        """Open the index, or begin one; one that cannot be opened is made anew.

        Args:
            tables: where texts are read.
            folder: where indexes of lakes lie.
        """
        name = hashlib.sha256(f"{_VERSION} {lake_root()}".encode()).hexdigest()[:16]
        self._folder = folder / name
        self._tables = tables
        self._index = self._open()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._wanted: tuple[State, Keys] | None = None
        self._working_on: tuple[State, Keys] | None = None
        self._indexed = self._index.searcher().num_docs
        self._problem: str | None = None
        self._reloaded = time.monotonic()
        threading.Thread(target=self._work, daemon=True).start()

    def _open(self) -> tantivy.Index:
        builder = tantivy.SchemaBuilder()
        builder.add_unsigned_field("key", indexed=True, fast=True)
        for field in FIELDS:
            builder.add_text_field(field)
        schema = builder.build()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return tantivy.Index(schema, path=str(self._folder))
        except ValueError:
            shutil.rmtree(self._folder)
            self._folder.mkdir(parents=True)
            return tantivy.Index(schema, path=str(self._folder))
        except OSError:  # a folder that cannot be written: the index lasts as long as the process
            return tantivy.Index(schema)

    def follow(self, rows: Rows) -> None:
        """Have the index become one of these rows, beside the pages."""
        with self._wake:
            self._wanted = (rows.state, rows.keys())
            self._wake.notify()

    def progress(self) -> Progress:
        """How far the index is."""
        with self._lock:
            wanted = len(self._wanted[1]) if self._wanted else 0
            is_working = self._wanted is not self._working_on or self._working_on is None
            return Progress(min(self._indexed, wanted), wanted, is_working, self._problem)

    def search(self, text: str) -> Hits:
        """Trajectories in which all words of a text are, in whatever field, the best first.

        Raises:
            Unavailable: the text is too long.
        """
        if len(text) > _LONGEST_QUERY:
            raise Unavailable(f"A search may have {_LONGEST_QUERY:,} characters.")
        if time.monotonic() - self._reloaded > _RELOAD_S:
            self._index.reload()
            self._reloaded = time.monotonic()
        searcher = self._index.searcher()
        query, errors = self._query(text)
        try:
            found = searcher.search(query, MOST_HITS)
        except ValueError as error:  # `x:*` asks whether a field is there, and there may be no x
            query, _ = self._query(re.sub(r"\W", " ", text))
            found = searcher.search(query, MOST_HITS)
            errors = [error]
        notes = [f"The search was read as well as could be: {error}." for error in errors]
        addresses = [address for _, address in found.hits]
        keys = np.array(searcher.fast_field_values("key", addresses), dtype=np.uint64)
        total = int(getattr(found, "count", None) or 0)  # which its type stub lacks
        if total > MOST_HITS:
            notes.append(
                f"{total:,} trajectories have these words; the list is of the {MOST_HITS:,} that "
                "fit best. More words, or words in quotation marks, find fewer."
            )
        progress = self.progress()
        if not progress.is_complete:
            notes.append(str(progress))
        return Hits(keys, total, tuple(notes))

    def _query(self, text: str) -> tuple[tantivy.Query, list[Exception]]:
        """A text as the index reads it, and what it could not read."""
        return self._index.parse_query_lenient(text, list(FIELDS), conjunction_by_default=True)

    # --- the thread that adds and takes out ---

    def _work(self) -> None:
        while True:
            with self._wake:
                while self._wanted is None or self._wanted is self._working_on:
                    self._wake.wait()
                target = self._wanted
            try:
                self._become(*target)
            except (ValueError, OSError, Unavailable, pa.ArrowException) as error:
                with self._lock:
                    self._problem = _said(error)
                time.sleep(_AGAIN_S)
                self._index.reload()
                with self._lock:
                    self._indexed = self._index.searcher().num_docs
            else:
                with self._lock:
                    self._problem, self._working_on = None, target

    def _become(self, state: State, wanted: Keys) -> None:
        """Take out what is not wanted, add what is missing."""
        self._index.reload()
        there = _keys(self._index.schema, self._index.searcher())
        gone, missing = np.setdiff1d(there, wanted), np.setdiff1d(wanted, there)
        with self._lock:
            self._indexed = len(there) - len(gone)
        if not len(gone) and not len(missing):
            return
        writer = self._index.writer(_HEAP_BYTES, min(4, os.cpu_count() or 1))
        try:
            # `delete_documents_by_term` takes a number for a signed one, and finds none.
            for start in range(0, len(gone), _DELETED):
                some = gone[start : start + _DELETED].tolist()
                writer.delete_documents_by_query(
                    tantivy.Query.term_set_query(self._index.schema, "key", some)
                )
            self._add(writer, state, missing, len(there) - len(gone))
            writer.commit()
            self._index.reload()
        finally:
            writer.wait_merging_threads()
        with self._lock:
            self._indexed = self._index.searcher().num_docs

    def _add(self, writer: Any, state: State, missing: Keys, there: int) -> None:
        if not len(missing):
            return
        added = since = 0
        committed = time.monotonic()
        with self._tables.reader(state) as reader:
            reader.connection.register("wanted_keys", pa.table({"key": pa.array(missing)}))
            for batch in reader.execute(_TEXTS).to_arrow_reader(_BATCH_ROWS):
                for row in batch.to_pylist():
                    document = tantivy.Document()
                    document.add_unsigned("key", row["key"])
                    for field in FIELDS:
                        document.add_text(field, row[field] or "")
                    writer.add_document(document)
                added += batch.num_rows
                since += batch.num_rows
                is_time = time.monotonic() - committed > _COMMIT_S
                if since and (is_time or since > _COMMIT_DOCUMENTS):
                    writer.commit()
                    committed, since = time.monotonic(), 0
                    with self._lock:
                        self._indexed = there + added


def _keys(schema: tantivy.Schema, searcher: tantivy.Searcher) -> Keys:
    """The numbers of all trajectories in the index, in order."""
    found: list[Sequence[Any]] = []
    # Keys are spread evenly; room for all in every range would cost more than the search.
    room = max(1_000, 2 * searcher.num_docs // _RANGES)
    width = 2**63 // _RANGES
    for low in range(0, 2**63, width):
        query = tantivy.Query.range_query(
            schema, "key", tantivy.FieldType.Unsigned, low, low + width, include_upper=False
        )
        hits = searcher.search(query, room, count=False).hits
        if len(hits) == room:
            hits = searcher.search(query, searcher.num_docs + 1, count=False).hits
        found.append(searcher.fast_field_values("key", [address for _, address in hits]))
    return np.unique(np.array([key for part in found for key in part], dtype=np.uint64))


def _said(error: Exception) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0][:300]
    if "LockBusy" in text:
        return "Another `trajlake ui` of this lake adds to it: load the page again."
    return f"It cannot be added to ({text})."
