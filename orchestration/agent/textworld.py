"""A TextWorld game as an environment: one tool, a command in the game's own language.

Games come as `.z8`, `.ulx` or `.json` files, made by `tw-make`. TextWorld is an extra of its own
(`pip install -e '.[textworld]'`). The reward is the game's score as a share of the highest one.

Source: Côté et al. 2018, "TextWorld: A Learning Environment for Text-based Games".
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestration.agent.environment import InvalidCall, Outcome, observed, tool
from udfs.errors import ConfigError

# What a game's file begins with. An interpreter that is given something else ends the process.
_BEGINNINGS = {".z8": b"\x08", ".ulx": b"Glul", ".json": b"{"}

# Every game begins with a banner drawn in these characters, and every text ends with a prompt and
# the line of status: neither says anything that the text between does not.
_BANNER = re.compile(r"\A(?:[ $\\|/_>]*\n)+")
_PROMPT = re.compile(r"\s*\n> *(?:-= .* =-\d+/\d+)?\s*\Z")

# TextWorld reads games and their logic by a parser that all of them share.
_ONE_AT_A_TIME = threading.Lock()

_MOST_CHARACTERS = 200  # of a command; the games' parsers read less

_COMMAND = tool(
    "act",
    "Give the game one command, such as `look`, `inventory`, `go east` or `open chest`.",
    {
        "type": "object",
        "properties": {"command": {"type": "string", "description": "The command, one line."}},
        "required": ["command"],
        "additionalProperties": False,
    },
)


class TextWorld:
    """A game from its beginning.

    Raises:
        ConfigError: TextWorld is not installed, or the file is none of its games.
    """

    name = "textworld"
    instructions = (
        "You play a text adventure. The game tells you what you see and what to achieve. Give it "
        "one command at a time, until it says that it is over."
    )
    tools: Sequence[Mapping[str, Any]] = (_COMMAND,)
    takes_answers = False

    def __init__(self, game: Path) -> None:
        try:
            import textworld
        except ImportError as error:
            raise ConfigError(
                f"TextWorld is not installed ({error}). Install it: pip install -e '.[textworld]'"
            ) from error
        # Said of every game that TextWorld makes: it keeps the score itself.
        warnings.filterwarnings("ignore", "Game '.*' is not fully supported")
        wanted = textworld.EnvInfos(score=True, max_score=True)
        try:
            with game.open("rb") as file:
                if not file.read(4).startswith(_BEGINNINGS.get(game.suffix, b"no game")):
                    raise ValueError("its content is no game's")
            with _ONE_AT_A_TIME:
                self._game = textworld.start(str(game), wanted)
        except Exception as error:  # what it raises differs by the kind of file
            raise ConfigError(
                f"{game} cannot be played: {type(error).__name__}: {error}. Give a game that "
                f"`tw-make` wrote ({', '.join(_BEGINNINGS)}), with its .json file beside it."
            ) from error

    def reset(self) -> str:
        """What the game says first: the objective, and the place."""
        with _ONE_AT_A_TIME:
            return _plain(self._game.reset()["feedback"])

    def step(self, tool: str, arguments: Mapping[str, Any]) -> Outcome:
        """Give the game a command.

        Raises:
            InvalidCall: it is no single line.
        """
        command = arguments.get("command")
        if list(arguments) != ["command"] or not isinstance(command, str):
            raise InvalidCall('The arguments are {"command": "…"}, a text and nothing else.')
        if not (command.strip() and command.isprintable() and len(command) <= _MOST_CHARACTERS):
            raise InvalidCall(f"A command is one line of up to {_MOST_CHARACTERS} characters.")
        with _ONE_AT_A_TIME:
            state, score, is_done = self._game.step(command)
        highest = state["max_score"]
        reward = float(score) / float(highest) if highest else None
        return Outcome(_plain(state["feedback"]), reward, bool(is_done))

    def close(self) -> None:
        """End the game's interpreter."""
        self._game.close()


def _plain(feedback: str) -> str:
    """What the game says, without banner, prompt and line of status."""
    return observed(_PROMPT.sub("", _BANNER.sub("", feedback)).strip())


def games(paths: Sequence[Path]) -> list[Path]:
    """The game files among the given files and folders, each game once.

    A game has a file for an interpreter and a `.json` that describes it: the first counts.

    Raises:
        ConfigError: there are none.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in sorted(files, key=lambda file: file.suffix == ".json"):
            if file.suffix in _BEGINNINGS and file.is_file():
                found.setdefault(file.with_suffix(""), file)
    if not found:
        raise ConfigError(
            f"There is no game in {', '.join(map(str, paths)) or 'what was given'}. Give files "
            f"({', '.join(_BEGINNINGS)}), or a folder of them; `tw-make` makes some."
        )
    return sorted(found.values())
