"""What an endpoint says to one question, and what it means when that is no answer."""

from __future__ import annotations

import re
from typing import NamedTuple

import orjson

from udfs.errors import TrajlakeError
from udfs.llm.endpoint import Endpoint

# OpenAI has a code for it; vLLM, llama.cpp and others say it in words.
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context|context (?:length|window|size)|prompt is too long",
    re.IGNORECASE,
)


class Reply(NamedTuple):
    """What an endpoint said. Tokens are as it counts them, null where it does not."""

    text: str | None = None
    finish_reason: str | None = None
    refusal: str | None = None
    raw: str | None = None  # the body as it came, without the key; null where none came
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None  # null where tokens or price are unknown
    latency_ms: int | None = None  # from question to answer, with waits and retries between


class Unanswered(TrajlakeError):
    """One question has no usable answer; `reply` has what came instead."""

    def __init__(self, why: str, reply: Reply) -> None:
        super().__init__(why)
        self.reply = reply


class TooLong(Unanswered):
    """The question does not fit the model's context."""


class Refused(Unanswered):
    """The model declines, or the endpoint's content filter stopped it."""


class Unsupported(Unanswered):
    """The endpoint does not take the fields that this request has over the usual ones."""


class Failed(Unanswered):
    """No chat completion came: time-out, server error, a body that is none."""


def read_completion(
    endpoint: Endpoint, body: str, *, latency_ms: int | None, is_batch: bool = False
) -> Reply:
    """What the body of a chat completion says.

    Raises:
        Failed: it is no chat completion.
    """
    reply = Reply(raw=endpoint.without_key(body), latency_ms=latency_ms)
    try:
        completion = orjson.loads(body)
        choice = completion["choices"][0]
        message, finish_reason = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
        usage = completion.get("usage") or {}
        prompt_tokens = usage.get("prompt_tokens")
        completion_tokens = usage.get("completion_tokens")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        why = f"InvalidReply: no chat completion ({type(error).__name__}: {error})"
        raise Failed(why, reply) from None
    if isinstance(prompt_tokens, int) and isinstance(completion_tokens, int):
        cost_usd = None
        if endpoint.price is not None:
            cost_usd = endpoint.price.cost_usd(prompt_tokens, completion_tokens, is_batch=is_batch)
        reply = reply._replace(
            prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost_usd=cost_usd
        )
    if not isinstance(text, str | None):
        raise Failed("InvalidReply: its content is no text", reply)
    return reply._replace(
        text=text,
        finish_reason=finish_reason,
        refusal=endpoint.without_key(str(refusal)) if refusal else None,
    )


def declined(
    endpoint: Endpoint, status_code: int, body: str, why: str, has_fields: bool = False
) -> Unanswered:
    """What an error reply means for its question. It is not charged for."""
    reply = Reply(raw=endpoint.without_key(body), cost_usd=0.0)
    if status_code in (400, 413, 422):
        if _TOO_LONG.search(body):
            return TooLong(endpoint.without_key(why), reply)
        if has_fields:
            return Unsupported(endpoint.without_key(why), reply)
    return Failed(endpoint.without_key(why), reply)
