"""The judge: what is asked about a trajectory, how the reply is read, and what is asked next.

A reply is read strictly and fails closed: a score stands alone on its first line, or there is
none. Where a reply cannot be read, the judge is told why and asked again in the same
conversation; then it is asked for JSON by a schema, where its endpoint can do that; then the
rating is `unparseable`. Every request is paid for, so a rating adds up what all of them cost.

    begin → Request ─ ask ─→ Reply ─ read → Reading ─ follow_up → Request … or none

`Judge.rate` does all this over an `Asker`. The parts are pure, for a transport that has one
request a round (the Batch API).
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from udfs.errors import ConfigError
from udfs.llm import Asker, Refused, Reply, TooLong, Unanswered, Unsupported
from udfs.rater.prompt import (
    DEFAULT_TEMPLATE,
    RENDERING_VERSION,
    DoesNotFit,
    Prompt,
    count_tokens,
    disarmed,
    prompt_tokens,
    render,
    template,
)

# How replies are read and asked for again: part of a rater's identity.
READING_VERSION = 2

# What `rater_long` can say of a trajectory that does not fit the judge's context.
LONG_RULES = ("too_long", "shorten")

_SCORE = (
    r"(?P<number> -? [0-9]{1,9} (?: \. [0-9]{1,9} )? )"
    r"(?: [ ]* / [ ]* 5 (?:\.0)? | [ ]out[ ]of[ ]5 )?"
)

# A score's whole line: "4", "4.5", "4/5", "4 out of 5", "Score: 4", "**Rating:** 4.5", "1. 4"
# (the figure numbers its two demands, and judges answer in kind).
_SCORE_LINE = re.compile(
    r"(?: 1 [.)] [ ]+ )? (?: \*\* )?"
    r"(?: (?:overall[ ]|final[ ])? (?:score|rating) [ ]* [:=] (?: \*\* )? [ ]* )?"
    rf"{_SCORE} (?: \*\* )?",
    re.IGNORECASE | re.VERBOSE,
)
_FIRST_ERROR_LINE = re.compile(
    r"(?: \*\* )? first[ ]error (?: [ ]step )? [ ]* : (?: \*\* )? [ ]*"
    r"(?: (?P<none>none) | (?:step[ ])? (?P<step>[0-9]{1,9}) ) [.]? (?: \*\* )?",
    re.IGNORECASE | re.VERBOSE,
)
_STEP_LINE = re.compile(
    rf"(?: [-*][ ] )? (?: \*\* )? step[ ] (?P<step>[0-9]{{1,9}}) [ ]* : (?: \*\* )? [ ]*"
    rf"{_SCORE} (?: \*\* )? [ ]* \| [ ]* (?P<critique>.+)",
    re.IGNORECASE | re.VERBOSE,
)
_PREFERENCE_LINE = re.compile(
    r"(?: 1 [.)] [ ]+ )? (?: \*\* )? (?P<preferred>A|B|tie) [.]? (?: \*\* )?",
    re.IGNORECASE | re.VERBOSE,
)
# A reply that is nothing but a fenced block.
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)

_CUT_HINT = "; the reply was cut off at its token limit (raise max_tokens in rater_parameters)"

Status = Literal["ok", "unparseable", "out_of_range", "refused", "too_long", "failed"]

# An endpoint that refuses a long prompt mostly says what it would take.
_CONTEXT_SIZE = re.compile(
    r"(?:context (?:length|window|size)|n_ctx)[^0-9]{0,40}([0-9]{3,9})", re.IGNORECASE
)


class Reading(NamedTuple):
    """What a reply says. `rater_score` and `further` columns are null unless `status` is `ok`.

    Without a score, `explanation` says what is wrong with the reply. `is_suspect` where the
    trajectory may have dictated it.
    """

    status: Status
    rater_score: float | None = None
    explanation: str | None = None
    further: Mapping[str, Any] = {}
    is_suspect: bool = False


class Request(NamedTuple):
    """One request about a trajectory: its conversation and the body's further fields.

    `number` is 1 for the first, 2 where a reply could not be read and is asked for again, 3 where
    it is asked for by a schema.
    """

    prompt: Prompt
    messages: list[dict[str, str]]
    fields: Mapping[str, Any]
    number: int = 1


class Form(Protocol):
    """What a template's reply looks like."""

    contract: str
    schema: Mapping[str, Any]

    def read(self, lines: Sequence[str], steps: int) -> Reading:
        """Read a reply by its lines, of which there is one at least."""
        ...

    def read_json(self, reply: Mapping[str, Any], steps: int) -> Reading:
        """Read a reply that was asked for by the schema, whose keys it has."""
        ...


