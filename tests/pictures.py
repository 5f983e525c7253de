"""The pictures of docs/ui.md, from the lake that is there: the list in light, a run in dark.

dbt build && python tests/pictures.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from chromium import chromium, prefer

DOCS = Path(__file__).resolve().parents[1] / "docs"
TRAJLAKE = Path(sys.executable).with_name("trajlake")

# A run that is trained on, but for the steps that a rule masks.
RUN = "is_kept and flagged_step_count > 0"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("w") as output:
            server = subprocess.Popen(
                [str(TRAJLAKE), "ui", "--port", "0", "--as", "reviewer"], stdout=output
            )
        try:
            while not (found := re.search(r"http://\S+", log.read_text())):
                assert server.poll() is None
                time.sleep(0.1)
            _take(found.group().rstrip("/"), Path(folder, "profile"))
        finally:
            server.terminate()
            server.wait(20)


def _take(root: str, profile: Path) -> None:
    taking = chromium(profile)
    browser = next(taking)
    browser.set_window_size(1280, 900)
    prefer(browser, "light")
    browser.get(f"{root}/?where={quote('score is not null')}&sort=rater&order=up")
    browser.save_screenshot(str(DOCS / "ui-list.png"))
    prefer(browser, "dark")
    browser.get(f"{root}/?where={quote(RUN)}&sort=steps")
    browser.find_element("css selector", "a.item").click()
    browser.execute_script("document.getElementById('steps').scrollIntoView()")
    browser.save_screenshot(str(DOCS / "ui-run.png"))
    next(taking, None)


if __name__ == "__main__":
    main()
