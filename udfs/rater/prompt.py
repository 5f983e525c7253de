r"""The judge's prompt: templates, how a trajectory is shown in them, and how a long one is shortened.

A template is a file below `prompts/` named by its version, with the user's message, and where it
has a system message, `<version>.system.txt`. A version never changes: another wording is another
version, and so another rater.

| version       | what it is                                                                       |
|---------------|----------------------------------------------------------------------------------|
| `fig4-v1`     | FIG. 4 of the specification, word for word, with nothing else                    |
| `fig4-v2`     | the same message behind a system message that says what is evidence in it        |
| `fig4-v3`     | the same with a code in the frame's lines, which the reply has to repeat         |
| `stepwise-v1` | a score and a critique for every step, the first error, a score of the whole run |
| `pairwise-v1` | which of two runs is better                                                      |

A trajectory is shown as one JSON object under the figure's keys:

| key                                 | value                                                    |
|-------------------------------------|----------------------------------------------------------|
| `#### Initial Input of Step 1 ####` | system prompt and first input                            |
| `#### Model Output of Step n ####`  | the model's text; calls that it does not show, as JSON lines below it |
| `#### Observation of Step n ####`   | what came back; left out where nothing did               |
| `#### User Input of Step n ####`    | a user's turn before step n > 1; not in the figure, which has no such turns |

It is text by strangers. JSON's escapes keep its quotes and newlines inside their strings. What
could be taken for more than text is escaped as well, so that the JSON still means the same and
the judge sees where it was touched: the brackets of imitated frame lines and cut marks, the tags
of chat templates (which some servers would read as the end of a message), and characters that
cannot be seen. The code in a frame is a hash of what the frame holds, so nothing in there can
have known it.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from udfs.errors import ConfigError

DEFAULT_TEMPLATE = "fig4-v2"

# How a trajectory becomes a prompt: part of a rater's identity, like the template.
RENDERING_VERSION = 2

_PLACEHOLDER = re.compile(r"\{(Given Agent Trajectory(?: [AB])?|marker|check|steps)\}")
_MARKER_DIGITS = 16

# What is not to be seen: controls, line breaks that JSON leaves alone, format characters (of no
# width, changes of direction and others), blank letters, private characters, and the tags and
# selectors in which whole sentences can be hidden. Written out, because what Unicode calls so
# differs between versions of Python.
_UNSEEN = (
    r"\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    r"\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0"
    r"\ufff0-\uffff\ue000-\uf8ff\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    r"\U0001d173-\U0001d17a\U000e0000-\U0010ffff"
)


def _more_than_text(brackets: str, unseen: str) -> re.Pattern[str]:
    """A pattern for characters that could be taken for more than text.

    It begins with one set of characters, so that the search runs over all others at once.
    """
    return re.compile(
        rf"[{brackets}<{unseen}]"
        # Frame lines and cut marks, in any brackets and with any gaps.
        rf"(?:(?<=[{brackets}])"
        r"(?=[^\w\[]{0,8}(?i:(?:BEGIN|END)[\W_]{1,8}OF[\W_]{1,8}JSON|CUT\s*:))"
        # Chat templates' tags: <|im_start|>, </s>, <<SYS>>, <start_of_turn>, [INST] and so on.
        r"|(?<=<)(?=[|\uff5c]|(?i:<\s*/?SYS\b|/?(?:s|bos|eos|pad|unk|think|system|user|assistant"
        r"|human|(?:start|end)_of_turn|\w{1,16}_header_id)>))"
        r"|(?<=\[)(?=(?i:/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS)\]))"
        rf"|(?<=[{unseen}]))"
    )


_TOUCHED = _more_than_text(r"\[\uff3b\u3010", _UNSEEN)
_TOUCHED_ASCII = _more_than_text(r"\[", r"\x7f")  # the same for most texts, and quicker

# What a text of each kind keeps at least, in characters; the kinds are shortened in this order.
_FLOORS = {"observation": 200, "input": 400, "output": 400}

# A reply has to fit into the judge's context as well; so much is kept free where the parameters
# set no limit of it. And what a chat template puts around the messages, generously.
_REPLY_TOKENS = 1024
_CHAT_FRAME_TOKENS = 64


class DoesNotFit(Exception):
    """A trajectory that is too long, even with all its texts cut to the least."""


@dataclass(frozen=True)
class Template:
    """A versioned prompt, with placeholders."""

    version: str
    system: str | None
    user: str

    @property
    def characters(self) -> int:
        """How long it is without a trajectory."""
        return len(self.system or "") + len(self.user)

    @property
    def is_pairwise(self) -> bool:
        """Whether it shows two trajectories."""
        return "{Given Agent Trajectory B}" in self.user

    @property
    def has_check(self) -> bool:
        """Whether the reply has to repeat the frame's code on its last line."""
        return "{check}" in self.user


