"""Finding the texts of benchmarks in what was put to an agent.

Searched are the query, the system prompt, the inputs of the steps and what the user answered
(observations whose source is the user): all that the agent was asked, with the examples in its
prompts. Evidence comes in three levels, best first:

| kind         | when                                                                  | overlap   |
|--------------|-----------------------------------------------------------------------|-----------|
| `exact`      | the text stands there, letter for letter                              | 1.0       |
| `normalised` | its words stand there, in order (`udfs.benchmarks.words`)             | 1.0       |
| `ngram`      | no less than a given share of its different n-grams stands in a text  | the share |

The n-grams are of 13 words, the most that GPT-3's overlap analysis uses (Brown et al. 2020, arXiv
2005.14165, appendix C). A text of fewer words is one n-gram by itself. That analysis takes no n
below 8, where collisions become frequent; a text of 4 to 7 words is found only where it has a line
to itself, and one of fewer is not searched for (`udfs.benchmarks.items`).

What many items of a benchmark share is its form and no evidence: an n-gram that is in more than
ten of its texts does not count, unless a text has no other. Of the items that share a text, the
first stands for them.
"""

from __future__ import annotations

import json
import re
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from udfs import lake
from udfs.benchmarks.items import COMMON, FEWEST_WORDS, TABLE
from udfs.benchmarks.words import WORDS_VERSION, normalised, text_sha256, words_of
from udfs.errors import ConfigError, LakeError

# Changes whenever what is found, or how it is told, does.
_OVERLAP_VERSION = f"1.{WORDS_VERSION}"

NGRAM_WORDS = 13
FEWEST_WORDS_INSIDE = 8

MATCH = pa.struct(
    [
        ("benchmark", pa.string()),
        ("item_id", pa.string()),
        ("kind", pa.string()),
        ("overlap", pa.float64()),
        ("where_found", pa.string()),
        ("matched_text", pa.string()),
    ]
)

_KINDS = ("exact", "normalised", "ngram")

# As much text as is searched at once: what holds its words takes some ten times as much.
_SLICE_BYTES = 8 << 20

# An odd factor, so that hashes lose nothing; 2^64 over the golden ratio.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

_BETWEEN_WORDS = r"[\W_]*"
_NUMBER_LABEL = re.compile(r"[\W_]*\d+[.)][\W_]*")
_MOST_LABEL_WORDS = 3

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]


class Hit(NamedTuple):
    """One text of a benchmark in one searched text."""

    benchmark: str
    item_id: str
    kind: str
    overlap: float
    matched_text: str

    @property
    def rank(self) -> tuple[int, float]:
        """Smaller is better."""
        return _KINDS.index(self.kind), -self.overlap


def overlap_settings(ngram_share: str) -> str:
    """What a check depends on beside the trajectory, as JSON: these rules, the share of n-grams
    that counts, and the texts in the lake. Empty where there is nothing to search for.

    Raises:
        ConfigError: the share is none.
    """
    try:
        share = float(ngram_share)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise ConfigError(
            f"The variable `overlap_ngram_share` is '{ngram_share}'. Set a share above 0 and up "
            "to 1, in dbt_project.yml or with --vars."
        )
    texts = _texts_of_lake()
    if not texts:
        return ""
    return json.dumps({"rules": _OVERLAP_VERSION, "share": share, "texts": _digest(texts)})


def find_overlap(
    settings: pa.Array, user_query: pa.Array, system_prompt: pa.Array, steps: pa.Array
) -> pa.ListArray:
    """Which items of benchmarks trajectories were asked; each once, where it is seen best.

    Args:
        settings: what `overlap_settings` gave, the same in every row, shape (n,).
        user_query: strings, shape (n,).
        system_prompt: strings, shape (n,).
        steps: lists of `udfs.schema.STEP`, shape (n,); null counts as none.

    Returns:
        Lists of type `MATCH`, shape (n,), none null: by benchmark and item.

    Raises:
        LakeError: the benchmarks in the lake are others than those of the settings.
    """
    if not len(settings):
        return pa.array([], pa.list_(MATCH))
    given = json.loads(settings[0].as_py())
    index = _index_of_lake(given["texts"])
    return overlap_with(index, given["share"], user_query, system_prompt, steps)


