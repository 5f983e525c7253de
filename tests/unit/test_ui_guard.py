"""Who is let into the browser's server, and what every answer says of itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestration.ui.guard import COOKIE, Access, Guard, is_loopback

TOKEN = "a-token-of-some-length"

LOCAL = Access("127.0.0.1", 8177)
OPEN = Access("0.0.0.0", 8177, TOKEN)


async def _app(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/html")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"a page"})


def ask(
    access: Access, path: str = "/", method: str = "GET", query: str = "", **headers: str
) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer; `sec_fetch_site` is the header Sec-Fetch-Site."""
    given = {"host": "127.0.0.1:8177"} | {k.replace("_", "-"): v for k, v in headers.items()}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
    }
    asyncio.run(Guard(_app, access)(scope, receive, send))
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}


def test_every_answer_has_the_headers_that_make_it_harmless() -> None:
    for status, headers in (ask(LOCAL), ask(LOCAL, host="evil.example"), ask(OPEN)):
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert "img-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert status in (200, 403, 401)


@pytest.mark.parametrize(
    ("access", "host", "status"),
    [
        (LOCAL, "127.0.0.1:8177", 200),
        (LOCAL, "localhost:8177", 200),
        (LOCAL, "LOCALHOST:8177", 200),
        (LOCAL, "[::1]:8177", 200),
        (LOCAL, "localhost", 403),
        (LOCAL, "localhost:80", 403),
        (LOCAL, "rebound.example:8177", 403),
        (LOCAL, "127.0.0.1.evil.example:8177", 403),
        (LOCAL, "10.0.0.7:8177", 403),
        (LOCAL, "", 403),
        (OPEN, "10.0.0.7:8177", 401),  # known, and not signed in
        (OPEN, "rebound.example:8177", 403),
        (Access("::1", 8177), "[::1]:8177", 200),
    ],
)
def test_only_names_of_this_server_are_answered(access: Access, host: str, status: int) -> None:
    assert ask(access, host=host)[0] == status


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {"origin": "http://127.0.0.1:8177", "sec_fetch_site": "same-origin"}, 200),
        ("POST", {"origin": "null", "sec_fetch_site": "same-origin"}, 200),
        ("POST", {"origin": "http://127.0.0.1:8177"}, 200),
        ("POST", {}, 403),
        ("POST", {"origin": "null"}, 403),
        ("POST", {"origin": "http://evil.example", "sec_fetch_site": "cross-site"}, 403),
        ("POST", {"origin": "http://127.0.0.1:9999", "sec_fetch_site": "same-site"}, 403),
        ("POST", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 403),
        ("GET", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 200),
        ("GET", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, 403),
        ("GET", {"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"}, 403),
        ("GET", {"sec_fetch_site": "none", "sec_fetch_mode": "navigate"}, 200),
    ],
)
def test_pages_of_others_can_link_here_and_nothing_else(
    method: str, headers: dict[str, str], status: int
) -> None:
    assert ask(LOCAL, method=method, **headers)[0] == status


def test_the_token_opens_the_door_and_a_cookie_keeps_it_open() -> None:
    assert ask(OPEN)[0] == 401
    assert ask(OPEN, cookie=f"{COOKIE}=wrong")[0] == 401
    assert ask(OPEN, "/sign-in", query="token=wrong")[0] == 401
    assert ask(OPEN, "/sign-in", query="token=")[0] == 401
    status, headers = ask(OPEN, "/sign-in", query=f"token={TOKEN}")
    assert (status, headers["location"]) == (303, "/")  # the token does not stay in the address
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert ask(OPEN, cookie=cookie.partition(";")[0])[0] == 200


def test_secrets_are_not_in_what_is_printed_of_an_access() -> None:
    assert TOKEN not in repr(OPEN)
    assert OPEN.form_token not in repr(OPEN)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("10.0.0.1", False), ("example.org", False)],
)  # fmt: skip
def test_what_is_reached_from_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
