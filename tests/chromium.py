"""A Chromium to look at pages with, and what tests of pages measure in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Texts whose contrast with what is behind them is below 4.5, in the page that is open.
CONTRAST = """
    const seen = [];
    const channels = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = colour.map((c) => c / 255).map(
            (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some(
            (node) => node.nodeType === 3 && node.textContent.trim());
        if (!own || !element.checkVisibility() || element.closest('svg, .skip')) continue;
        let behind = element;
        let back = [0, 0, 0, 0];
        while (behind && back[3] === 0) {
            back = channels(getComputedStyle(behind).backgroundColor);
            if (back.length === 3) back.push(1);
            behind = behind.parentElement;
        }
        const pair = [light(channels(getComputedStyle(element).color)), light(back)];
        const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        if (ratio < 4.5) seen.push([element.className || element.tagName, ratio]);
    }
    return seen;
"""


def chromium(profile: Path) -> Iterator[Any]:
    """A Chromium of its own, that logs what it fetches and what goes wrong; for a fixture."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,1000",
        f"--user-data-dir={profile}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=driver)
    )
    yield opened
    opened.quit()


def prefer(browser: Any, scheme: str) -> None:
    """Have pages told that a reader prefers `light` or `dark`."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )


def fetched(browser: Any) -> set[str]:
    """All that the browser has asked for since it was asked this."""
    messages = [json.loads(each["message"])["message"] for each in browser.get_log("performance")]
    return {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and not message["params"]["documentURL"].startswith("chrome://")  # its first tab
    }