def overlap_with(
    index: Index,
    ngram_share: float,
    user_query: pa.Array,
    system_prompt: pa.Array,
    steps: pa.Array,
) -> pa.ListArray:
    """The same for an index at hand; see `find_overlap`."""
    asked = _asked(user_query, system_prompt, steps)
    encoded = asked.texts.dictionary_encode()  # a prompt is often that of many rows
    found = dict(index.search(encoded.dictionary, ngram_share))
    which = encoded.indices.to_numpy()
    best: list[dict[tuple[str, str], tuple[Hit, str]]] = [{} for _ in range(len(user_query))]
    for at in np.flatnonzero(np.isin(which, list(found))).tolist():
        items = best[asked.rows[at]]
        for hit in found[int(which[at])]:
            item = hit.benchmark, hit.item_id
            if item not in items or hit.rank < items[item][0].rank:
                items[item] = hit, asked.place(at)
    matches = [
        [hit._asdict() | {"where_found": place} for _, (hit, place) in sorted(items.items())]
        for items in best
    ]
    return pa.array(matches, pa.list_(MATCH))


class _Asked(NamedTuple):
    """The texts that were put to agents, the query first: which row each is from, and where."""

    texts: pa.Array
    rows: Numbers
    step_ids: Numbers  # 0: outside the steps
    kinds: npt.NDArray[np.int8]

    def place(self, at: int) -> str:
        kind = ("user_query", "system_prompt", "input", "observation")[self.kinds[at]]
        return f"step {self.step_ids[at]} {kind}" if self.step_ids[at] else kind


def _asked(user_query: pa.Array, system_prompt: pa.Array, steps: pa.Array) -> _Asked:
    each = np.arange(len(user_query))
    some = pc.list_flatten(steps)
    owners = pc.list_parent_indices(steps).to_numpy()
    ids = pc.struct_field(some, "step_id").to_numpy(zero_copy_only=False)
    observations = pc.struct_field(some, "observations")
    seen = pc.list_flatten(observations)
    seen_in = pc.list_parent_indices(observations).to_numpy()
    is_user = pc.equal(pc.struct_field(seen, "source"), "user").fill_null(False)
    seen, seen_in = seen.filter(is_user), seen_in[is_user.to_numpy(zero_copy_only=False)]
    parts = [
        (user_query, each, np.zeros_like(each)),
        (system_prompt, each, np.zeros_like(each)),
        (pc.struct_field(some, "input"), owners, ids),
        (pc.struct_field(seen, "content"), owners[seen_in], ids[seen_in]),
    ]
    texts = pa.concat_arrays([part[0] for part in parts])
    is_there = texts.is_valid().to_numpy(zero_copy_only=False)
    return _Asked(
        texts.drop_null(),
        np.concatenate([part[1] for part in parts])[is_there],
        np.concatenate([part[2] for part in parts])[is_there],
        np.repeat(np.arange(4, dtype=np.int8), [len(part[1]) for part in parts])[is_there],
    )


class BenchmarkText(NamedTuple):
    """One text of a benchmark's item."""

    benchmark: str
    item_id: str
    text: str


class _Ngrams(NamedTuple):
    """The n-grams of one size: their hashes in order, and in which texts they are, from word
    `offsets`. N-gram i is in those from `first[i]` to before `first[i + 1]`."""

    hashes: Hashes
    first: Numbers
    texts: Numbers
    offsets: Numbers


