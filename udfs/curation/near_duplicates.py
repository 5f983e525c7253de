"""Near duplicates: which text of a trajectory is compared, its MinHash signature, and clusters.

**The text** is the user's query, then step by step what was newly put before the agent (in the
first step only where there is no query), what it put out, its calls (name and arguments) and
what it observed. System prompt and tools are left out: all runs of a source share them, and they
would make any two short runs look alike. Model, score and ids are no part of it.

**Words** are runs of letters and digits, lower-cased. Punctuation and white space only separate
them, so that JSON with and without spaces, quotes of all shapes and markdown are the same text.
Text with other letters than ASCII is brought to NFKC first; a character of a script that is
written without spaces (Han, kana, Thai, Lao, Khmer, Burmese) is a word by itself.

**Shingles** are all runs of five words in a row, as a set. Two texts are as similar as the share
of shingles that both have among those that either has: Broder's resemblance ("On the resemblance
and containment of documents", 1997). A text of fewer than five words has none and is no near
duplicate of anything: "yes" and "yes" are no evidence that one run copies another.

**Signatures** are 128 numbers of 32 bits each; the share of places at which two agree estimates
their similarity with a standard error of at most sqrt(s(1 - s) / 128), 0.035 at 0.8. The library
`rensa` makes them ("Fast Similarity Sketching", Dahlgaard, Knudsen and Thorup, 2017).

**Bands** are runs of places of a signature, hashed (Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", section 3.4). Two texts of similarity s have at least one of b bands of r places
in common with probability 1 - (1 - s^r)^b, so only texts with a band in common are compared.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rensa import RMinHash

from udfs.errors import ConfigError

# Raised whenever text, words, shingles or the hash of a band change.
_VERSION = "1"

SHINGLE_WORDS = 5
PLACES = 128
_SEED = 20_251
# A pair exactly as similar as the threshold shares a band with at least this probability.
_FOUND_AT_THRESHOLD = 0.99
_LOWEST_SIMILARITY = 0.5

CONTENT_SIGNATURE = pa.struct(
    [
        ("word_count", pa.int64()),  # of the compared text
        ("signature", pa.binary()),  # 128 × 4 bytes, little-endian; null under five words
        ("band_hashes", pa.list_(pa.int64())),  # one for each band, its number hashed in; or null
    ]
)

EDGE = pa.struct([("one", pa.int64()), ("other", pa.int64())])
COMPONENT = pa.struct([("node", pa.int64()), ("smallest", pa.int64())])

UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]

# What is worked on at a time, in bytes of Arrow: every byte of text takes 8 bytes several times.
_SLICE_BYTES = 1 << 20

# Bytes → lower-case letters and digits, 0 for what separates words. Bytes beyond ASCII belong to
# letters: `_plain` leaves no others.
_FOLDED = np.array(
    [b if chr(b).isalnum() or b > 127 else 0 for b in bytes(range(256)).lower()], dtype=np.uint8
)
_MULTIPLIER = 0x9DDF_EA08_EB38_2D69

_OTHER = r"[^\p{L}\p{M}\p{N}]+"
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"


def bands_and_rows(similarity: float) -> tuple[int, int]:
    """How many bands of how many places find pairs of at least this similarity.

    As many places to a band as leave a pair at the threshold a chance of 99% to share one: more
    make fewer pairs that are compared in vain.

    Raises:
        ConfigError: the similarity is no number from 0.5 to 1.
    """
    if not _LOWEST_SIMILARITY <= similarity <= 1.0:
        raise ConfigError(
            f"The var near_duplicate_similarity is {similarity}. Set a number from "
            f"{_LOWEST_SIMILARITY} to 1; below it, runs at one task would be duplicates."
        )
    for rows in range(PLACES, 1, -1):
        bands = PLACES // rows
        if 1.0 - (1.0 - similarity**rows) ** bands >= _FOUND_AT_THRESHOLD:
            return bands, rows
    return PLACES, 1


def signature_version(similarity: float) -> str:
    """A short text that changes whenever a stored signature or band hash would."""
    bands, rows = bands_and_rows(similarity)
    return (
        f"text={_VERSION},shingle={SHINGLE_WORDS},minhash={RMinHash.ALGORITHM_VERSION},"
        f"places={PLACES},seed={_SEED},bands={bands}x{rows}"
    )


def compared_texts(user_query: pa.Array, steps: pa.Array) -> pa.Array:
    """The text of each trajectory that is compared, as the page above says.

    Args:
        user_query: strings, shape (n,), or null.
        steps: lists of `udfs.schema.STEP`, shape (n,); null counts as none.

    Returns:
        Strings, shape (n,), none null.
    """
    flat = steps.flatten()
    lengths = pc.fill_null(pc.list_value_length(steps), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    # The query stands in the first input, often amid instructions that all runs of a source share.
    is_doubled = np.zeros(len(flat), dtype=bool)
    has_query = pc.is_valid(user_query).to_numpy(zero_copy_only=False)
    is_doubled[offsets[:-1][has_query & (lengths > 0)]] = True
    inputs = pc.if_else(
        pa.array(is_doubled), pa.scalar(None, pa.string()), pc.struct_field(flat, "input")
    )
    said = _joined(
        inputs,
        pc.struct_field(flat, "output"),
        _calls(pc.struct_field(flat, "tool_calls")),
        pc.struct_field(flat, "next_observation"),
    )
    whole = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), said), "\n")
    return _joined(user_query, whole)


def _calls(tool_calls: pa.Array) -> pa.Array:
    """Lists of calls as texts."""
    flat = tool_calls.flatten()
    lengths = pc.fill_null(pc.list_value_length(tool_calls), 0)
    offsets = np.concatenate(([0], np.cumsum(lengths.to_numpy(zero_copy_only=False))))
    texts = _joined(pc.struct_field(flat, "name"), pc.struct_field(flat, "arguments"))
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts), "\n")


def _joined(*texts: pa.Array) -> pa.Array:
    """Texts of one row below each other; nulls count as nothing."""
    return pc.binary_join_element_wise(*texts, "\n", null_handling="replace")


def shingles(texts: pa.Array) -> tuple[UInt64s, Int64s, Int64s]:
    """The shingles of texts, as hashes.

    Args:
        texts: strings, shape (n,); null counts as empty.

    Returns:
        All hashes in a row, where each text's begin and end in it (shape (n + 1,)), and how many
        words each text has (shape (n,)). A shingle that a text has twice is there twice.
    """
    plain = _plain(pc.fill_null(texts, "")).cast(pa.large_string())
    _, offset_buffer, data = plain.buffers()
    bounds = np.frombuffer(offset_buffer, np.int64)[plain.offset : plain.offset + len(plain) + 1]
    folded = _FOLDED[np.frombuffer(data or b"", np.uint8)[bounds[0] : bounds[-1]]]
    bounds = bounds - bounds[0]
    hashes, starts = _word_hashes(folded, bounds)
    of_text = np.searchsorted(starts, bounds)
    word_counts = np.diff(of_text)

    places = max(0, len(hashes) - SHINGLE_WORDS + 1)
    combined = np.zeros(places, dtype=np.uint64)
    is_whole = np.ones(places, dtype=bool)
    for k in range(SHINGLE_WORDS):
        combined = _mixed(combined + hashes[k : k + places])
        if k:  # what begins with one of a text's last four words would end in the next text
            late = of_text[1:] - k
            is_whole[late[(late >= of_text[:-1]) & (late < places)]] = False
    counts = np.maximum(word_counts - SHINGLE_WORDS + 1, 0)
    return combined[is_whole], np.concatenate(([0], np.cumsum(counts))), word_counts


def _plain(texts: pa.Array) -> pa.Array:
    """Texts in which every byte that is not ASCII belongs to a letter, a mark or a number."""
    is_ascii = pc.string_is_ascii(texts)
    if pc.all(is_ascii).as_py() is not False:
        return texts
    others = texts.filter(pc.invert(is_ascii))
    others = pc.utf8_lower(pc.utf8_normalize(others, "NFKC"))
    others = pc.replace_substring_regex(others, _OTHER, " ")
    others = pc.replace_substring_regex(others, _UNSPACED, r" \1 ")
    return pc.replace_with_mask(texts, pc.invert(is_ascii), others)


def _word_hashes(folded: npt.NDArray[np.uint8], bounds: Int64s) -> tuple[UInt64s, Int64s]:
    """A hash of each word, and where it begins: runs of bytes that are not 0, none across texts.

    A word's hash is its polynomial of bytes modulo 2^64, from one running sum over all bytes.
    """
    is_word = folded != 0
    begins, ends = is_word.copy(), is_word.copy()
    begins[1:] &= ~is_word[:-1]
    ends[:-1] &= ~is_word[1:]
    firsts = bounds[:-1][bounds[:-1] < bounds[1:]]  # of texts that are not empty
    begins[firsts] = is_word[firsts]
    lasts = bounds[1:][bounds[:-1] < bounds[1:]] - 1
    ends[lasts] = is_word[lasts]
    starts, stops = np.flatnonzero(begins), np.flatnonzero(ends) + 1
    size = len(folded)
    powers, inverses = _usual_powers() if size <= _SLICE_BYTES else _powers(size)
    sums = np.zeros(size + 1, dtype=np.uint64)
    np.cumsum(folded * powers[:size], out=sums[1:])
    return _mixed((sums[stops] - sums[starts]) * inverses[starts]), starts


@lru_cache(maxsize=1)
def _usual_powers() -> tuple[UInt64s, UInt64s]:
    return _powers(_SLICE_BYTES)


def _powers(count: int) -> tuple[UInt64s, UInt64s]:
    """The multiplier to the power 0, 1, …, and the same of its inverse modulo 2^64."""
    found = []
    for base in (_MULTIPLIER, pow(_MULTIPLIER, -1, 1 << 64)):
        factors = np.full(count, base, dtype=np.uint64)
        factors[:1] = 1
        found.append(np.multiply.accumulate(factors))
    return found[0], found[1]


def _mixed(h: Any) -> UInt64s:
    """Spread what distinguishes hashes over all their bits (the finisher of SplitMix64)."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64s = h ^ (h >> np.uint64(31))
    return mixed


