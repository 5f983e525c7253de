"""When two texts count as the same: the words of a text, without regard to how they are set.

Unicode is brought to NFKC, letters to lower case; all that is no letter or digit parts words.
This is the normalisation of GPT-3's overlap analysis (Brown et al. 2020, arXiv 2005.14165,
appendix C: punctuation, white space and casing are ignored), for more scripts than Latin: where
words are written without spaces (Chinese, Japanese), each character counts as one.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# Changes whenever the words of some text do.
WORDS_VERSION = "1"

# Letters and digits stay, and the bytes of what is not ASCII.
_ASCII = bytes(
    byte if byte >= 128 or chr(byte).isalnum() else ord(" ") for byte in range(256)
)  # fmt: skip
_NO_WORD = r"[^\pL\pN\pM]+"
_CHARACTER_WORD = r"[\p{Han}\p{Hiragana}\p{Katakana}]"


class Words(NamedTuple):
    """The words of some texts, one text after another.

    `words`: strings, shape (w,). `counts`: how many of them each text has, shape (n,).
    """

    words: pa.Array
    counts: npt.NDArray[np.int64]


def words_of(texts: pa.Array) -> Words:
    """The words of each text; none of a null.

    Args:
        texts: strings, shape (n,).
    """
    plain = pc.utf8_lower(pc.utf8_normalize(texts.fill_null(""), "NFKC"))
    plain = _translated(plain)
    is_other = pc.invert(pc.string_is_ascii(plain))
    if pc.any(is_other).as_py():
        other = pc.replace_substring_regex(plain.filter(is_other), _NO_WORD, " ")
        other = pc.replace_substring_regex(other, _CHARACTER_WORD, r" \0 ")
        plain = pc.replace_with_mask(plain, is_other, other)
    parts = pc.split_pattern(plain, " ")
    found = parts.flatten()
    is_word = pc.greater(pc.binary_length(found), 0)
    owners = pc.list_parent_indices(parts).filter(is_word).to_numpy()
    return Words(found.filter(is_word), np.bincount(owners, minlength=len(texts)))


def normalised(texts: pa.Array) -> list[str]:
    """The words of each text, with a space between two.

    Args:
        texts: strings, shape (n,).
    """
    words, counts = words_of(texts)
    flat = words.to_pylist()
    ends = np.cumsum(counts)
    return [" ".join(flat[end - n : end]) for n, end in zip(counts, ends, strict=True)]


def text_sha256(words: str) -> str:
    """What stands for a text by its words."""
    return hashlib.sha256(words.encode()).hexdigest()


def _translated(texts: pa.Array) -> pa.Array:
    """The same strings with a space for each ASCII character that belongs to no word.

    One pass over all bytes at once; a regular expression takes twenty times as long.
    """
    if not len(texts):
        return texts
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset :][: len(texts) + 1]
    content = pa.py_buffer(texts.buffers()[2].to_pybytes().translate(_ASCII))
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets.tobytes()), content)