class Index:
    """The texts of benchmarks, made ready to be found.

    Words get random numbers and n-grams a polynomial of them, so that all n-grams of many texts
    are hashed in a few passes of numpy. A place is looked at more closely only where its four
    words are the first of some n-gram.

    Args:
        texts: those of all benchmarks, in the order of benchmarks and items, each of at least
            `FEWEST_WORDS` words.
    """

    def __init__(self, texts: Sequence[BenchmarkText]) -> None:
        self._texts = _each_once(texts)
        words, self._counts = words_of(pa.array([each.text for each in self._texts], pa.string()))
        self._vocabulary = words.unique()
        self._numbers = _random_numbers(len(self._vocabulary) + 1)
        self._line = self._as_line(words, self._counts)
        self._starts = _starts(self._counts)
        self._patterns: dict[int, re.Pattern[str]] = {}
        self._ngrams = self._all_ngrams()
        longest = self._ngrams.get(NGRAM_WORDS)
        of_texts = longest.texts if longest else np.zeros(0, np.int64)
        self._ngram_counts = np.bincount(of_texts, minlength=len(self._texts))
        begins = [self._starts[some.texts] + some.offsets for some in self._ngrams.values()]
        self._shift, self._may_begin = _filter_of(
            _hashes(self._line, np.concatenate([np.zeros(0, np.int64), *begins]), FEWEST_WORDS)
        )

    def search(self, texts: pa.Array, ngram_share: float) -> Iterator[tuple[int, list[Hit]]]:
        """The texts in which something is found: which they are, and what.

        Args:
            texts: strings, shape (n,), none null.
            ngram_share: the share of a text's n-grams that counts.
        """
        ends = np.cumsum(pc.binary_length(texts).to_numpy().astype(np.int64))
        start = 0
        while start < len(texts) and self._texts:
            most = (ends[start - 1] if start else 0) + _SLICE_BYTES
            stop = max(start + 1, int(np.searchsorted(ends, most, "right")))
            for which, hits in self._search(texts[start:stop], ngram_share).items():
                yield start + which, hits
            start = stop

    def _search(self, texts: pa.Array, ngram_share: float) -> dict[int, list[Hit]]:
        words, counts = words_of(texts)
        line, starts = self._as_line(words, counts), _starts(counts)
        # (searched text, benchmark's text) → its n-grams: where in the line, where in the text.
        places: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for ngrams, at, found in self._ngrams_in(line):
            owners = np.searchsorted(starts, at, "right") - 1
            for owner, begin, ngram in zip(
                owners.tolist(), at.tolist(), found.tolist(), strict=True
            ):
                for each in range(ngrams.first[ngram], ngrams.first[ngram + 1]):
                    pair = owner, int(ngrams.texts[each])
                    places[pair].append((begin, int(ngrams.offsets[each])))
        hits: defaultdict[int, list[Hit]] = defaultdict(list)
        for (owner, which), found_at in places.items():
            raw = texts[owner].as_py()
            if self._stands_in(line, which, found_at):
                hit = self._whole(which, raw)
            else:
                share = len({offset for _, offset in found_at}) / self._ngram_counts[which]
                first, last = _longest_run(sorted({begin for begin, _ in found_at}))
                # In the line, a separator stands behind each text before this one.
                run = words[first - owner : last - owner + NGRAM_WORDS].to_pylist()
                hit = self._part(which, raw, run, share) if share >= ngram_share else None
            if hit is not None:
                hits[owner].append(hit)
        return hits

    def _stands_in(self, line: Hashes, which: int, places: Sequence[tuple[int, int]]) -> bool:
        """Whether all words of a benchmark's text stand in a line, one behind the other."""
        begin, size = self._starts[which], self._counts[which]
        wanted = self._line[begin : begin + size]
        return any(
            start >= 0 and np.array_equal(line[start : start + size], wanted)
            for start in {at - offset for at, offset in places}
        )

    def _whole(self, which: int, raw: str) -> Hit | None:
        """The hit of a text whose words stand in another; None where they are few and share
        their line with others."""
        item = self._texts[which]
        is_short = self._counts[which] < FEWEST_WORDS_INSIDE
        for begin in _occurrences(item.text, raw):
            if not is_short or _has_its_line(raw, begin, begin + len(item.text)):
                return Hit(item.benchmark, item.item_id, "exact", 1.0, item.text)
        pattern = self._patterns.get(which)
        if pattern is None:
            pattern = self._patterns[which] = _pattern(normalised(pa.array([item.text]))[0].split())
        for form in (raw, unicodedata.normalize("NFKC", raw)):
            for found in pattern.finditer(form):
                if not is_short or _has_its_line(form, *found.span()):
                    return Hit(item.benchmark, item.item_id, "normalised", 1.0, found.group())
        if is_short:
            return None
        # Lower case that a pattern does not undo, as of "İ": the words themselves are shown.
        words = normalised(pa.array([item.text]))[0]
        return Hit(item.benchmark, item.item_id, "normalised", 1.0, words)

    def _part(self, which: int, raw: str, run: Sequence[str], share: float) -> Hit:
        """The hit of a text of which only a part stands in another, with its longest run."""
        item, pattern = self._texts[which], _pattern(run)
        found = pattern.search(raw) or pattern.search(unicodedata.normalize("NFKC", raw))
        shown = found.group() if found else " ".join(run)
        return Hit(item.benchmark, item.item_id, "ngram", float(share), shown)

    def _as_line(self, words: pa.Array, counts: Numbers) -> Hashes:
        """The numbers of words, with a 0 behind each text; 0 as well for words of no benchmark."""
        known = pc.index_in(words, value_set=self._vocabulary).fill_null(-1).to_numpy()
        line = np.zeros(len(words) + len(counts), np.uint64)
        line[np.arange(len(words)) + np.repeat(np.arange(len(counts)), counts)] = self._numbers[
            known + 1
        ]
        return line

    def _all_ngrams(self) -> dict[int, _Ngrams]:
        """Size → the n-grams of that size. A text that is shorter is one n-gram."""
        sizes = np.minimum(self._counts, NGRAM_WORDS)
        _, benchmarks = np.unique([each.benchmark for each in self._texts], return_inverse=True)
        found = {}
        for size in np.unique(sizes).tolist():
            (which,) = np.nonzero(sizes == size)
            each = self._counts[which] - size + 1
            texts = np.repeat(which, each)
            offsets = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
            hashes = _hashes(self._line, self._starts[texts] + offsets, size)
            order = np.lexsort((offsets, texts, hashes))
            hashes, texts, offsets = hashes[order], texts[order], offsets[order]
            # What a text says twice is one n-gram of it.
            once = _begins_group(hashes, texts)
            hashes, texts, offsets = hashes[once], texts[once], offsets[once]
            if size == NGRAM_WORDS:
                kept = _not_common(hashes, texts, benchmarks)
                hashes, texts, offsets = hashes[kept], texts[kept], offsets[kept]
            begins = np.flatnonzero(_begins_group(hashes))
            found[size] = _Ngrams(hashes[begins], np.append(begins, len(hashes)), texts, offsets)
        return found

    def _ngrams_in(self, line: Hashes) -> Iterator[tuple[_Ngrams, Numbers, Numbers]]:
        """The n-grams that stand in a line, size by size: where, and which."""
        length = len(line) - FEWEST_WORDS + 1
        if length <= 0:
            return
        hashes = line[:length]
        for i in range(1, FEWEST_WORDS):
            hashes = hashes * _FACTOR + line[i : i + length]
        at = np.flatnonzero(self._may_begin[hashes >> self._shift])
        hashes = hashes[at]
        # How many words of benchmarks stand there before one of none, or the text's end.
        unknown = np.flatnonzero(line == 0)
        room = unknown[np.searchsorted(unknown, at)] - at
        for size in range(FEWEST_WORDS, NGRAM_WORDS + 1):
            has_room = room >= size
            at, hashes, room = at[has_room], hashes[has_room], room[has_room]
            if size > FEWEST_WORDS:
                hashes = hashes * _FACTOR + line[at + (size - 1)]
            ngrams = self._ngrams.get(size)
            if ngrams is not None:
                which = np.searchsorted(ngrams.hashes, hashes)
                which[which == len(ngrams.hashes)] = 0
                is_found = ngrams.hashes[which] == hashes
                yield ngrams, at[is_found], which[is_found]