class Prompt(NamedTuple):
    """A prompt as it is sent.

    `shown` is what stands in the frame (of two, with a comma between), `marker` its code.
    `shown_share` is how much of the trajectory's characters the judge sees: 1.0 where nothing
    was cut.
    """

    messages: list[dict[str, str]]
    shown: str
    marker: str
    steps: int
    shown_share: float


@cache
def template(version: str) -> Template:
    """The template of a version.

    Raises:
        ConfigError: there is none, or it shows no trajectory.
    """
    folder = files("udfs.rater") / "prompts"
    texts = {file.name: file for file in folder.iterdir()}
    if f"{version}.txt" not in texts:
        known = sorted(n.removesuffix(".txt") for n in texts if not n.endswith(".system.txt"))
        raise ConfigError(
            f"There is no template '{version}'. Set the var rater_template to one of "
            f"{', '.join(known)}, or add udfs/rater/prompts/{version}.txt."
        )
    # Bytes: a template is word for word, line ends included.
    user = texts[f"{version}.txt"].read_bytes().decode()
    system = texts.get(f"{version}.system.txt")
    if "{Given Agent Trajectory" not in user:
        raise ConfigError(
            f"udfs/rater/prompts/{version}.txt does not say where the trajectory goes. "
            "Write {Given Agent Trajectory} there."
        )
    return Template(version, system.read_bytes().decode() if system else None, user)


def render(
    template: Template, trajectories: Sequence[Mapping[str, Any]], most_tokens: int | None = None
) -> Prompt:
    """The prompt for one trajectory, or for two in a pairwise template.

    A prompt that would have more than `most_tokens` is shortened by this rule. Texts are cut in
    their middle, and both ends stay. First every observation longer than a limit is cut to that
    limit, the largest that makes the prompt fit, so the longest are cut first. Where observations
    of 200 characters are still too much, inputs follow, then the model's own outputs, to 400
    each. Every cut says in its place how many characters are missing.

    Args:
        template: what is asked.
        trajectories: with `system_prompt` and `steps` (as in `udfs.schema.STEP`).
        most_tokens: by `count_tokens`; None where there is no limit.

    Raises:
        DoesNotFit: all cuts together are not enough.
    """
    runs = [_Run(t["system_prompt"], t["steps"] or []) for t in trajectories]
    limits: dict[str, int] = {}
    if most_tokens is not None:
        frame = count_tokens(template.user + (template.system or "")) + _CHAT_FRAME_TOKENS
        limits = _limits(runs, most_tokens - frame)
    shown = [run.shown(limits) for run in runs]
    whole = sum(run.characters() for run in runs)
    marker = hashlib.sha256("\n".join([template.user, *shown]).encode()).hexdigest()
    values = {
        "marker": marker[:_MARKER_DIGITS],
        "check": marker[:_MARKER_DIGITS],
        "steps": str(len(runs[0].steps)),
        "Given Agent Trajectory": shown[0],
        "Given Agent Trajectory A": shown[0],
        "Given Agent Trajectory B": shown[-1],
    }

    def filled(text: str) -> str:
        return _PLACEHOLDER.sub(lambda found: values[found[1]], text)

    messages = [{"role": "user", "content": filled(template.user)}]
    if template.system is not None:
        messages.insert(0, {"role": "system", "content": filled(template.system)})
    return Prompt(
        messages=messages,
        shown=",\n".join(shown),
        marker=values["marker"],
        steps=len(runs[0].steps),
        shown_share=sum(run.characters(limits) for run in runs) / whole if limits else 1.0,
    )


def prompt_tokens(context_tokens: int, reply_tokens: int | None) -> int:
    """How many tokens a prompt may have in a context that has to hold the reply as well."""
    return context_tokens - (_REPLY_TOKENS if reply_tokens is None else reply_tokens)


# Bytes by what they are in a token: letters come in words, digits and signs mostly alone.
_LOWER, _UPPER, _DIGIT, _SIGN, _SPACE, _OTHER = range(6)
_CLASS = np.array(
    [
        _LOWER
        if 97 <= byte <= 122
        else _UPPER
        if 65 <= byte <= 90
        else _DIGIT
        if 48 <= byte <= 57
        else _SPACE
        if byte == 32
        else _OTHER
        if byte >= 128
        else _SIGN
        for byte in range(256)
    ],
    dtype=np.uint8,
)


def count_tokens(text: str) -> int:
    """How many tokens a text has, estimated from above and without any judge's vocabulary.

    Most judges do not say which tokenizer they have. This rule counts bytes by their kind. Its
    weights are set so that it lies above Mistral's tekken for every log at hand, by 8 to 150 %
    and 30 % in the mean; base64, emoji and very rare words can be more tokens than it says. The
    endpoint's own refusal has the last word.
    """
    kinds = _CLASS[np.frombuffer(text.encode(), dtype=np.uint8)]
    here, before = kinds[1:], kinds[:-1]
    letters = kinds <= _UPPER
    weighed = (
        (0.8, letters[1:] & ~letters[:-1]),  # words
        (0.1, letters),
        (1.0, (here == _UPPER) & (before == _LOWER)),  # inWords
        (0.3, (here == _UPPER) & (before == _UPPER)),
        (1.0, (kinds == _DIGIT) | (kinds == _SIGN)),
        (-0.4, (here == _SIGN) & (before == _SIGN)),  # signs come in groups, as in `"}],`
        (0.25, (here == _SPACE) & (before == _SPACE)),
        (0.5, kinds == _OTHER),  # a letter of another script has two or three bytes
    )
    return 1 + math.ceil(sum(weight * np.count_nonzero(found) for weight, found in weighed))


