"""What the pages of Trajlake have in common: texts made harmless, tables, bars, runs step by step.

The report (one file) and the trajectory browser (a server) show the same trajectories, which are
untrusted. What makes their texts harmless is here once: `texts` names what cannot be seen, the
templates escape everything, and the style sheet is the one thing that is not text.
"""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

STYLE = "pages.css"


def environment(package: str) -> Environment:
    """Templates of a package and those that all pages share; every text is escaped."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader("orchestration.pages", "")]),
        autoescape=True,
        undefined=StrictUndefined,
    )
