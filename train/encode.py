"""From a sample to tokens that may carry loss, or to the reason why not.

Nothing is cut within a message, and nothing is trained on whose mask is in doubt: a sample is
tokenised whole, or in parts at borders of messages, or refused.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from train.data import SIDES, Pair, Sample

Messages = Sequence[dict[str, Any]]
Span = tuple[int, int]

# A template writes turns with markers of this look; not every tokenizer has them as tokens.
_MARKER = re.compile(r"<\|\w+\|>")
_GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")


@dataclass(frozen=True)
class Tokens:
    """A sample, or a part of one: `input_ids` [T], and `loss_mask` [T], true where loss may be.

    The mask belongs to the token that is predicted, not to the one it is predicted from. The
    first token is predicted from nothing, so it carries none.
    """

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    part: int = 0  # from 1; 0: the whole sample


@dataclass(frozen=True)
class Refused:
    """Why a sample is not trained on: a short stable `reason`, and a `detail` for a reader.

    Of a pair, whose other side is not trained on either, the `trajectory_id` is of the side that
    was refused. Reasons are too_long, nothing_to_learn, unclear_mask, lost_call, control_token,
    template; and of a pair same_tokens.
    """

    trajectory_id: str
    reason: str
    detail: str
    pair_id: str | None = None


class _Refusal(Exception):
    """Ends the encoding of a sample."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def marks_outputs(template: str) -> bool:
    """Whether a chat template says by `{% generation %}` what the agent wrote."""
    return _GENERATION.search(template) is not None


