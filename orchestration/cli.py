"""The command line: `trajlake`. Each command is a thin layer over the tables of the lake."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from udfs.errors import TrajlakeError
from udfs.settings import check_folder

# Name → where the command is (a function, or an app with commands of its own), and what the list
# of commands says of it. A module is imported when its command is run: most of them need pyarrow,
# and the list of commands does not.
COMMANDS = {
    "summary": (
        "orchestration.summary:summary_command",
        "How many records of each source became trajectories, were rated, kept and exported.",
    ),
    "sources": (
        "orchestration.sources:sources_command",
        "What there is of each source: files, formats, trajectories, quarantine, licence.",
    ),
    "sql": (
        "orchestration.sql:sql_command",
        "Ask the lake in SQL, read-only, also while a build runs.",
    ),
    "rate": (
        "orchestration.rate:app",
        "Rate trajectories: what it would cost, the rating itself, how far it is.",
    ),
    "calibration": (
        "orchestration.calibration:calibration_command",
        "How raters' scores go with labels: agreement, order, calibration, length bias.",
    ),
    "export": (
        "orchestration.export:export_command",
        "Write a recipe's training data to exports/<recipe>, in the order of training.",
    ),
    "report": (
        "orchestration.report:report_command",
        "Write one HTML file with what a recipe keeps and drops, and why.",
    ),
    "ui": (
        "orchestration.ui.command:ui_command",
        "Look at trajectories in a web browser: find, read, compare, label.",
    ),
    "explain": (
        "orchestration.explain:explain_command",
        "All that is known of one trajectory, from raw bytes to plan positions.",
    ),
    "diff": (
        "orchestration.diff:diff_command",
        "What came, what went and what weighs differently between two exports, and why.",
    ),
    "replay": (
        "orchestration.replay:replay_command",
        "Make an old export again from the versions it was made from, and compare.",
    ),
    "attack": (
        "orchestration.attack:attack_command",
        "Attack a rater with hostile trajectories, and say how often its score moves.",
    ),
    "agent": (
        "orchestration.agent.command:agent_command",
        "Let a model answer queries in an environment, and keep what it did as raw records.",
    ),
    "eval": (
        "orchestration.evaluate.command:app",
        "Measure a served model on a benchmark, beside the published numbers.",
    ),
    "launch": (
        "orchestration.launch.command:app",
        "Write a script or manifest that trains on another machine: ssh, Slurm, Kubernetes.",
    ),
    "doctor": (
        "orchestration.doctor:doctor_command",
        "Check the environment, the settings and the lake, and say what to do.",
    ),
}


class _Commands(TyperGroup):
    """Commands that are known by name and loaded when one is run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name not in COMMANDS:
            return name, command, rest
        if name != "doctor" and "--help" not in rest:
            check_folder()
        return name, _load(name), rest


def _load(name: str) -> Any:
    """The command itself, in the place of its entry in the list."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        alone = _new_app()
        alone.command(name)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = name
    return command


def _new_app(**settings: Any) -> typer.Typer:
    return typer.Typer(
        no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, **settings
    )


app = _new_app(
    cls=_Commands, help="A lakehouse for LLM-agent trajectories. The main job is `dbt build`."
)
for _name, (_, _help) in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def main() -> None:
    """Run a command; an error of ours is one line that says what to do, and exit code 1."""
    try:
        app()
    except TrajlakeError as error:
        # Messages quote files and expressions: never markup.
        message = Text.assemble(("error", "bold red"), f": {error}")
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(1)