def _object(**properties: Any) -> dict[str, Any]:
    """A JSON Schema as `strict` wants it. Ranges are left out: they would clamp a score."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_NUMBER, _INTEGER, _TEXT = ({"type": kind} for kind in ("number", "integer", "string"))


class ScoreForm:
    """FIG. 4's reply: the score, then the explanation."""

    contract = (
        "Line 1 has to be the score alone, a number from 0 to 5 such as 3.5. "
        "The explanation begins on line 2."
    )
    schema: Mapping[str, Any] = _object(score=_NUMBER, explanation=_TEXT)

    def read(self, lines: Sequence[str], steps: int) -> Reading:
        score = _score(_SCORE_LINE.fullmatch(lines[0].strip()), "the first line of the reply")
        if isinstance(score, Reading):
            return score
        return Reading("ok", score, "\n".join(lines[1:]).strip() or None)

    def read_json(self, reply: Mapping[str, Any], steps: int) -> Reading:
        score = _json_score(reply["score"], "score")
        if isinstance(score, Reading):
            return score
        if not isinstance(reply["explanation"], str):
            return Reading("unparseable", None, "explanation is no text")
        return Reading("ok", score, reply["explanation"].strip() or None)


class StepwiseForm:
    """A score of the run, its first error, and a score with a critique for every step.

    Gives `step_scores` (step_id, score, critique; one for each step) and `first_error_step`.
    """

    contract = (
        'Line 1 has to be the score of the whole run alone, line 2 "First error: <step or none>", '
        'then one line "Step <n>: <score> | <critique>" for every step in order.'
    )
    schema: Mapping[str, Any] = _object(
        score=_NUMBER,
        first_error={"type": ["integer", "null"]},
        steps={"type": "array", "items": _object(step=_INTEGER, score=_NUMBER, critique=_TEXT)},
    )

    def read(self, lines: Sequence[str], steps: int) -> Reading:
        overall = _score(_SCORE_LINE.fullmatch(lines[0].strip()), "the first line of the reply")
        if isinstance(overall, Reading):
            return overall
        said = [line.strip() for line in lines[1:] if line.strip()]
        first_error = _FIRST_ERROR_LINE.fullmatch(said[0]) if said else None
        if not first_error:
            return Reading("unparseable", None, "the second line does not name the first error")
        scored: list[dict[str, Any]] = []
        for line in said[1:]:
            found = _STEP_LINE.fullmatch(line)
            if found:
                score = _score(found, f"the line of step {found['step']}")
                if isinstance(score, Reading):
                    return score
                scored.append(
                    {"step_id": int(found["step"]), "score": score, "critique": found["critique"]}
                )
            elif scored:
                scored[-1]["critique"] += f"\n{line}"
            else:
                return Reading("unparseable", None, "the third line is not about step 1")
        named = None if first_error["none"] else int(first_error["step"])
        return _stepwise(overall, named, scored, steps)

    def read_json(self, reply: Mapping[str, Any], steps: int) -> Reading:
        overall = _json_score(reply["score"], "score")
        if isinstance(overall, Reading):
            return overall
        named = reply["first_error"]
        if not (named is None or type(named) is int) or not isinstance(reply["steps"], list):
            return Reading("unparseable", None, "first_error is no number, or steps is no list")
        scored: list[dict[str, Any]] = []
        for item in reply["steps"]:
            if not (isinstance(item, dict) and item.keys() == {"step", "score", "critique"}):
                return Reading("unparseable", None, "an item of steps has not the schema's keys")
            score = _json_score(item["score"], f"the score of step {item['step']}")
            if isinstance(score, Reading):
                return score
            if not isinstance(item["critique"], str):
                return Reading("unparseable", None, "a critique is no text")
            scored.append({"step_id": item["step"], "score": score, "critique": item["critique"]})
        return _stepwise(overall, named, scored, steps)