class Encoder:
    """Turns samples into tokens with loss masks.

    The conversation is written by the tokenizer's chat template and tokenised as one text, as it
    will be when the model is served. What the agent wrote, end of turn included and header
    excluded, is marked by the template (`{% generation %}`). Where a template has no marks, it is
    what an output adds to the text that ends in the header of the agent's turn. A token carries
    loss when it lies wholly within such a span of a message whose loss flag is set. A token across
    a border would mean that the mask does not fit the text, so such a sample is refused.

    Args:
        tokenizer: a fast one, with its chat template.
        max_length: in tokens.
        too_long: what to do with a sample of more: `refuse` it, or `split` it. A part is the
            messages before the first output, then a run of messages that begins and ends with an
            output. The first output of a later part is the last of the part before: it carries
            no loss again, and is there so that no output is learned without what it answers.
            Observations after the last output that is learned are in no part.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        too_long: Literal["refuse", "split"] = "refuse",
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.too_long = too_long
        template = cast(str, tokenizer.chat_template)
        self._template_marks = marks_outputs(template)
        special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        self._control = (*special, *_MARKER.findall(template))
        self._control_token = re.compile("|".join(map(re.escape, self._control)) or r"(?!)")

    def __call__(self, unit: Sample | Pair) -> list[Tokens] | Refused:
        """Tokenise one sample, as one or in parts, or both sides of a pair; or say why not."""
        if isinstance(unit, Pair):
            return self._pair(unit)
        try:
            return self._encode(unit)
        except _Refusal as refusal:
            return Refused(unit.trajectory_id, refusal.reason, refusal.detail)

    def _pair(self, pair: Pair) -> list[Tokens] | Refused:
        sides: list[Tokens] = []
        for name, sample in zip(SIDES, (pair.chosen, pair.rejected), strict=True):
            found = self(sample)
            if isinstance(found, Refused):
                return replace(found, detail=f"{name}: {found.detail}", pair_id=pair.pair_id)
            sides += found
        chosen, rejected = sides
        if np.array_equal(chosen.input_ids, rejected.input_ids):
            return Refused(
                pair.chosen.trajectory_id,
                "same_tokens",
                "both sides are the same to the model, so neither can be preferred",
                pair.pair_id,
            )
        return sides

    def _encode(self, sample: Sample) -> list[Tokens]:
        found = self._control_token.search(
            json.dumps([sample.messages, sample.tools], ensure_ascii=False)
        )
        if found:
            raise _Refusal(
                "control_token",
                f"{found.group()!r} stands in the text and would end a turn or open one",
            )
        if not any(sample.loss_flags) or not np.float32(sample.weight):
            raise _Refusal("nothing_to_learn", "no loss flag is set, or the weight is 0")
        whole = self._tokens(sample.messages, sample.tools, sample.loss_flags)
        if len(whole.input_ids) <= self.max_length:
            parts = [whole]
        elif self.too_long == "split":
            parts = self._split(sample)
        else:
            raise _Refusal(
                "too_long", f"{len(whole.input_ids)} tokens; max_length is {self.max_length}"
            )
        if not parts or not parts[0].loss_mask.any():
            raise _Refusal("nothing_to_learn", "the flagged outputs have no token")
        return parts

    def _split(self, sample: Sample) -> list[Tokens]:
        """The parts of a sample: as few as there can be, each as long as fits."""
        messages, flags = sample.messages, sample.loss_flags
        outputs = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        head = outputs[0]

        def part(first: int, last: int) -> Tokens:
            """Outputs `first` to `last` (by number), and the one that they follow."""
            run = range(outputs[max(first - 1, 0)], outputs[last] + 1)
            return self._tokens(
                [*messages[:head], *(messages[i] for i in run)],
                sample.tools,
                [False] * head + [flags[i] and i >= outputs[first] for i in run],
            )

        parts: list[Tokens] = []
        first = 0
        while first < len(outputs):
            fitting = bisect_right(
                range(first, len(outputs)),
                self.max_length,
                key=lambda last: len(part(first, last).input_ids),
            )
            after = first + max(fitting, 1)
            if any(flags[i] for i in outputs[first:after]):
                made = part(first, after - 1)
                if not fitting:
                    follows = " and the output that it follows" if first else ""
                    raise _Refusal(
                        "too_long",
                        f"message {outputs[first]} with the {head} before the first output"
                        f"{follows} makes {len(made.input_ids)} tokens; max_length is "
                        f"{self.max_length}",
                    )
                parts.append(Tokens(made.input_ids, made.loss_mask, part=len(parts) + 1))
            first = after
        return parts

    def _tokens(self, messages: Messages, tools: Any, flags: Sequence[bool]) -> Tokens:
        """Tokenise a conversation, of any length."""
        try:
            text, spans = self._render(messages, tools)
        except (TemplateError, TypeError, ValueError) as error:
            raise _Refusal("template", f"the chat template does not take it: {error}") from None
        outputs = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(spans) != len(outputs):
            raise _Refusal(
                "unclear_mask",
                f"the template marks {len(spans)} spans for {len(outputs)} agent messages",
            )
        for i, (start, end) in zip(outputs, spans, strict=True):
            _check_written(text[start:end], messages[i], i)
        tokenized = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        input_ids = np.array(tokenized["input_ids"], dtype=np.int32)
        starts, ends = np.array(tokenized["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
        loss_mask = np.zeros(len(input_ids), dtype=np.bool_)
        for i, (start, end) in zip(outputs, spans, strict=True):
            if flags[i]:
                touching = (starts < end) & (ends > start)
                if (
                    starts[touching].min(initial=start) < start
                    or ends[touching].max(initial=end) > end
                ):
                    raise _Refusal(
                        "unclear_mask",
                        f"a token crosses the border of the agent's text at {start}:{end}",
                    )
                loss_mask |= touching
        loss_mask[:1] = False
        return Tokens(input_ids, loss_mask)

    def _render(self, messages: Messages, tools: Any) -> tuple[str, list[Span]]:
        """The conversation as text, and the character span of each of the agent's messages."""
        if self._template_marks:
            texts, spans = self._template(messages, tools, return_assistant_tokens_mask=True)
            return texts[0], spans[0]
        [text], _ = self._template(messages, tools)
        return text, list(self._spans_by_prefixes(text, messages, tools))

    def _spans_by_prefixes(self, text: str, messages: Messages, tools: Any) -> Iterator[Span]:
        """What each output adds to the conversation before it, for a template without marks."""
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                [before], _ = self._template(messages[:i], tools, add_generation_prompt=True)
                [through], _ = self._template(messages[: i + 1], tools)
                if not through.startswith(before):
                    raise _Refusal(
                        "unclear_mask",
                        f"message {i}: the text up to it, with the header of the agent's turn, is "
                        "no beginning of the text with it",
                    )
                if not text.startswith(through):
                    raise _Refusal(
                        "unclear_mask",
                        f"message {i}: the template writes it otherwise once more messages follow",
                    )
                # A server stops at the end of turn; a line break after it is the template's.
                added = through[len(before) :].rstrip()
                ends_turn = added.endswith(self._control) if self._control else False
                yield len(before), len(before) + len(added) if ends_turn else len(through)

    def _template(self, messages: Messages, tools: Any, **options: Any) -> tuple[list[str], Any]:
        rendered: Any = render_jinja_template(
            conversations=[list(messages)],
            tools=tools,
            chat_template=cast(str, self.tokenizer.chat_template),
            **options,
            **cast(dict[str, Any], self.tokenizer.special_tokens_map),
        )
        return cast(tuple[list[str], Any], rendered)


def _check_written(written: str, message: dict[str, Any], number: int) -> None:
    """The span of an output holds its content and its calls, names and arguments."""
    if (message.get("content") or "").strip() not in written:
        raise _Refusal(
            "unclear_mask", f"message {number}: its content does not stand in what the agent wrote"
        )
    for call in message.get("tool_calls") or []:
        function = call["function"]
        if function["name"] not in written:
            raise _Refusal(
                "lost_call", f"message {number}: the template does not write its call of a function"
            )
        arguments = function["arguments"]
        named = arguments if isinstance(arguments, dict) else {"(text)": arguments}
        for name, value in named.items():
            if not _holds(written, value):
                raise _Refusal(
                    "lost_call",
                    f"message {number}: the template does not write the argument {name!r} of "
                    f"its call of {function['name']!r}",
                )


def _holds(written: str, value: Any) -> bool:
    """Whether a text has a value in it: as it is, or as JSON, however that is spaced."""
    if not isinstance(value, dict | list) and str(value) in written:
        return True
    forms = (
        json.dumps(value, ensure_ascii=ensure_ascii, sort_keys=sort_keys)
        for ensure_ascii in (False, True)
        for sort_keys in (False, True)
    )
    return any(_without_spaces(form) in _without_spaces(written) for form in forms)


def _without_spaces(text: str) -> str:
    return "".join(text.split())