def content_signatures(user_query: pa.Array, steps: pa.Array, similarity: pa.Array) -> pa.Array:
    """The signatures and band hashes of trajectories.

    Args:
        user_query: strings, shape (n,), or null.
        steps: lists of `udfs.schema.STEP`, shape (n,); null counts as none.
        similarity: the threshold that bands are made for, shape (n,), the same in all rows.

    Returns:
        Structs of type `CONTENT_SIGNATURE`, shape (n,), none null.

    Raises:
        ConfigError: the similarity is no number from 0.5 to 1.
    """
    size, rows = user_query.nbytes + steps.nbytes, len(user_query)
    some = max(1, rows * _SLICE_BYTES // max(size, 1))
    parts = [
        _signed(
            compared_texts(user_query.slice(start, some), steps.slice(start, some)),
            similarity[start].as_py(),
        )
        for start in range(0, rows, some)
    ]
    return pa.concat_arrays(parts) if parts else pa.array([], CONTENT_SIGNATURE)


def _signed(texts: pa.Array, similarity: float) -> pa.Array:
    hashes, bounds, word_counts = shingles(texts)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, bounds.astype(np.uint64), PLACES, _SEED
    )
    places = np.array(digests.to_rows(), dtype="<u4").reshape(len(texts), PLACES)
    bands = band_hashes(places, *bands_and_rows(similarity))
    has_none = pa.array(np.diff(bounds) == 0)
    signatures = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(4 * PLACES), len(texts), [None, pa.py_buffer(places)]
    ).cast(pa.binary())
    offsets = pa.array(np.arange(len(texts) + 1) * bands.shape[1], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(bands.ravel()), mask=has_none)
    return pa.StructArray.from_arrays(
        [
            pa.array(word_counts, pa.int64()),
            pc.if_else(has_none, pa.scalar(None, pa.binary()), signatures),
            lists,
        ],
        fields=list(CONTENT_SIGNATURE),
    )