class PreferenceForm:
    """The better of two runs: A, B or tie. Gives `preferred`; there is no score."""

    contract = "Line 1 has to be A, B or tie, and nothing else. The reasons begin on line 2."
    schema: Mapping[str, Any] = _object(
        preferred={"type": "string", "enum": ["A", "B", "tie"]}, reasons=_TEXT
    )

    def read(self, lines: Sequence[str], steps: int) -> Reading:
        found = _PREFERENCE_LINE.fullmatch(lines[0].strip())
        if not found:
            return Reading("unparseable", None, "the first line of the reply is not A, B or tie")
        return self._reading(found["preferred"], "\n".join(lines[1:]))

    def read_json(self, reply: Mapping[str, Any], steps: int) -> Reading:
        if reply["preferred"] not in ("A", "B", "tie") or not isinstance(reply["reasons"], str):
            return Reading("unparseable", None, "preferred is not A, B or tie")
        return self._reading(reply["preferred"], reply["reasons"])

    def _reading(self, preferred: str, reasons: str) -> Reading:
        return Reading("ok", None, reasons.strip() or None, {"preferred": preferred.lower()})


_FORMS: Mapping[str, Form] = {"stepwise-v1": StepwiseForm(), "pairwise-v1": PreferenceForm()}


class Judge:
    """How a trajectory is put before a model and what is made of its answer.

    Args:
        version: the template, one of `prompts/`.
        context_tokens: the model's context; None where only its own refusal counts.
        long: what happens to a trajectory that does not fit: `too_long` or `shorten`.
        reply_tokens: the longest reply that the parameters allow, which has to fit as well.
        compares: whether it is to compare two trajectories instead of rating one.

    Raises:
        ConfigError: a setting that cannot be used.
    """

    def __init__(
        self,
        version: str = DEFAULT_TEMPLATE,
        *,
        context_tokens: int | None = None,
        long: str = "too_long",
        reply_tokens: int | None = None,
        compares: bool = False,
    ) -> None:
        if long not in LONG_RULES:
            raise ConfigError(f"rater_long is '{long}'. Set it to {' or '.join(LONG_RULES)}.")
        self.template = template(version)
        if self.template.is_pairwise is not compares:
            shown = "compares two trajectories" if self.template.is_pairwise else "rates one"
            raise ConfigError(f"The template '{version}' {shown}. Set rater_template to another.")
        self.long_rule = f"{long}:{context_tokens or 'endpoint'}"
        self._shortens = long == "shorten"
        self._reply_tokens = reply_tokens
        self._context_tokens = context_tokens
        self._most_tokens = None
        if context_tokens is not None:
            self._most_tokens = prompt_tokens(context_tokens, reply_tokens)
            if self._most_tokens <= 0:
                raise ConfigError(
                    f"rater_context_tokens is {context_tokens}, and the reply alone may have "
                    f"{context_tokens - self._most_tokens}. Set the judge's whole context, or a "
                    "smaller max_tokens in rater_parameters."
                )
        self._form = _FORMS.get(version, ScoreForm())
        # Endpoints that cannot do it say so once; that is remembered for the run.
        self.has_structured_output = True

    @property
    def decided_by(self) -> str:
        """What decides a score besides model and parameters, as one text."""
        texts = [self.template.system, self.template.user]
        return json.dumps([*texts, RENDERING_VERSION, READING_VERSION])

    def begin(
        self, trajectories: Sequence[Mapping[str, Any]], most_tokens: int | None = None
    ) -> Request:
        """The first request about a trajectory, or about two.

        Args:
            trajectories: with `system_prompt` and `steps`.
            most_tokens: shorten to so many; by default what the settings say.

        Raises:
            DoesNotFit: it is over the judge's context, or cannot be shortened to it.
        """
        most = self._most_tokens if most_tokens is None else most_tokens
        prompt = render(self.template, trajectories, most)
        if prompt.shown_share < 1.0 and not self._shortens:
            raise DoesNotFit(
                f"more than rater_context_tokens ({self._context_tokens:,}) with the reply"
            )
        return Request(prompt, prompt.messages, {})

    def read(self, request: Request, reply: Reply) -> Reading:
        """What a reply says. It fails closed; nothing outside 0 to 5 is ever clamped."""
        text = (reply.text or "").strip()
        is_cut = reply.finish_reason == "length"
        if reply.refusal or reply.finish_reason == "content_filter":
            return Reading("refused", None, reply.refusal or "the endpoint's content filter")
        if not text and not is_cut:
            return Reading("refused", None, "the reply has no text")
        reading = self._read(request, text, is_cut)
        if reading.status == "unparseable" and is_cut:
            return reading._replace(explanation=f"{reading.explanation}{_CUT_HINT}")
        return reading

    def follow_up(self, request: Request, reply: Reply, reading: Reading) -> Request | None:
        """What to ask next where a reply gave no score; None where that is the end of it.

        A suspect reply is the end: told what it lacks, a judge would give the same score again,
        in good form.
        """
        if reading.status not in ("unparseable", "out_of_range") or not (reply.text or "").strip():
            return None
        if reading.is_suspect:
            return None
        wrong = f"Your reply cannot be read: {(reading.explanation or '').removesuffix(_CUT_HINT)}."
        if reply.finish_reason == "length":
            wrong += " It was cut off for its length; write less."
        if request.number == 1:
            demand, fields = self._contract(request.prompt), {}
        elif request.number == 2 and self.has_structured_output:
            schema = self._schema()
            keys = ", ".join(schema["properties"])
            demand = f"Answer with one JSON object and nothing else. Its keys are: {keys}."
            if self.template.has_check:
                demand += f" check has to be the code {request.prompt.marker}."
            described = {"name": "evaluation", "strict": True, "schema": schema}
            fields = {"response_format": {"type": "json_schema", "json_schema": described}}
        else:
            return None
        turns = [
            # It may quote the trajectory, with what is escaped there written out.
            {"role": "assistant", "content": disarmed(reply.text or "")},
            {"role": "user", "content": f"{wrong} Evaluate again by the same rules. {demand}"},
        ]
        return Request(
            request.prompt, [*request.messages, *turns], fields, number=request.number + 1
        )

    async def rate(self, asker: Asker, *trajectories: Mapping[str, Any]) -> dict[str, Any]:
        """Ask about a trajectory (or two, in a pairwise template) until there is an answer.

        Returns:
            the columns of the ledger that follow from the answer, and the form's own
            (`StepwiseForm`, `PreferenceForm`).
        """
        asked = _Asked(asker)
        try:
            reading = await self._ask(asked, trajectories)
        except (DoesNotFit, TooLong) as error:
            reading = Reading("too_long", None, str(error))
        except Refused as error:
            reading = Reading("refused", None, str(error))
        except Unanswered as error:
            # Nothing is settled, whatever was said before: the next build asks again.
            reading = Reading("failed", None, str(error))
        return self._row(asked, reading)

    async def _ask(self, asked: _Asked, trajectories: Sequence[Mapping[str, Any]]) -> Reading:
        """Ask until there is an answer or nothing more to ask.

        Raises:
            DoesNotFit, TooLong: the trajectory is too long.
            Refused, Failed: a request has no usable answer.
        """
        request = self.begin(trajectories)
        try:
            reply = await asked.ask(request)
        except TooLong as error:
            # The endpoint's own count has the last word.
            if not self._shortens:
                raise
            request = self.begin(trajectories, self._fewer_tokens(request, error))
            reply = await asked.ask(request)
        reading = self.read(request, reply)
        while following := self.follow_up(request, reply, reading):
            try:
                reply = await asked.ask(following)
            except TooLong:  # the conversation has grown over the context
                break
            except Unsupported:
                self.has_structured_output = False
                break
            request = following
            reading = self.read(request, reply)
        return reading

    def _read(self, request: Request, text: str, is_cut: bool) -> Reading:
        text = _without_thinking(text, is_cut)
        if not text:
            return Reading("unparseable", None, "there is no text but the thinking")
        if _is_dictated(text, request.prompt):
            why = "it stands word for word in the trajectory, so it may be dictated by it"
            return Reading("unparseable", None, why, is_suspect=True)
        if request.fields:
            reply = _json_object(text)
            schema = self._schema()
            if reply is None or reply.keys() != schema["properties"].keys():
                return Reading("unparseable", None, "it is not the JSON object that was asked for")
            if self.template.has_check and reply["check"] != request.prompt.marker:
                return Reading("unparseable", None, "its check is not the code of the frame")
            return self._form.read_json(reply, request.prompt.steps)
        lines = text.splitlines()
        if self.template.has_check:
            if len(lines) < 2 or not _is_check(lines[-1], request.prompt.marker):
                why = "its last line is not the code of the frame alone"
                is_suspect = not is_cut and request.prompt.marker not in text
                return Reading("unparseable", None, why, is_suspect=is_suspect)
            lines.pop()
        return self._form.read(lines, request.prompt.steps)

    def _contract(self, prompt: Prompt) -> str:
        if not self.template.has_check:
            return self._form.contract
        return f"{self._form.contract} The last line has to be the code {prompt.marker} alone."

    def _schema(self) -> dict[str, Any]:
        if not self.template.has_check:
            return dict(self._form.schema)
        return _object(**self._form.schema["properties"], check=_TEXT)

    def _fewer_tokens(self, request: Request, error: TooLong) -> int:
        """What to shorten a prompt to that the endpoint refused."""
        sent = sum(count_tokens(message["content"]) for message in request.messages)
        found = _CONTEXT_SIZE.search(error.reply.raw or str(error))
        if found:
            most = prompt_tokens(int(found[1]), self._reply_tokens)
            # If the count says that it should have fitted, the count is too low for this text.
            return most if most < sent else most * 3 // 4
        return sent // 2

    def _row(self, asked: _Asked, reading: Reading) -> dict[str, Any]:
        prompt = asked.prompt
        is_shortened = prompt is not None and prompt.shown_share < 1.0
        return {
            **asked.columns(is_read=reading.status not in ("too_long", "failed")),
            **reading.further,
            "status": reading.status,
            "rater_score": reading.rater_score,
            "explanation": reading.explanation,
            "prompt_version": self.template.version,
            "shown_share": prompt.shown_share if prompt else None,
            "long_rule": self.long_rule if is_shortened or reading.status == "too_long" else None,
        }


