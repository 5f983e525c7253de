"""Pictures for a page of metadata: SVG, and Markdown that carries one.

Texts of strangers are escaped by the XML library, and cut: a source may be called anything.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from orchestration.printing import harmless

_STAGES = {
    "raw_records": ("records", "#92400e"),
    "trajectories": ("trajectories", "#1d4ed8"),
    "rated": ("rated", "#b45309"),
    "kept": ("kept", "#15803d"),
}
_WIDTH = 640
_LABEL = 170  # of its width, for the name before a bar
_MOST_CHARACTERS = 24
_MOST_SOURCES = 20


def funnel_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """The funnel of a recipe: all sources together, a bar a stage, then each source's kept share.

    Args:
        rows: as `facts.funnel` gives them.
    """
    shown = sorted(rows, key=lambda row: -row["trajectories"])[:_MOST_SOURCES]
    totals = {stage: sum(row[stage] for row in rows) for stage in _STAGES}
    height = 24 * (len(_STAGES) + len(shown)) + 24
    drawing = _drawing(height, "Records, trajectories, rated and kept; below, kept by source")
    largest = max(totals.values(), default=0)
    y = 4
    for stage, (name, colour) in _STAGES.items():
        _bar(drawing, y, name, totals[stage], largest, colour, f"{totals[stage]:,}")
        y += 24
    y += 12
    for row in shown:
        kept, all_of_it = row["kept"], row["trajectories"]
        _bar(drawing, y, row["source"], kept, all_of_it, "#15803d", f"{kept:,} of {all_of_it:,}")
        y += 24
    return ElementTree.tostring(drawing, "unicode")


def losses_svg(losses: Sequence[tuple[int, float]]) -> str:
    """The loss over the steps of a run, as a line; (step, loss), in order."""
    height, left, bottom = 240, 60, 200
    drawing = _drawing(height, "Loss by step")
    if not losses:
        return ElementTree.tostring(drawing, "unicode")
    first, last = losses[0][0], losses[-1][0]
    low, high = min(loss for _, loss in losses), max(loss for _, loss in losses)
    points = " ".join(
        f"{left + (step - first) / max(last - first, 1) * (_WIDTH - left - 10):.1f},"
        f"{bottom - (loss - low) / ((high - low) or 1) * (bottom - 20):.1f}"
        for step, loss in losses
    )
    _add(drawing, "polyline", points=points, fill="none", stroke="#be185d", stroke_width=2)
    for text, x, y in (
        (f"{high:.3f}", 4, 24),
        (f"{low:.3f}", 4, bottom),
        (f"step {first:,}", left, height - 10),
        (f"step {last:,}", _WIDTH - 80, height - 10),
    ):
        _add(drawing, "text", text, x=x, y=y, fill="#64748b", font_size=13)
    return ElementTree.tostring(drawing, "unicode")


def as_markdown(svg: str, alternative: str) -> str:
    """A drawing within Markdown, as an image."""
    return f"![{alternative}](data:image/svg+xml;base64,{b64encode(svg.encode()).decode()})"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table. Their keys are its head; values are text, and never markup."""
    if not rows:
        return "(no rows)"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    shown = harmless(text)
    # A backslash before each mark of Markdown and HTML; `---` between head and rows stays.
    return "".join(f"\\{each}" if each in "\\`*_{}[]<>()#+!|~&" else each for each in shown)


def _drawing(height: int, title: str) -> ElementTree.Element:
    drawing = ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {height}",
        width=str(_WIDTH),
        height=str(height),
        role="img",
    )
    _add(drawing, "title", title)
    _add(drawing, "style", "text{font-family:sans-serif}")
    return drawing


def _bar(
    drawing: ElementTree.Element,
    y: float,
    name: str,
    value: float,
    largest: float,
    colour: str,
    said: str,
) -> None:
    shown = harmless(name)
    shown = shown if len(shown) <= _MOST_CHARACTERS else f"{shown[: _MOST_CHARACTERS - 1]}…"
    room = _WIDTH - _LABEL - 110
    width = room * value / largest if largest else 0
    _add(drawing, "text", shown, x=4, y=y + 14, fill="#64748b", font_size=13)
    _add(drawing, "rect", x=_LABEL, y=y, width=room, height=18, fill="#94a3b8", opacity=0.2)
    _add(drawing, "rect", x=_LABEL, y=y, width=round(width, 1), height=18, fill=colour)
    _add(drawing, "text", said, x=_LABEL + room + 8, y=y + 14, fill="#64748b", font_size=13)


def _add(parent: ElementTree.Element, tag: str, text: str = "", **attributes: Any) -> None:
    named = {name.replace("_", "-"): str(value) for name, value in attributes.items()}
    ElementTree.SubElement(parent, tag, named).text = text or None
