"""Chromium without a window, driven through its DevTools protocol over a pair of pipes: JSON, with a NUL after each message.

Pipes (`--remote-debugging-pipe`) and not the port, which speaks WebSocket and would want a library.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium")
# Above the numbers that the browser wants for its ends, so that neither is overwritten by the other.
_HIGH_DESCRIPTOR = 10


class Tab:
    """One page in the browser.

    Attributes:
        complaints: what the page's console got as errors, and the exceptions that nobody caught.
    """

    def __init__(self, commands: int, answers: int, limit_seconds: float) -> None:
        """Use `open_tab`."""
        self._commands = commands
        self._answers = answers
        self._limit_seconds = limit_seconds
        self._pending = b""
        self._number = 0
        self._session = ""
        self.complaints: list[str] = []

    def open(self, url: str) -> None:
        """Opens an empty page, and leads it to the address."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "result" in answer, f"{method}: {answer}"
                return dict(answer["result"])
            self._note(answer)

    def evaluate(self, expression: str) -> Any:
        """What JavaScript gives in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """What JavaScript gives, once that is true."""
        deadline = time.monotonic() + self._limit_seconds
        while not (value := self.evaluate(expression)):
            if time.monotonic() > deadline:
                text = self.evaluate("document.body ? document.body.innerText : ''")
                raise AssertionError(f"waited in vain for {expression} in:\n{text}\n{self.complaints}")
            time.sleep(0.1)
        return value

    def press(self, *keys: tuple[str, str]) -> None:
        """Keys, each with the text that it writes."""
        for key, text in keys:
            code = {"Enter": 13, "Tab": 9}.get(key, 0)
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text, windowsVirtualKeyCode=code)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._answers], [], [], self._limit_seconds)
            chunk = os.read(self._answers, 65536) if ready else b""
            assert chunk, "Chromium has ended, or does not answer"
            self._pending += chunk
        message, _, self._pending = self._pending.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(event["params"]["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.complaints.append(event["params"]["entry"]["text"])


@contextlib.contextmanager
def open_tab(url: str, folder: Path, limit_seconds: float) -> Iterator[Tab]:
    """A browser of its own that shows an address; ended with the block."""
    ends = [*os.pipe(), *os.pipe()]
    theirs_in, ours_out, ours_in, theirs_out = (
        fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _HIGH_DESCRIPTOR) for end in ends
    )
    for end in ends:
        os.close(end)
    arguments = [
        str(PROGRAM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={folder}"),
    ]
    process = subprocess.Popen(
        # The browser reads commands from descriptor 3 and answers on 4.
        ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *arguments],
        pass_fds=(theirs_in, theirs_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        tab = Tab(ours_out, ours_in, limit_seconds)
        tab.open(url)
        yield tab
    finally:
        # Its own processes end when their pipes to it do.
        process.kill()
        process.wait()
        os.close(ours_out)
        os.close(ours_in)