class _Asked:
    """The requests of one rating, and what they cost together."""

    def __init__(self, asker: Asker) -> None:
        self.prompt: Prompt | None = None
        self._asker = asker
        self._replies: list[Reply] = []
        self._completions: list[Reply] = []

    async def ask(self, request: Request) -> Reply:
        self.prompt = request.prompt
        try:
            reply = await self._asker.ask(request.messages, **request.fields)
        except Unanswered as error:
            self._replies.append(error.reply)
            if isinstance(error, Refused):
                self._completions.append(error.reply)
            raise
        self._replies.append(reply)
        self._completions.append(reply)
        return reply

    def columns(self, *, is_read: bool) -> dict[str, Any]:
        """The ledger's columns about the requests.

        Sums are null where a part is unknown. `raw_response` is the reply that the rating was
        read from, or where there is none the last.
        """
        last = (self._completions if is_read else self._replies)[-1:]
        earlier = [r.raw for r in self._replies if r.raw is not None and r is not last[0]]
        return {
            "requests": len(self._replies),
            "raw_response": last[0].raw if last else None,
            "earlier_responses": earlier or None,
            "prompt_tokens": _sum(reply.prompt_tokens for reply in self._completions),
            "completion_tokens": _sum(reply.completion_tokens for reply in self._completions),
            "cost_usd": _sum(reply.cost_usd for reply in self._completions),
            "latency_ms": _sum(reply.latency_ms for reply in self._replies),
        }


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return sum(v for v in known if v is not None) if known and None not in known else None


