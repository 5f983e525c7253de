"""What a page is made of: tables whose cells are numbers, texts, bars and heat.

The template draws each `kind`; nothing here knows HTML. Charts are rows of a table: a bar beside
its number needs no legend of an axis, can be read by a screen reader, and wraps and prints as text
does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from orchestration.pages.runs import Example
from orchestration.pages.texts import Text, shown

# A bar's width in units of its drawing.
WIDTH = 1000

_HEAT_LEVELS = 6


@dataclass(frozen=True)
class Number:
    """A number, ready to be read."""

    text: str

    kind = "number"


@dataclass(frozen=True)
class Segment:
    """A part of a bar: `name` is a class of the style sheet."""

    name: str
    x: float
    width: float
    y: float = 0
    height: float = 20


@dataclass(frozen=True)
class Bars:
    """Bars beside or above each other, and what they say in words."""

    segments: tuple[Segment, ...]
    label: str
    height: int = 20

    kind = "bars"


@dataclass(frozen=True)
class Heat:
    """A number whose size is seen: level 0 is nothing, 5 is the most."""

    text: str
    level: int

    kind = "heat"


@dataclass(frozen=True)
class Link:
    """A text that leads to another page of the same server."""

    text: Text
    address: str

    kind = "link"


Cell = Number | Bars | Heat | Text | Link


@dataclass(frozen=True)
class Table:
    """A table; its first column names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: tuple[Cell, ...] | None = None

    kind = "table"


@dataclass(frozen=True)
class Words:
    """A paragraph of our own; `is_warning` where something is wrong."""

    text: str
    is_warning: bool = False

    kind = "words"


@dataclass(frozen=True)
class Legend:
    """What the colours of bars are: class → words."""

    entries: tuple[tuple[str, str], ...]

    kind = "legend"


@dataclass(frozen=True)
class Tiles:
    """The figures that a reader looks for first: number → what it is."""

    entries: tuple[tuple[str, str], ...]

    kind = "tiles"


@dataclass(frozen=True)
class Details:
    """Blocks that open on demand."""

    title: Text
    blocks: tuple[Block, ...]
    is_open: bool = False

    kind = "details"


@dataclass(frozen=True)
class Pairs:
    """Trajectories side by side, kept on the left and dropped on the right."""

    pairs: tuple[tuple[Example | None, Example | None], ...]

    kind = "pairs"


Block = Table | Words | Legend | Tiles | Details | Pairs


@dataclass(frozen=True)
class Section:
    """A section of the page, with the name by which it can be jumped to."""

    name: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


def count(value: float | None) -> Number:
    """A whole number; a dash where it is not known."""
    return Number("–" if value is None else f"{value:,.0f}")


def decimal(value: float | None, digits: int = 2) -> Number:
    """A number with decimals; a dash where it is not known."""
    # Adding 0 takes the sign off what is rounded to nothing.
    return Number("–" if value is None else f"{round(value, digits) + 0.0:,.{digits}f}")


def share(value: float | None) -> Number:
    """A share in percent; a dash where it is not known."""
    return Number(share_text(value))


def share_text(value: float | None) -> str:
    """A share in percent, with one decimal; never 0.0% where there is something."""
    if value is None:
        return "–"
    return "<0.1%" if 0 < value < 0.0005 else f"{value:.1%}"


def words(value: object, most: int = 120) -> Text:
    """A text in a cell; a dash for none."""
    return shown("–" if value is None or value == "" else str(value), most)


def stacked(parts: Iterable[tuple[str, str, float]], total: float) -> Bars:
    """A bar of several parts.

    Args:
        parts: class, words and size of each, in order.
        total: the size of the whole width.
    """
    segments: list[Segment] = []
    label: list[str] = []
    x = 0.0
    for name, title, size in parts:
        if size <= 0 or total <= 0:
            continue
        width = WIDTH * size / total
        segments.append(Segment(name, round(x, 2), round(width, 2)))
        label.append(f"{title}: {size:,.0f} ({share_text(size / total)})")
        x += width
    return Bars(tuple(segments), "; ".join(label) or "nothing")


def beside(parts: Sequence[tuple[str, str, float | None]], most: float) -> Bars:
    """Bars of shares below each other, on one scale that ends at `most`."""
    height = 8
    segments = tuple(
        Segment(name, 0, round(WIDTH * value / most, 2) if most > 0 else 0, place * height, 6)
        for place, (name, _, value) in enumerate(parts)
        if value
    )
    label = "; ".join(f"{title}: {share_text(value)}" for _, title, value in parts)
    return Bars(segments, label, height * len(parts))


def histogram(bins: Sequence[tuple[str, int, int]]) -> Bars:
    """Columns, the kept part of each below the dropped part.

    Args:
        bins: range in words, trajectories, and how many of them are kept.
    """
    height = 40
    most = max((total for _, total, _ in bins), default=0)
    segments: list[Segment] = []
    if most:
        width = WIDTH / len(bins)
        for place, (_, total, kept) in enumerate(bins):
            x = round(place * width + width * 0.08, 2)
            tall = round(height * total / most, 2)
            low = round(height * kept / most, 2)
            if total > kept:
                segments.append(
                    Segment("v-filtered", x, round(width * 0.84, 2), round(height - tall, 2),
                            round(tall - low, 2))
                )  # fmt: skip
            if kept:
                segments.append(
                    Segment("v-kept", x, round(width * 0.84, 2), round(height - low, 2), low)
                )
    label = "; ".join(f"{title}: {total:,} ({kept:,} kept)" for title, total, kept in bins if total)
    return Bars(tuple(segments), label or "nothing", height)


def heat(value: float, most: float, text: str | None = None) -> Heat:
    """A count that is coloured by its share of `most`; any at all is level 1 or more."""
    level = 0
    if value > 0 and most > 0:
        level = min(_HEAT_LEVELS - 1, 1 + int(value / most * (_HEAT_LEVELS - 1.001)))
    return Heat(f"{value:,.0f}" if text is None else text, level)


def ranges(lowest: float, highest: float, bins: int) -> list[str]:
    """The ranges of equal bins in words; each but the last is without its upper end."""
    if highest <= lowest:
        return [f"{lowest:g}"] + [""] * (bins - 1)
    edges = [lowest + (highest - lowest) * place / bins for place in range(bins + 1)]
    return [f"{one:.4g} to {other:.4g}" for one, other in pairwise(edges)]