def _texts_of_lake() -> list[BenchmarkText]:
    """The texts of all benchmarks in the lake, in the order of benchmarks and items."""
    if lake.open_table(TABLE) is None:
        return []
    with lake.in_memory() as connection:
        rows = connection.execute(
            f"""
            select benchmark, item_id, text
            from {lake.table_scan(TABLE)}
            where problem is null
            order by benchmark, benchmark_file, item_position, text_number
            """
        ).fetchall()
    return [BenchmarkText(*row) for row in rows]


def _digest(texts: Sequence[BenchmarkText]) -> str:
    """A short text that changes whenever the texts do, or whose they are."""
    return text_sha256(json.dumps(texts))[:16]


_LOCK = threading.Lock()


def _index_of_lake(digest: str) -> Index:
    """The index of the texts with such a digest, made by the first thread that asks."""
    with _LOCK:
        return _made_index(digest)


@lru_cache(maxsize=1)
def _made_index(digest: str) -> Index:
    texts = _texts_of_lake()
    if _digest(texts) != digest:
        raise LakeError(
            f"The table {lake.table_path(TABLE)} has changed since this build began to look for "
            "benchmarks, by another build. Run `dbt build` again."
        )
    return Index(texts)


def _each_once(texts: Sequence[BenchmarkText]) -> list[BenchmarkText]:
    """The texts without white space around them, each once in a benchmark."""
    kept: dict[tuple[str, str], BenchmarkText] = {}
    for text in texts:
        stripped = text._replace(text=text.text.strip())
        kept.setdefault((text.benchmark, stripped.text), stripped)
    return list(kept.values())