def _score(found: re.Match[str] | None, where: str) -> float | Reading:
    """The score of a line that was to hold one, or what is wrong with it."""
    if found is None:
        return Reading("unparseable", None, f"{where} is not a score")
    score = float(found["number"])
    if not 0.0 <= score <= 5.0:
        return Reading("out_of_range", None, f"{where} says {found['number']}, not 0 to 5")
    return score


def _json_score(value: Any, where: str) -> float | Reading:
    """The score that a JSON value is, or what is wrong with it."""
    if type(value) not in (int, float):
        return Reading("unparseable", None, f"{where} is no number")
    if not 0.0 <= value <= 5.0:
        return Reading("out_of_range", None, f"{where} is {value}, not 0 to 5")
    return float(value)


def _stepwise(
    overall: float, first_error: int | None, scored: list[dict[str, Any]], steps: int
) -> Reading:
    """A step-wise reading, if it is about every step once and in order."""
    if [step["step_id"] for step in scored] != list(range(1, steps + 1)):
        return Reading("unparseable", None, f"it does not score the steps 1 to {steps} in order")
    if first_error is not None and not 1 <= first_error <= steps:
        return Reading("unparseable", None, f"there is no step {first_error} to be the first error")
    explanation = "\n".join(
        [
            f"First error: {first_error or 'none'}",
            *(f"Step {s['step_id']}: {s['score']:g} | {s['critique']}" for s in scored),
        ]
    )
    further = {"step_scores": scored, "first_error_step": first_error}
    return Reading("ok", overall, explanation, further)


