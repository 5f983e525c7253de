"""A recipe's report: one HTML file that says what is trained on, and what is not, and why.

    trajlake report default

writes `exports/default-report.html`. The file needs nothing beside it: no script, no font, no
picture, no network. It holds texts of trajectories, which are untrusted; docs/report.md says what
makes them harmless.
"""

from __future__ import annotations

import os
import tempfile
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestration.pages import STYLE, environment
from orchestration.printing import AsJson, print_json
from orchestration.report.page import Page, chosen_pairs, page
from orchestration.report.queries import Lake
from udfs.errors import ReportError
from udfs.settings import exports_folder


@dataclass(frozen=True)
class Report:
    """A report: its file, and which questions the lake had no answer to, with the reason."""

    file: Path
    problems: dict[str, str]


def report(recipe: str, output: Path | None = None) -> Report:
    """Write the report of a recipe.

    Args:
        recipe: the recipe.
        output: the file; None for `exports/<recipe>-report.html`.

    Raises:
        LakeError: the lake has not been built, or has no such recipe.
        ReportError: the file cannot be written.
    """
    with Lake(recipe) as lake:
        findings = lake.ask_all()
        lake.ask_examples([each for pair in chosen_pairs(findings) for each in pair if each])
    file = (output or exports_folder() / f"{recipe}-report.html").resolve()
    _write(file, render(page(findings)))
    return Report(file, findings.problems)


def report_command(
    recipe: Annotated[str, typer.Argument(help="A recipe of dbt_project/seeds/recipes.csv.")] = (
        "default"
    ),
    output: Annotated[
        Path | None,
        typer.Option(help="The file to write; exports/<recipe>-report.html, if nothing is said."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML file with what a recipe keeps and drops, and why."""
    written = report(recipe, output)
    size = written.file.stat().st_size
    if as_json:
        print_json({"file": str(written.file), "bytes": size, "problems": written.problems})
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{written.file} written, {size / 1e6:,.1f} MB", markup=False)
    for problem in dict.fromkeys(written.problems.values()):
        console.print(f"left out: {problem}", markup=False)


def render(content: Page) -> str:
    """The page as HTML. Every text is escaped; only the template and its style sheet are not."""
    templates = environment("orchestration.report")
    # The page allows this one style sheet, by its hash, and nothing else.
    style = templates.get_template(STYLE).render()
    return templates.get_template("report.html.jinja").render(
        page=content, style_sha256=b64encode(sha256(style.encode()).digest()).decode()
    )


def _write(file: Path, text: str) -> None:
    """Write a file in one step, so that a report is never half there."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, prefix=f".{file.name}.", encoding="utf-8", delete=False
        ) as partial:
            partial.write(text)
        os.chmod(partial.name, 0o644)
        os.replace(partial.name, file)
    except OSError as error:
        raise ReportError(
            f"The report cannot be written to {file} ({error.strerror}). Name another file with "
            "--output, or set TRAJLAKE_EXPORTS to another folder."
        ) from error
