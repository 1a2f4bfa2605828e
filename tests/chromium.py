"""A headless Chromium that tests drive as a person would: real clicks and keys, through the DevTools protocol.

It speaks over two pipes (`--remote-debugging-pipe`, JSON ended by NUL), so that nothing has to be installed but the
browser. `open_page` skips the test where there is none.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60.0  # seconds: other work may share the cores
CODES = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Backspace": 8}


class Page:
    """One tab."""

    def __init__(self, to: int, back: int, downloads: Path) -> None:
        self._to, self._back, self._buffer, self._count = to, back, b"", 0
        self._session: str | None = None
        self.downloads, self.requests, self.errors = downloads, [], []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        self._call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._read()
            if reply.get("id") == self._count:
                assert "error" not in reply, reply["error"]
                return reply["result"]
            self._note(reply)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._back], [], [], PATIENCE)[0], "Chromium says nothing"
            self._buffer += os.read(self._back, 2**20)
        one, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(one)

    def _note(self, event: dict[str, Any]) -> None:
        """Remembers what the page asked of a network, and what went wrong in it."""
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if event.get("method") in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
            self.errors.append(json.dumps(params))
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

    def goto(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self) -> None:
        self.run("window.old = true")
        self._call("Page.reload")
        self.wait("!window.old && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + PATIENCE
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)
        return found

    def _middle(self, selector: str) -> tuple[float, float]:
        """Where an element is on the screen, once it is brought there."""
        x, y, there = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'nearest'});"
            "const r = e.getBoundingClientRect(), x = r.x + r.width / 2, y = r.y + r.height / 2;"
            "return [x, y, e.contains(document.elementFromPoint(x, y))]; })()"
        )
        assert there, f"{selector} is covered, or outside the page"
        return x, y

    def click(self, selector: str) -> None:
        """A mouse's click on the middle of an element, which has to be what is there."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, selector: str) -> None:
        """A finger's."""
        x, y = self._middle(selector)
        self._call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self._call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str) -> None:
        code = CODES.get(key) or ord(key)
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        self._call("Input.insertText", text=text)

    def phone(self, width: int = 390, height: int = 844) -> None:
        """The screen of a phone, with fingers."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=True)
        self._call("Emulation.setTouchEmulationEnabled", enabled=True)

    def offline(self, off: bool = True) -> None:
        self._call(
            "Network.emulateNetworkConditions", offline=off, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))
        return path

    def downloaded(self) -> Path:
        """The one file that was downloaded, once it is whole."""
        end = time.monotonic() + PATIENCE
        while not (found := list(self.downloads.glob("*.json"))):
            assert time.monotonic() < end, "nothing was downloaded"
            time.sleep(0.05)
        return found[0]


@contextmanager
def open_page(folder: Path) -> Iterator[Page]:
    """A tab of a browser of its own, whose profile and downloads are in a folder."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("there is no Chromium here to open the page in")
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    (read, to), (back, write) = os.pipe(), os.pipe()
    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}",
    ]  # fmt: skip

    def give_pipes() -> None:  # the browser reads from 3 and writes to 4
        low, high = os.dup(read), os.dup(write)
        os.dup2(low, 3)
        os.dup2(high, 4)

    process = subprocess.Popen(
        command, preexec_fn=give_pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(read)
    os.close(write)
    try:
        yield Page(to, back, downloads)
    finally:
        process.kill()
        process.wait()
        os.close(to)
        os.close(back)