def _not_common(hashes: Hashes, texts: Numbers, benchmarks: Numbers) -> npt.NDArray[np.bool_]:
    """Which n-grams count, of those sorted by hash and text: not those that are in many texts
    of a benchmark, except of a text that has no others."""
    (begins,) = np.nonzero(_begins_group(hashes, benchmarks[texts]))
    sizes = np.diff(np.append(begins, len(hashes)))
    is_rare = np.repeat(sizes <= COMMON, sizes)
    has_rare = np.bincount(texts[is_rare], minlength=len(benchmarks)) > 0
    return is_rare | ~has_rare[texts]


def _begins_group(*sorted_columns: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether a row differs from the one before it."""
    begins = np.ones(len(sorted_columns[0]), bool)
    begins[1:] = np.any([column[1:] != column[:-1] for column in sorted_columns], axis=0)
    return begins


def _starts(counts: Numbers) -> Numbers:
    """Where texts of so many words begin in a line: each has a 0 behind it."""
    return np.cumsum(counts + 1) - counts - 1


def _random_numbers(count: int) -> Hashes:
    """0, then numbers that look random and are the same each time, none of them 0."""
    numbers = np.random.default_rng(0).integers(1, 2**64, count, np.uint64, endpoint=False)
    numbers[0] = 0
    return numbers


def _hashes(line: Hashes, at: Numbers, size: int) -> Hashes:
    """The hashes of the n-grams of a size that begin at some places of a line."""
    hashes = line[at]
    for i in range(1, size):
        hashes = hashes * _FACTOR + line[at + i]
    return hashes


def _filter_of(hashes: Hashes) -> tuple[np.uint64, npt.NDArray[np.bool_]]:
    """How far to shift a hash, and a table that is true there for each of the given ones, and
    seldom for another."""
    bits = int(np.clip(np.ceil(np.log2(32 * max(len(hashes), 1))), 10, 26))
    shift = np.uint64(64 - bits)
    table = np.zeros(1 << bits, bool)
    table[hashes >> shift] = True
    return shift, table


def _longest_run(places: Sequence[int]) -> tuple[int, int]:
    """The first and last of the most places that follow one another."""
    best = run = (places[0], places[0])
    for place in places[1:]:
        run = (run[0], place) if place == run[1] + 1 else (place, place)
        best = max(best, run, key=lambda each: each[1] - each[0])
    return best


def _occurrences(text: str, within: str) -> Iterator[int]:
    at = within.find(text)
    while at >= 0:
        yield at
        at = within.find(text, at + 1)


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    """What matches words however they are set."""
    return re.compile(_BETWEEN_WORDS.join(map(re.escape, words)), re.IGNORECASE)


def _has_its_line(text: str, begin: int, end: int) -> bool:
    """Whether a part of a text has a line to itself, but for a label ("Question 3:", "2.")."""
    before = text[text.rfind("\n", 0, begin) + 1 : begin]
    line_end = text.find("\n", end)
    after = text[end : line_end if line_end >= 0 else len(text)]
    if any(map(str.isalnum, after)):
        return False
    is_label = before.rstrip(" \t\"'“*").endswith((":", "：")) and (
        len(before.split()) <= _MOST_LABEL_WORDS
    )
    return is_label or not any(map(str.isalnum, before)) or bool(_NUMBER_LABEL.fullmatch(before))
