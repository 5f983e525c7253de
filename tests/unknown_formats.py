"""Records of formats that nobody wrote a parser for, and mappings that read them."""

from __future__ import annotations

from typing import Any


def courier(number: int, **more: Any) -> dict[str, Any]:
    """A run as a list of events; some have calls, some only a note."""
    return {
        "run": f"run-{number}",
        "goal": f"Bring parcel {number} to the harbour office before noon.",
        "rules": "You plan the rounds of a courier. Use the map before you drive.",
        "log": [
            {
                "seq": 1,
                "actor": "planner",
                "why": f"Parcel {number} may be in depot {number % 3}.",
                "body": "I look it up.",
                "tool": {"name": "locate", "args": {"parcel": number}},
            },
            {"seq": 2, "actor": "ping", "body": ""},
            {
                "seq": 3,
                "actor": "result",
                "tool": "locate",
                "body": f"Parcel {number} is in depot {number % 3}, shelf {number}.",
            },
            {
                "seq": 4,
                "actor": "planner",
                "body": f"Drive to depot {number % 3} and on to 14 Quay.",
            },
            {"seq": 5, "actor": "customer", "body": "Can you be here at eleven?"},
            {"seq": 6, "actor": "planner", "body": "Yes, by a quarter to eleven."},
        ],
        "verdict": {"stars": number % 5},
        **more,
    }


COURIER: dict[str, Any] = {
    "read": [
        {"as": "system", "text": "$.rules"},
        {"as": "user", "text": "$.goal"},
        {
            "list": "$.log",
            "kind": "$.actor",
            "read": {
                "planner": [
                    {
                        "as": "agent",
                        "text": "$.body",
                        "thought": "$.why?",
                        "calls": {"at": "$.tool?", "name": "$.name", "arguments": "$.args"},
                    }
                ],
                "result": [{"as": "environment", "text": "$.body", "name": "$.tool"}],
                "customer": [{"as": "user", "text": "$.body"}],
                "ping": [],
            },
        },
    ],
    "fields": {"task_id": "$.run", "score": "$.verdict.stars"},
}


def switchboard(number: int) -> dict[str, Any]:
    """A run as one text, whose lines say who speaks."""
    return {
        "call": number,
        "agent_build": "switch-7b",
        "tape": (
            f"CALLER> My line {number} has been dead since Monday.\n"
            "It crackles as well.\n"
            "DESK> I test the line.\n"
            f"PROBE> line {number}: no dial tone\n"
            f"DESK> Line {number} is broken at the box. A fitter comes tomorrow.\n"
        ),
    }


SWITCHBOARD: dict[str, Any] = {
    "read": [
        {
            "list": "$.tape",
            "labels": ["CALLER>", "DESK>", "PROBE>"],
            "kind": "$.label",
            "read": {
                "CALLER>": [{"as": "user", "text": "$.text"}],
                "DESK>": [{"as": "agent", "text": "$.text"}],
                "PROBE>": [{"as": "environment", "text": "$.text"}],
            },
        }
    ],
    "fields": {"task_id": "$.call", "model_name": "$.agent_build"},
}


def greenhouse(number: int) -> dict[str, Any]:
    """A run as parallel lists."""
    return {
        "house": {"id": number},
        "wish": f"Keep bed {number} between 18 and 22 degrees.",
        "readings": [f"bed {number}: 25 degrees, vents shut", f"bed {number}: 21 degrees"],
        "moves": ["open_vents(left)", "wait(ten minutes)"],
        "musings": ["Too warm, so air first.", "Good now."],
    }


GREENHOUSE: dict[str, Any] = {
    "read": [
        {"as": "user", "text": "$.wish"},
        {
            "list": ["$.readings", "$.musings", "$.moves"],
            "read": [
                {"as": "environment", "text": "$[0]"},
                {"as": "agent", "thought": "$[1]", "text": "$[2]"},
            ],
        },
    ],
    "fields": {"task_id": "$.house.id"},
}


def barometer(number: int) -> dict[str, Any]:
    """Nobody speaks here."""
    return {"station": f"station {number}", "hpa": [1013.2, 1009.8, 1002.1], "ok": True}
