"""What a trajectory shows without a judge: actions, the environment's replies, errors in them.

The `rules` rater takes points off for it; `udfs.rater.verification` lists it, and
`udfs.curation.step_rules` says which steps it speaks against.

| error class         | when                                                               |
|---------------------|--------------------------------------------------------------------|
| `unknown_tool`      | the environment has no such tool or function                       |
| `invalid_action`    | it does not understand the action                                  |
| `invalid_arguments` | it refused the arguments                                           |
| `not_found`         | what the call names is not there                                   |
| `timeout`           | no answer in time                                                  |
| `permission`        | not allowed, no valid key, no subscription                         |
| `rate_limit`        | too many requests, a quota used up                                 |
| `http_error`        | another failure of the service or of the way to it                 |
| `program_error`     | code or a command that the agent ran broke                         |
| `other`             | it says that there was an error, and not which                     |

The classes join the system execution errors of TRAIL (arXiv 2505.08638: rate limiting,
authentication, service, not found, timeout, …) with the status codes of ToolBench's environment
(arXiv 2307.16789) and the call errors of ToolScan (arXiv 2411.13547). `nothing_found` is found
here too and is no error: an empty result is an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

# Any change of a class or pattern changes verifications and, through the rules, scores.
EVIDENCE_VERSION = "1"

NOTHING_FOUND = "nothing_found"

# Actions that end a run: ReAct's and FireAct's finish[…], AgentBench's answer, code agents' submit.
ENDING_ACTIONS = frozenset(
    {"finish", "final answer", "final_answer", "answer", "submit", "done", "stop", "exit", "end"}
)

# Observations that end a run: FireAct, HotpotQA, tau-bench's hand-over to a person, WebShop.
_ENDED = re.compile(
    r"\A(?:episode finished|answer is (?:in)?correct|transfer successful|thank you for shopping"
    r"|task (?:completed|finished|done)|the task is (?:completed|finished))",
    re.IGNORECASE,
)

# ToolBench's Finish call says in its arguments that the agent gave up.
_GAVE_UP = re.compile(r"give[_ ]up", re.IGNORECASE)

# WebShop's text pages separate what can be seen and clicked with this mark.
_PAGE_MARK = "[SEP]"

# A step of the unified trajectory (`udfs.schema.STEP`) as plain Python.
Step = Mapping[str, Any]


class Action(NamedTuple):
    """What an agent did: `search` with the argument `cats` for the text `search[cats]`."""

    name: str  # the whole text where it has no such form
    argument: str
    is_call: bool  # a call or a labelled action; false for a plain answer


# A message that calls itself an error, up to what it names: "Error: …", {"error": "…"}.
_SAID = r'\A(?:\{\s*"error"\s*:\s*"|error: ?)[^\n"]{0,60}?\b'
_STATUS = r"\A(?:status code: |http(?:/[\d.]+)? )"

# All look at the beginning of an observation (or of one of its lines), because pages, mails and
# source code quote error messages in passing. The first that matches counts. A search for what
# stands at the beginning would try every place; `match` does not.
_ERRORS: tuple[tuple[str, Callable[[str], re.Match[str] | None]], ...] = tuple(
    (name, compiled.match if pattern.startswith(r"\A") else compiled.search)
    for name, pattern in (
        # Function-calling agents: LangChain ("… is not a valid tool, try one of"), ToolBench
        # ("No such function name: …"), OpenAI-style loops ("Unknown tool", "Tool … not found").
        ("unknown_tool", r"\A.{0,80}\bis not a valid (?:tool|function)\b"),
        ("unknown_tool", r"\A.{0,20}\bno such (?:function|tool)\b"),
        ("unknown_tool", r"\A(?:error: )?(?:unknown|there is no) (?:tool|function)\b"),
        ("unknown_tool", r"\A(?:error: )?(?:tool|function) \S{1,80} (?:not found|does not exist)"),
        # HotpotQA's ReAct wrappers: "Invalid action: …", "Invalid Action. Valid Actions are …".
        ("invalid_action", r"\A(?:error: )?(?:invalid|unknown) action\b"),
        ("invalid_action", r"\A(?:error: )?(?:the |your )?action is (?:invalid|not valid)"),
        ("invalid_action", r"\A.{0,80}\bis not a valid action\b"),
        # ALFWorld says "Nothing happens."; AgentBench's copy of it "Nothing happened".
        ("invalid_action", r"\Anothing (?:happens|happened)\b"),
        # ScienceWorld and the Infocom parsers behind TextWorld and Jericho.
        ("invalid_action", r"\Ano known action matches that input"),
        ("invalid_action", r"\Athat's not a verb I recogni[sz]e"),
        # ToolAlpaca's simulator: "Parameter type error: …", "Parameter … missing".
        ("invalid_arguments", r"\Aparameter (?:type )?error\b"),
        ("invalid_arguments", r"\A.{0,80}\bmissing (?:\d+ )?required\b"),
        (
            "invalid_arguments",
            r"\A(?:error: )?(?:invalid|missing) (?:parameter|argument|input)s?\b",
        ),
        ("invalid_arguments", r"\A\d+ validation errors? for\b"),  # pydantic
        # AgentBench's knowledge graph: "get_relations(x) cannot be executed. You may …".
        ("invalid_arguments", r"\A.{0,200}\bcannot be executed\b"),
        # LangChain's document store.
        (
            "invalid_arguments",
            r"\A.{0,40}\bpage searched was not found, so you cannot lookup\b",
        ),
        ("invalid_arguments", _STATUS + r"(?:400|405|415|422)\b"),
        # HotpotQA: "Could not find [X]. Similar: […]", "No more results."; FireAct: "None".
        (NOTHING_FOUND, r"\Acould not find\b"),
        (NOTHING_FOUND, r"\Ano (?:more )?results?(?: found)?\b"),
        (NOTHING_FOUND, r"\A(?:none|\[\])\Z"),
        ("not_found", _STATUS + r"(?:404|410)\b"),
        # tau-bench: "Error: user not found".
        ("not_found", r"\Aerror: [^\n]{0,80}\bnot found\b"),
        # ToolBench: "Timeout error…"; agents' shells: "Command timed out after 30 seconds".
        ("timeout", _STATUS + r"(?:408|504)\b"),
        ("timeout", _SAID + r"(?:timed out|time-?out)\b"),
        ("timeout", r"\A[^\n]{0,40}\b(?:timed out|time-?out)\b[^\n]{0,40}\Z"),
        # ToolBench: "Unauthorized error…", "Unsubscribed error…"; shells: "…: Permission denied".
        ("permission", _STATUS + r"(?:401|403|407)\b"),
        (
            "permission",
            _SAID + r"(?:unauthori[sz]ed|not authori[sz]ed|authentication|forbidden|unsubscribed"
            r"|not subscribed|permission|access (?:is )?denied|blocked|(?:invalid )?api key)\b",
        ),
        ("permission", r"^[^\n]{0,80}: permission denied\.?$"),
        # ToolBench: "Too many requests error…", "Rate limit per minute error…".
        ("rate_limit", _STATUS + r"429\b"),
        ("rate_limit", _SAID + r"(?:too many requests|rate[ -]limit|quota)"),
        # Code agents: Python's traceback, a shell's and MySQL's own words.
        ("program_error", r"^Traceback \(most recent call last\)"),
        ("program_error", r"^[^\n]{0,80}: (?:command not found|no such file or directory)$"),
        ("program_error", r"\A.{0,40}You have an error in your SQL syntax"),
        ("program_error", r"\A(?-i:[A-Z]\w*(?:Error|Exception))\b"),  # not "Terror …"
        # ToolBench: "API not working error…", "Gateway error…", "request invalid, data error".
        ("http_error", _STATUS + r"[45]\d\d\b"),
        (
            "http_error",
            _SAID + r"(?:api (?:temporarily )?not working|gateway|internal server"
            r"|service unavailable|connection (?:error|refused|reset)|request invalid)\b",
        ),
        # ToolBench and JSON interfaces: {"error": "…"}, where "" means none.
        ("other", r'\A\{\s*"error"\s*:\s*(?:"[^"]|\{|true)'),
        ("other", r"\A(?:an )?error(?:[:!.]| (?:occurred|executing|in|while)\b)"),
    )
    for compiled in (re.compile(pattern, re.IGNORECASE | re.MULTILINE),)
)

# "Action: …", "ACTION: …" (ALFWorld), "Act: …" (AgentBench), "Action 3: …" (ReAct).
# Without flags for case and lines, so that the search may hop from one line's end to the next: it
# takes a third of the time. (Regardless of case, an i is a dotless or a dotted one too.)
_ACTION_LABEL = re.compile(
    r"\n[ \t]*[aA][cC][tT](?:[iI\u0130\u0131][oO][nN])?(?: \d+)?[ \t]*:(.*)", re.DOTALL
)
_BRACKETED = re.compile(r"\A([\w ]{1,40}?)\s*\[(.*)\]\s*\Z", re.DOTALL)
_OBSERVATION_LABEL = re.compile(r"\A\s*observation(?: \d+)?[ \t]*:\s*", re.IGNORECASE)


def error_class(observation: str) -> str | None:
    """The class of the error that an observation reports; None where it reports none."""
    for name, is_reported in _ERRORS:
        if is_reported(observation):
            return name
    return None


def actions_of(step: Step) -> list[Action] | None:
    """What the agent did in a step; None where the log does not show it.

    tau-bench leaves calls out of its conversations: the tool's answer is the only trace of one.
    """
    calls = step["tool_calls"] or []
    if calls:
        return [Action(c["name"] or "", _argument(c["arguments"] or ""), True) for c in calls]
    text = (step["output"] or "").strip()
    if not text and contents(step, "environment"):
        return None
    text = text or "\n".join(contents(step, "agent"))
    labelled = _ACTION_LABEL.search("\n" + text)
    if not labelled:
        return [Action(text, "", False)] if text else []
    action = labelled.group(1).strip()
    bracketed = _BRACKETED.match(action)
    if bracketed:
        return [Action(bracketed.group(1), bracketed.group(2).strip(), True)]
    return [Action(action, "", True)] if action else []


def replies_to(steps: Sequence[Step], actions: Sequence[list[Action] | None], i: int) -> list[str]:
    """What the environment said to step i; empty where nothing is known.

    In some chats the environment speaks as the user. A user's words are taken for an observation
    only where the step acted, so that a person's answer is not searched for error messages.

    Args:
        steps: all steps of the trajectory.
        actions: `actions_of` each of them.
        i: which step, from 0.
    """
    said = contents(steps[i], "environment")
    if not said and any(action.is_call for action in actions[i] or []):
        said = contents(steps[i], "user")
        if not said and i + 1 < len(steps):
            said = [steps[i + 1]["input"] or ""]
    return [text for text in map(unlabelled, said) if text]


def unlabelled(text: str) -> str:
    """What was observed, without the label that a log puts before it: "Observation 3: "."""
    label = _OBSERVATION_LABEL.match(text)
    return text[label.end() :].strip() if label else text.strip()


def contents(step: Step, source: str) -> list[str]:
    """The texts of a step's observations from one source. The agent's are its own last words."""
    return [o["content"] or "" for o in step["observations"] or [] if o["source"] == source]


def is_off_page(action: Action, page: str) -> bool:
    """Whether an action clicks on what is not there; only a page in WebShop's text form tells.

    Args:
        action: what the agent did.
        page: what it saw before.
    """
    return (
        action.name.lower() == "click"
        and _PAGE_MARK in page
        and folded(action.argument) not in folded(page)
    )


def is_broken_json(arguments: str) -> bool:
    """Whether a text was meant as a JSON object and is none.

    A brace alone does not tell: some sources print arguments in a notation of their own.
    """
    if not (arguments.lstrip().startswith("{") and '"' in arguments):
        return False
    try:
        orjson.loads(arguments)
    except ValueError:
        try:
            json.loads(arguments)  # takes more than JSON allows, such as NaN
        except ValueError:
            return True
    return False


class Ending(NamedTuple):
    """Whether a run came to its end, and by what one sees it."""

    is_finished: bool | None  # None where the log does not tell
    reason: str


def ending_of(
    last: Step, actions: list[Action] | None, replies: list[str], score: float | None
) -> Ending:
    """How a run ended, by its last step.

    Args:
        last: the last step.
        actions: `actions_of` it.
        replies: `replies_to` it.
        score: the environment's score; one above 0 is given for something done.
    """
    if any(a.name.lower() in ENDING_ACTIONS and _GAVE_UP.search(a.argument) for a in actions or []):
        return Ending(False, "the agent gave up")
    if score is not None and score > 0.0:
        return Ending(True, "the environment rewards it")
    if contents(last, "agent"):
        return Ending(True, "the agent closes with a response")
    if actions == []:
        return Ending(False, "the last step does nothing")
    if any(not a.is_call or a.name.lower() in ENDING_ACTIONS for a in actions or []):
        return Ending(True, "the agent's last step answers")
    if replies and not _ENDED.match(replies[-1]):
        return Ending(False, "the last observation was never answered")
    if replies:
        return Ending(True, "the environment ends it")
    return Ending(None, "the last action has no reply in the log")


def shown(actions: Sequence[Action]) -> str:
    """Actions as one text: `search[cats]; finish[no]`."""
    return "; ".join(f"{a.name}[{a.argument}]" if a.argument else a.name for a in actions)


def folded(text: str) -> str:
    """A text without regard to case and white space."""
    return " ".join(text.lower().split())


def quoted(text: str, most: int = 80) -> str:
    """A text on one line for an explanation, marked where it goes on."""
    line = " ".join(text.split())
    return f"'{line}'" if len(line) <= most else f"'{line[:most]}…'"


def _argument(arguments: str) -> str:
    """Arguments to compare by: of a JSON object with one text value, that value."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments.strip()
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    return value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True)
