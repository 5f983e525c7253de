"""Draw the lineage of the models: `make picture`, or `python -m orchestration.model_graph FILE`.

The picture is a function of dbt's manifest. Arrows that follow from others are left out: where a
model reads another both directly and through a third, only the longer way is drawn. Needs
pygraphviz (in the extra `dev`), whose wheel brings Graphviz.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

_MANIFEST = Path(__file__).parents[1] / "target" / "manifest.json"
_FONT = "Helvetica,Arial,sans-serif"
_LEGEND = ("filled: Delta table", "outlined: view", "grey: seed", "double line: made of them")
_PLAIN = "#475569"  # of what has no colour in dbt's documentation


def graph_text(manifest: Mapping[str, Any]) -> str:
    """The graph in Graphviz's language.

    Args:
        manifest: dbt's manifest, read from JSON.
    """
    import pygraphviz

    drawn = {**_nodes(manifest), **manifest["exposures"]}
    graph = pygraphviz.AGraph(directed=True, strict=True)
    for key, node in sorted(drawn.items()):
        graph.add_node(key)
        parents = sorted(drawn.keys() & node["depends_on"].get("nodes", []))
        graph.add_edges_from((parent, key) for parent in parents)
    graph = graph.tred(copy=True)
    graph.graph_attr.update(
        rankdir="TB", nodesep="0.12", ranksep="0.3", pad="0.2", bgcolor="#ffffff"
    )
    graph.graph_attr["label"] = "     ".join(_LEGEND)
    graph.graph_attr.update(fontname=_FONT, fontsize="13", fontcolor=_PLAIN)
    graph.node_attr.update(
        shape="box", style="filled,rounded", fontname=_FONT, fontsize="13", height="0.3"
    )
    graph.edge_attr.update(color="#94a3b8", arrowsize="0.6")
    for key, node in sorted(drawn.items()):
        graph.get_node(key).attr.update(label=node["name"], **_look(node))
    return str(graph.string())


def _nodes(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: node
        for key, node in manifest["nodes"].items()
        if node["resource_type"] in ("model", "seed")
    }


def _look(node: Mapping[str, Any]) -> dict[str, str]:
    kind = node["resource_type"]
    if kind == "exposure":
        return {"peripheries": "2", "color": _PLAIN, "fillcolor": "#ffffff", "fontcolor": "#0f172a"}
    color = node["docs"].get("node_color") or _PLAIN
    if kind == "seed":
        return {"color": _PLAIN, "fillcolor": "#e2e8f0", "fontcolor": "#0f172a"}
    if node["config"]["materialized"] == "view":
        return {"color": color, "fillcolor": "#ffffff", "fontcolor": color}
    return {"color": color, "fillcolor": color, "fontcolor": "#ffffff"}


def checksum(text: str) -> str:
    """What a picture keeps of the graph it was made from, to be known as stale by."""
    return sha256(text.encode()).hexdigest()


def draw(text: str) -> str:
    """The picture as SVG, with the checksum of its graph in a comment at the end."""
    import pygraphviz

    svg = pygraphviz.AGraph(string=text).draw(format="svg", prog="dot").decode()
    # What stands before the element names a DTD on the net.
    return f"{svg[svg.index('<svg') :]}<!-- graph {checksum(text)} -->\n"


def main(
    output: Annotated[Path, typer.Argument(help="The SVG file to write.")],
    manifest: Annotated[Path, typer.Option(help="dbt's manifest.")] = _MANIFEST,
) -> None:
    """Draw the lineage of dbt's models from its manifest."""
    output.write_text(draw(graph_text(json.loads(manifest.read_text("utf-8")))), "utf-8")


if __name__ == "__main__":
    typer.run(main)
