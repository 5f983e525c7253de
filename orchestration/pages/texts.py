"""Texts of strangers, made ready for a page: cut where it can be seen, with nothing invisible.

The template escapes every text. What escaping leaves is what a reader cannot see: controls, marks
that turn the direction of writing, characters without width. They are told apart here, and the
page shows their names in their place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Controls but for tab and line feed; soft hyphen; marks of direction; what has no width (the two
# joiners stay: Persian and emoji are written with them); separators of lines and paragraphs; tags;
# halves of a surrogate pair; what is no character at all.
_UNSEEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e0fff"
    "]"
)

# Ends of lines as Windows writes them; they are shown as every line's end is.
_LINE_END = re.compile("\r\n")


@dataclass(frozen=True)
class Piece:
    """A part of a text: something to read, or the name of a character that cannot be seen."""

    text: str
    is_name: bool = False


@dataclass(frozen=True)
class Text:
    """A text as the page shows it: its beginning, how much was left out, its end.

    Attributes:
        head: the pieces of the beginning; of all of it where nothing was left out.
        left_out: characters that are not shown.
        tail: the pieces of the end; none where nothing was left out.
    """

    head: tuple[Piece, ...]
    left_out: int = 0
    tail: tuple[Piece, ...] = ()

    kind = "text"


def shown(text: str, most: int = 200) -> Text:
    """A text of at most `most` characters, plus the names of what cannot be seen.

    Of a longer one, four fifths are from its beginning and the rest is from its end.
    """
    if len(text) <= most:
        return Text(pieces(text))
    end = most // 5
    return Text(pieces(text[: most - end]), len(text) - most, pieces(text[len(text) - end :]))


def shown_beginning(beginning: str, rest: int, most: int = 300) -> Text:
    """At most `most` characters of a text's beginning, and how many are missing.

    Args:
        beginning: the part of the text that is at hand.
        rest: characters behind it.
    """
    return Text(pieces(beginning[:most]), max(0, len(beginning) - most) + rest)


def pieces(text: str) -> tuple[Piece, ...]:
    """A text as what can be read and the names of what cannot be seen; no piece is empty."""
    found: list[Piece] = []
    start = 0
    text = _LINE_END.sub("\n", text)
    for match in _UNSEEN.finditer(text):
        if match.start() > start:
            found.append(Piece(text[start : match.start()]))
        found.append(Piece(f"U+{ord(match.group()):04X}", is_name=True))
        start = match.end()
    if start < len(text):
        found.append(Piece(text[start:]))
    return tuple(found)