def _without_thinking(text: str, is_cut: bool) -> str:
    """A reply without the thinking that some servers leave in front of it.

    Only where it is plain what is thinking: one block, at the beginning, and a reply that came to
    its end. A second tag, or a reply cut off before the last one, would let a tag that the
    thinking quotes from the trajectory decide where the answer begins.
    """
    if not text.startswith("<think>") or is_cut:
        return text
    if text.count("<think>") != 1 or text.count("</think>") != 1:
        return text
    return text.partition("</think>")[2].strip()


def _is_dictated(text: str, prompt: Prompt) -> bool:
    """Whether a reply with more than a score stands in the trajectory, word for word."""
    reply = _words(text)
    words = reply.split()
    # Most replies have a word that the trajectory has not, which saves taking it apart.
    shown = prompt.shown.casefold()
    if len(words) < 3 or any(word not in shown for word in heapq.nlargest(5, words, key=len)):
        return False
    return any(reply in _words("\n".join(run.values())) for run in json.loads(f"[{prompt.shown}]"))


def _words(text: str) -> str:
    """A text by its words, without line breaks (written-out ones too), signs and case."""
    words = re.findall(r"[^\W_]+", text.replace("\\n", " ").casefold())
    return f" {' '.join(words)} "


def _is_check(line: str, marker: str) -> bool:
    return re.fullmatch(rf"(?:3[.)]\s+)?[`*]*{marker}[`*.]*", line.strip()) is not None


def _json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a reply is; None where it is none, or has a key twice."""

    def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    fenced = _FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, object_pairs_hook=without_twins)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
