"""An endpoint: which model is asked, with what, how fast, and what it may cost."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from udfs.errors import ConfigError
from udfs.llm.progress import usd

# A rule of thumb for English; used for estimates, and labelled so.
CHARACTERS_PER_TOKEN = 4

# What a chat template puts around a message, generously.
_CHAT_FRAME_TOKENS = 64

# `udfs.llm` sets these itself; another value would break the reading of a reply.
_OWN_FIELDS = frozenset({"model", "messages", "stream", "n"})

TRANSPORTS = ("online", "batch")

# A shorter key is a dummy for an endpoint that asks for none, no secret.
_SHORTEST_SECRET = 12


@dataclass(frozen=True)
class Price:
    """USD per million tokens; `batch_discount` is the part that the Batch API takes off."""

    input: float
    output: float
    batch_discount: float = 0.0

    def cost_usd(
        self, prompt_tokens: int, completion_tokens: int, *, is_batch: bool = False
    ) -> float:
        """What a request with so many tokens costs."""
        cost = (prompt_tokens * self.input + completion_tokens * self.output) / 1e6
        return cost * (1 - self.batch_discount) if is_batch else cost


@dataclass(frozen=True)
class Estimate:
    """What questions will take, before any is asked; null where the price is not known.

    `least_usd` counts prompts alone, `most_usd` the longest replies as well, each question asked
    once. `minutes` is the least time at the rate that the settings allow.
    """

    questions: int
    prompt_tokens: int
    least_usd: float | None
    most_usd: float | None
    minutes: float


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible endpoint, and the limits that hold for asking it.

    Args:
        model: its name at the endpoint.
        parameters: further fields of every request (`temperature`, `max_tokens`, `seed` …).
        prices: USD per million tokens by model, as `{model: {input: …, output: …}}`, with
            `batch_discount: 0.5` where the Batch API costs half.
        concurrency: requests at a time.
        requests_per_minute: at most so many, retries included, evenly spaced.
        tokens_per_minute: at most so many, prompts and replies together.
        max_usd: the most that one run may cost.
        timeout_s: how long an endpoint may be silent before a request is repeated.
        max_retries: how often the client repeats a request that failed in passing.
        prefix: what the dbt vars of these settings begin with; errors name them. Empty: the
            settings are options of a command.
        count_variable: the dbt var that limits how much is asked about; errors name it too.
        base_url: where it is; `OPENAI_BASE_URL`, or OpenAI itself, where it is not given.
        key_variable: the environment variable that holds the key.
        transport: `online`, or `batch` for the Batch API (where the caller can do that).

    Raises:
        ConfigError: a setting that cannot be used.
    """

    model: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    prices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    concurrency: int = 16
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_usd: float | None = None
    timeout_s: float = 120.0
    max_retries: int = 5
    prefix: str = "rater"
    count_variable: str = "rater_max_trajectories"
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    transport: str = "online"

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError(
                f"The model to ask is not named. Set {self.setting('model')} to its name at the "
                "endpoint."
            )
        if own := sorted(_OWN_FIELDS & set(self.parameters)):
            raise ConfigError(
                f"Trajlake sets {', '.join(own)} of a request itself. Remove it from "
                f"{self.setting('parameters')}."
            )
        for name in ("concurrency", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{self.prefix}_{name} is {value}. Set 1 or more.")
        if self.transport not in TRANSPORTS:
            raise ConfigError(
                f"{self.prefix}_transport is '{self.transport}'. Set {' or '.join(TRANSPORTS)}."
            )
        if self.max_usd is not None and self.price is None:
            raise ConfigError(
                f"{self.prefix}_max_usd is set, and no price is known for model '{self.model}', so "
                f"the cost cannot be kept below it. Add the model to the var {self.prefix}_prices, "
                f"or use {self.count_variable} instead."
            )
        if self.max_usd is not None and self.max_reply_tokens is None:
            raise ConfigError(
                f"{self.prefix}_max_usd is set, and {self.prefix}_parameters gives no max_tokens "
                "or max_completion_tokens, so a reply could cost anything. Set one of them."
            )

    def setting(self, name: str) -> str:
        """What a reader knows a setting by."""
        return f"the var {self.prefix}_{name}" if self.prefix else f"--{name}"

    @property
    def key(self) -> str:
        """The key. Never in a log, a row or a message.

        Raises:
            ConfigError: there is none. Only asking needs one, so only asking misses it.
        """
        key = os.environ.get(self.key_variable)
        if not key:
            raise ConfigError(
                f"Model '{self.model}' needs a key. Set {self.key_variable}; where the endpoint "
                "asks for none, any text will do."
            )
        return key

    @property
    def address(self) -> str | None:
        """Where to ask; None is OpenAI itself.

        Raises:
            ConfigError: it is no URL. The client would report a server that is down, a minute
                later.
        """
        given = os.environ.get("OPENAI_BASE_URL") if self.base_url is None else self.base_url
        if given is not None and not given.startswith(("http://", "https://")):
            raise ConfigError(
                f"OPENAI_BASE_URL is '{given}'. Set it to a URL such as http://localhost:8000/v1, "
                "or unset it for OpenAI itself."
            )
        return given

    def without_key(self, text: str) -> str:
        """A text without the key: some endpoints print it back."""
        return text.replace(self.key, "***") if len(self.key) >= _SHORTEST_SECRET else text

    @cached_property
    def price(self) -> Price | None:
        """What a token costs, where that is known."""
        if self.model not in self.prices:
            return None
        given = self.prices[self.model]
        try:
            price = Price(**{name: float(value) for name, value in given.items()})
        except (AttributeError, TypeError, ValueError):
            price = Price(-1.0, -1.0)
        if price.input < 0 or price.output < 0 or not 0 <= price.batch_discount < 1:
            raise ConfigError(
                f"{self.prefix}_prices['{self.model}'] is {given!r}. Give USD per million tokens "
                "as {input: …, output: …}, with batch_discount: 0.5 where the Batch API costs half."
            )
        return price

    @property
    def max_reply_tokens(self) -> int | None:
        """The longest reply that the parameters allow."""
        given = self.parameters
        tokens = given.get("max_completion_tokens", given.get("max_tokens"))
        return None if tokens is None else int(tokens)

    def most_usd(self, body: bytes, *, is_batch: bool = False) -> float:
        """The most that a request can cost: a token has at least one byte."""
        if self.price is None:
            return 0.0
        prompt_tokens = len(body) + _CHAT_FRAME_TOKENS
        return self.price.cost_usd(prompt_tokens, self.max_reply_tokens or 0, is_batch=is_batch)

    def estimate(self, count: int, characters: int) -> Estimate:
        """What so many questions will take, their prompts so many characters together."""
        tokens = characters // CHARACTERS_PER_TOKEN
        least = most = None
        if self.price is not None:
            is_batch = self.transport == "batch"
            least = self.price.cost_usd(tokens, 0, is_batch=is_batch)
            if self.max_reply_tokens is not None:
                reply_tokens = count * self.max_reply_tokens
                most = self.price.cost_usd(tokens, reply_tokens, is_batch=is_batch)
        minutes = max(
            count / (self.requests_per_minute or float("inf")),
            tokens / (self.tokens_per_minute or float("inf")),
        )
        return Estimate(count, tokens, least, most, minutes)

    def announcement(self, name: str, count: int, what: str, characters: int) -> Iterator[str]:
        """What is going to be asked and what that costs, as lines to print before it is.

        Args:
            name: whose work it is, as in "rater openai".
            count: how many questions.
            what: what they are about, as in "trajectories".
            characters: the length of all prompts together.
        """
        estimate = self.estimate(count, characters)
        is_batch = self.transport == "batch"
        way = "by the Batch API" if is_batch else f"{self.concurrency} at a time"
        line = (
            f"{name}: {count:,} {what} for {self.model}, {way}. Estimate: "
            f"{estimate.prompt_tokens:,} prompt tokens (characters / {CHARACTERS_PER_TOKEN})"
        )
        if estimate.least_usd is not None:
            line += f", {usd(estimate.least_usd)} without replies"
            if estimate.most_usd is not None:
                line += f", {usd(estimate.most_usd)} with the longest, if each is asked once"
            if self.max_usd is not None:
                line += f"; it stops before {usd(self.max_usd)}"
        if estimate.minutes >= 1 and not is_batch:
            line += f"; {estimate.minutes:,.0f} minutes or more at the rate allowed"
        yield f"{line}."
        if self.price is None:
            yield f"{name}: {self.prefix}_prices has no '{self.model}': cost_usd stays null."
