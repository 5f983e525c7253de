"""The command line: `trajlake`. Each command is a thin layer over the tables of the lake."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.text import Text

from orchestration.attack import attack_command
from orchestration.calibration import calibration_command
from orchestration.diff import diff_command
from orchestration.explain import explain_command
from orchestration.export import export_command
from orchestration.replay import replay_command
from orchestration.sql import sql_command
from orchestration.summary import summary_command
from udfs.errors import TrajlakeError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A lakehouse for LLM-agent trajectories. The main job is `dbt build`.",
)
app.command("summary")(summary_command)
app.command("sql")(sql_command)
app.command("calibration")(calibration_command)
app.command("export")(export_command)
app.command("attack")(attack_command)
app.command("replay")(replay_command)
app.command("diff")(diff_command)
app.command("explain")(explain_command)


def main() -> None:
    """Run a command; an error of ours is one line that says what to do, and exit code 1."""
    try:
        app()
    except TrajlakeError as error:
        # Messages quote files and expressions: never markup.
        message = Text.assemble(("error", "bold red"), f": {error}")
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(1)
