"""The openai client as it is used here: one request, and what its errors mean.

Retries, Retry-After and time-outs are the client's own. Bodies go out and come back as bytes:
building and checking models of them would take longer than all the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType

import httpx2
import openai

from udfs.errors import EndpointError
from udfs.llm.endpoint import Endpoint
from udfs.llm.reply import Failed, Reply, declined

# What holds for every question, and what to do about it.
_STOPS: dict[int | str, str] = {
    401: "The endpoint refuses the key. Set {key} to one that it accepts.",
    402: "The account has no credit left. Add some, or set {key} to another account's.",
    403: "The key may not use this model. Ask for access, or set {model} to another.",
    404: "There is no such model or address. Check OPENAI_BASE_URL and {model}.",
    "insufficient_quota": "The account's quota is used up. Raise it, or use another account.",
    "model_not_found": "There is no such model. Check {model}.",
    "unsupported_parameter": "The model does not take a field. Change {parameters}.",
    "unsupported_value": "The model does not take a value. Change {parameters}.",
}

_UNCONNECTED = (httpx2.ConnectError, httpx2.ConnectTimeout)

_NO_MONEY = b'"insufficient_quota"'


class Client:
    """A connection to an endpoint; `async with Client(endpoint) as client`.

    Args:
        endpoint: where, with which key, how many at a time.
        before_retry: is awaited with the body of every request that the client repeats.
    """

    def __init__(
        self, endpoint: Endpoint, before_retry: Callable[[bytes], Awaitable[None]]
    ) -> None:
        async def before_request(request: httpx2.Request) -> None:
            if request.headers.get("x-stainless-retry-count", "0") != "0":
                await before_retry(request.content)

        async def after_response(response: httpx2.Response) -> None:
            # "No money left" has the status of "too fast", and waiting does not help against it.
            if response.status_code == 429 and _NO_MONEY in await response.aread():
                response.headers["x-should-retry"] = "false"

        self._endpoint = endpoint
        self._openai = openai.AsyncOpenAI(
            api_key=endpoint.key,
            base_url=endpoint.address,
            timeout=endpoint.timeout_s,
            max_retries=endpoint.max_retries,
            http_client=openai.DefaultAioHttpClient(
                limits=httpx2.Limits(
                    max_connections=endpoint.concurrency,
                    max_keepalive_connections=endpoint.concurrency,
                ),
                event_hooks={"request": [before_request], "response": [after_response]},
            ),
        )

    async def __aenter__(self) -> Client:
        await self._openai.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._openai.__aexit__(kind, error, traceback)

    async def complete(self, body: bytes, *, has_fields: bool = False) -> str:
        """Send a chat completion request, and give the body of the reply.

        Args:
            body: the request.
            has_fields: whether it has fields that other requests have not.

        Raises:
            EndpointError: an error that would come back for every question.
            TooLong: the question does not fit the model's context.
            Unsupported: the endpoint does not take a request with such fields.
            Failed: no reply came, or another error.
        """
        try:
            response = await self._openai.post(
                "/chat/completions",
                cast_to=httpx2.Response,
                content=body,
                options={"headers": {"Content-Type": "application/json"}},
            )
        except openai.APIStatusError as error:
            # The client's own error may print the key.
            raise self._meaning(error, has_fields) from None
        except openai.OpenAIError as error:
            cause = f" ({type(error.__cause__).__name__})" if error.__cause__ else ""
            # What never reached the endpoint was not charged for; what it took in may have been.
            cost_usd = 0.0 if isinstance(error.__cause__, _UNCONNECTED) else None
            why = f"{type(error).__name__}: {error}{cause}"
            raise Failed(why, Reply(cost_usd=cost_usd)) from None
        return response.text

    def _meaning(self, error: openai.APIStatusError, has_fields: bool) -> Exception:
        why = f"{type(error).__name__}: {error}"
        found = declined(self._endpoint, error.status_code, error.response.text, why, has_fields)
        return (isinstance(found, Failed) and general_error(self._endpoint, error)) or found


def general_error(endpoint: Endpoint, error: openai.APIStatusError) -> EndpointError | None:
    """An error that would come back for every question, None where it is about one."""
    remedy = _STOPS.get(error.code or "") or _STOPS.get(error.status_code)
    if remedy is None:
        return None
    remedy = remedy.format(
        key=endpoint.key_variable,
        model=endpoint.setting("model"),
        parameters=endpoint.setting("parameters"),
    )
    return EndpointError(
        f"The model '{endpoint.model}' at {error.request.url.host} does not answer "
        f"({error.status_code}). {remedy} Nothing more is asked, and what was answered is kept. "
        f"The endpoint says: {endpoint.without_key(error.message)}"
    )
