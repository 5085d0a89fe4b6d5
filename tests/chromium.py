"""A page opened in Debian's chromium, driven over two pipes: the devtools protocol, JSON between zero bytes.

Without the program (`apt-get install chromium`) tests that need it are skipped, and say so. axe-core is a file that the
network has and this repository does not. To look with it as well:

    npm pack axe-core && tar xf axe-core-*.tgz
    PARALAB_AXE=package/axe.min.js python -m pytest tests/unit/test_site.py tests/unit/benchmarks/report/test_browser.py
"""

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="needs chromium: apt-get install chromium")
AXE = os.environ.get("PARALAB_AXE")
needs_axe = pytest.mark.skipif(AXE is None, reason="needs axe-core: the head of tests/chromium.py says how")
MOST_S = 60.0  # for one answer, on a busy machine


class Tab:
    """One page. complaints: what the console said is wrong, and errors of scripts."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._rest = to_browser, from_browser, b""
        self._number, self._session, self._seen = 0, None, list[dict[str, Any]]()
        (page,) = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        found = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Return the answer of the browser. Raises: AssertionError where it says that something is wrong."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": params}
        asked |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(asked).encode() + b"\0")
        while (message := self._next()).get("id") != self._number:
            self._seen.append(message)
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._from, 1 << 20)
            assert read, "chromium ended"
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def open(self, path: Path, *, width_px: int = 1280, dark: bool = False, script: bool = True) -> None:
        """Load a file and wait until it is there."""
        size = {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        look = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=look)
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self._seen.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + MOST_S
        while not any(message.get("method") == "Page.loadEventFired" for message in self._seen):
            assert time.monotonic() < until, f"{path} was not loaded"
            self._seen.append(self._next())

    def run(self, script: str) -> Any:
        """Return what an expression gives, or what its promise becomes. The policy of the page does not hold for it."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def violations(self) -> list[str]:
        """Return what axe-core finds wrong with the page, as it is shown now."""
        self.call("Page.setBypassCSP", enabled=True)  # of axe, not of the page
        self.run(Path(str(AXE)).read_text(encoding="utf-8") + ";0")
        told = "one.id + ': ' + one.nodes.map((node) => node.html).join(' ')"
        found = self.run(f"axe.run().then((found) => found.violations.map((one) => {told}))")
        self.call("Page.setBypassCSP", enabled=False)
        return [re.sub(r"\s+", " ", line)[:300] for line in found]

    @property
    def complaints(self) -> list[str]:
        """Return errors and warnings of the console, and exceptions."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(message["params"]) for message in self._seen if message.get("method") in kinds]

    @property
    def requests(self) -> list[str]:
        """Return the addresses that were asked for."""
        sent = [m["params"] for m in self._seen if m.get("method") == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def picture(self, path: Path) -> None:
        """Write what a reader sees of the whole page, as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """Start chromium without a window and with a profile of its own, and end it."""
    assert PROGRAM is not None
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()

    def pipes() -> None:  # what --remote-debugging-pipe reads from and writes to
        for ours, theirs in ((from_us, 13), (to_us, 14)):
            os.dup2(ours, theirs)
        os.dup2(13, 3)
        os.dup2(14, 4)

    words = [PROGRAM, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-gpu",
             "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-dev-shm-usage",
             "--hide-scrollbars"]  # fmt: skip
    words += ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses to run as root with one
    process = subprocess.Popen([*words, "about:blank"], preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    for end in (from_us, to_us):
        os.close(end)
    try:
        yield Tab(to_browser, from_browser)
    finally:
        for end in (to_browser, from_browser):
            os.close(end)  # which ends it
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