def band_hashes(places: npt.NDArray[np.uint32], bands: int, rows: int) -> Int64s:
    """Hashes of the bands of signatures, shape (n, bands); each has its band's number in it."""
    cut = places[:, : bands * rows].reshape(len(places), bands, rows)
    h = np.broadcast_to(_mixed(np.arange(1, bands + 1, dtype=np.uint64)), cut.shape[:2])
    for row in range(rows):
        h = _mixed(h + cut[:, :, row])
    return h.view(np.int64)


def signature_similarity(left: pa.Array, right: pa.Array) -> pa.Array:
    """The estimated similarity of pairs of signatures.

    Args:
        left, right: signatures, shape (n,), or null.

    Returns:
        Doubles from 0 to 1, shape (n,); null where either is.
    """
    is_there = pc.and_(pc.is_valid(left), pc.is_valid(right))
    first, second = (_places(each.filter(is_there)) for each in (left, right))
    found = np.full(len(left), np.nan)
    found[is_there.to_numpy(zero_copy_only=False)] = (first == second).mean(axis=1)
    return pa.array(found, mask=~is_there.to_numpy(zero_copy_only=False))


def _places(signatures: pa.Array) -> npt.NDArray[np.uint32]:
    whole = signatures.cast(pa.binary(4 * PLACES))
    start = whole.offset * 4 * PLACES
    data = np.frombuffer(whole.buffers()[1] or b"", np.uint8)
    return data[start : start + len(whole) * 4 * PLACES].view("<u4").reshape(-1, PLACES)


