"""Pictures and tables of metadata: right, and harmless whatever a source is called."""

from __future__ import annotations

from base64 import b64decode
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from orchestration.assets.pictures import as_markdown, funnel_svg, losses_svg, markdown_table

SVG = "{http://www.w3.org/2000/svg}"


def row(source: str, trajectories: int = 4, kept: int = 2) -> dict[str, Any]:
    counts = {"raw_records": 5, "trajectories": trajectories, "rated": 3, "kept": kept}
    return {"source": source, **counts}


def texts(svg: str) -> list[str | None]:
    return [each.text for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_funnel_has_all_stages_and_each_source() -> None:
    said = texts(funnel_svg([row("desk"), row("shop", trajectories=8, kept=8)]))

    assert said[:8] == ["records", "10", "trajectories", "12", "rated", "6", "kept", "10"]
    assert said[8:] == ["shop", "8 of 8", "desk", "2 of 4"]


def test_bars_are_as_long_as_their_counts() -> None:
    drawing = ElementTree.fromstring(funnel_svg([row("desk")]))
    filled = [float(each.attrib["width"]) for each in drawing.iter(f"{SVG}rect")][1::2]

    assert filled == [360.0, 288.0, 216.0, 144.0, 180.0]


def test_a_source_may_be_called_anything() -> None:
    name = "<script>alert(1)</script>\x1b[2J\u202e"
    svg = funnel_svg([row(name)])

    assert "<script" not in svg
    assert any(text and text.startswith("<script>") for text in texts(svg))
    assert "\x1b" not in svg and "\u202e" not in svg


@pytest.mark.parametrize("rows", [[], [row("none", 0, 0)]])
def test_an_empty_funnel_can_be_drawn(rows: list[dict[str, Any]]) -> None:
    ElementTree.fromstring(funnel_svg(rows))


def test_losses_are_a_line_from_the_first_step_to_the_last() -> None:
    drawing = ElementTree.fromstring(losses_svg([(1, 9.0), (2, 8.0), (3, 7.5)]))
    line = drawing.find(f"{SVG}polyline")
    assert line is not None
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]

    assert points == [(60, 20), (345, 140), (630, 200)]
    assert {"9.000", "7.500", "step 1", "step 3"} <= set(
        texts(ElementTree.tostring(drawing, "unicode"))
    )


@pytest.mark.parametrize("losses", [[], [(1, 2.0)], [(1, 2.0), (2, 2.0)]])
def test_few_losses_can_be_drawn(losses: list[tuple[int, float]]) -> None:
    ElementTree.fromstring(losses_svg(losses))


def test_a_drawing_is_an_image_of_markdown() -> None:
    found = as_markdown("<svg/>", "funnel")

    assert found.startswith("![funnel](data:image/svg+xml;base64,")
    assert b64decode(found.rpartition(",")[2].rstrip(")")) == b"<svg/>"


def test_cells_are_text_and_never_markup() -> None:
    hostile = "a|b <img src=x onerror=alert(1)> [link](http://x) `c` **d** &lt;"
    rendered = (
        MarkdownIt("commonmark")
        .enable("table")
        .render(markdown_table([{"source": hostile, "kept": 1234}]))
    )

    assert "<img" not in rendered and "<a " not in rendered and "<strong>" not in rendered
    assert rendered.count("<td>") == 2
    assert "1,234" in rendered


def test_a_table_without_rows_says_so() -> None:
    assert markdown_table([]) == "(no rows)"