class _Run:
    """A trajectory as it is shown: (key, kind of text, text) in order."""

    def __init__(self, system_prompt: str | None, steps: Sequence[Mapping[str, Any]]) -> None:
        self.steps = steps
        self.texts: list[tuple[str, str, str]] = []
        for n, step in enumerate(steps, start=1):
            new_input = step["input"] or ""
            if n == 1:
                first = "\n\n".join(text for text in (system_prompt, new_input) if text)
                self.texts.append(("#### Initial Input of Step 1 ####", "input", first))
            elif new_input:
                self.texts.append((f"#### User Input of Step {n} ####", "input", new_input))
            self.texts.append((f"#### Model Output of Step {n} ####", "output", _output(step)))
            if step["next_observation"]:
                key = f"#### Observation of Step {n} ####"
                self.texts.append((key, "observation", step["next_observation"]))

    def shown(self, limits: Mapping[str, int]) -> str:
        """The JSON object, with texts cut to the limit of their kind."""
        if not self.texts:
            return "{}"
        lines = [f' "{key}": {_quoted(text, limits.get(kind))}' for key, kind, text in self.texts]
        return "{\n" + ",\n".join(lines) + "\n}"

    def characters(self, limits: Mapping[str, int] | None = None) -> int:
        """The characters of its texts, without marks and escapes."""
        limits = limits or {}
        return sum(min(len(text), limits.get(kind, len(text))) for _, kind, text in self.texts)


def _output(step: Mapping[str, Any]) -> str:
    """The model's text, with the calls that stand beside it and not in it."""
    text = step["output"] or ""
    lines = [text] if text else []
    for call in step["tool_calls"] or []:
        name, arguments = call["name"] or "", call["arguments"] or ""
        if not (name in text and arguments in text):
            lines.append(json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False))
    return "\n".join(lines)


def _quoted(text: str, limit: int | None) -> str:
    """A text as a JSON string, without its middle where it is longer than the limit."""
    if limit is None or len(text) <= limit:
        return _escaped(text)
    head, tail = text[: limit - limit // 2], text[len(text) - limit // 2 :]
    mark = f"[CUT: {len(text) - limit:,} characters left out here, so that the run fits]"
    return f"{_escaped(head)[:-1]} {mark} {_escaped(tail)[1:]}"


def disarmed(text: str) -> str:
    """A text in which nothing can be taken for more than text: such characters as `\\uxxxx`."""
    return _TOUCHED.sub(_written_out, text)


def _escaped(text: str) -> str:
    """A text as a JSON string that cannot be taken for anything but text."""
    pieces = []
    end = 0
    for found in (_TOUCHED_ASCII if text.isascii() else _TOUCHED).finditer(text):
        pieces.append(json.dumps(text[end : found.start()], ensure_ascii=False)[1:-1])
        pieces.append(_written_out(found))
        end = found.end()
    pieces.append(json.dumps(text[end:], ensure_ascii=False)[1:-1])
    return f'"{"".join(pieces)}"'


def _written_out(found: re.Match[str]) -> str:
    units = found.group().encode("utf-16-be").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def _limits(runs: Sequence[_Run], most_tokens: int) -> dict[str, int]:
    """How long texts of each kind may be, so that all runs together have at most so many tokens.

    Raises:
        DoesNotFit: there are no such limits.
    """

    def fits(limits: Mapping[str, int]) -> bool:
        shown = [run.shown(limits) for run in runs]
        # A token has at least one byte, so most prompts need no count.
        return (
            sum(len(text.encode()) for text in shown) <= most_tokens
            or sum(map(count_tokens, shown)) <= most_tokens
        )

    limits: dict[str, int] = {}
    if fits(limits):
        return limits
    for kind, floor in _FLOORS.items():
        longest = max((len(t) for run in runs for _, k, t in run.texts if k == kind), default=0)
        if longest <= floor:
            continue
        if fits(limits | {kind: floor}):
            # A character counts for a tenth of a token at least.
            too_long = min(longest, 10 * most_tokens)
            most = _largest(floor, too_long, lambda n: fits(limits | {kind: n}))  # noqa: B023  called at once
            return limits | {kind: most}
        limits[kind] = floor
    raise DoesNotFit(f"more than {most_tokens:,} tokens, with every text cut to the least")


def _largest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The largest number from `low` to below `high` for which a test holds, as it does for `low`.

    The test is to hold below that number and fail from there on.
    """
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