def connected_components(edges: pa.Array) -> pa.Array:
    """For each node of a graph the smallest node that it is connected with.

    Args:
        edges: graphs, shape (n,): lists of `EDGE`, two nodes that are connected. Nodes are
            numbers from 0; null counts as no edge.

    Returns:
        Lists of `COMPONENT`, shape (n,): all nodes up to the largest that has an edge.
    """
    lengths = pc.fill_null(pc.list_value_length(edges), 0).to_numpy(zero_copy_only=False)
    flat = edges.flatten()
    one, other = (
        pc.struct_field(flat, name).to_numpy(zero_copy_only=False) for name in ("one", "other")
    )
    stops = np.cumsum(lengths)
    found = [
        _smallest_connected(one[start:stop], other[start:stop])
        for start, stop in zip(stops - lengths, stops, strict=True)
    ]
    offsets = np.concatenate(([0], np.cumsum([len(each) for each in found])))
    nothing = np.empty(0, np.int64)
    components = pa.StructArray.from_arrays(
        [
            pa.array(np.concatenate([nothing, *(np.arange(len(each)) for each in found)])),
            pa.array(np.concatenate([nothing, *found])),
        ],
        fields=list(COMPONENT),
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), components)


def _smallest_connected(one: Int64s, other: Int64s) -> Int64s:
    """Every node points to a smaller one it is connected with, until all point to the smallest.

    Each round lets what both ends of an edge point to point to the smaller of the two, then
    follows pointers to their end (Shiloach and Vishkin's hooking and pointer jumping, 1982).
    """
    nodes = int(max(one.max(), other.max())) + 1 if len(one) else 0
    smallest = np.arange(nodes)
    while len(one):
        left, right = smallest[one], smallest[other]
        is_open = left != right
        one, other, left, right = one[is_open], other[is_open], left[is_open], right[is_open]
        np.minimum.at(smallest, np.maximum(left, right), np.minimum(left, right))
        while not np.array_equal(further := smallest[smallest], smallest):
            smallest = further
    return smallest
