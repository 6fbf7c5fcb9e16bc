"""Chromium without a window, driven by its DevTools protocol over two pipes: real clicks, moves and keys."""

import base64
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_KEYS = {
    "ArrowRight": 39,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowDown": 40,
    "End": 35,
    "Home": 36,
    "Escape": 27,
    "Enter": 13,
    "Tab": 9,
}


class Tab:
    """A tab of a browser of its own; a context that closes the browser.

    `console` are the messages of the console and the uncaught errors, `requests` the addresses of all requests.
    """

    def __init__(self, profile, width=1280, height=900, *, dark=False):
        read, self._commands = os.pipe()
        self._answers, write = os.pipe()
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        command += [f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        shell = f"exec {shlex.join(command)} 3<&{read} 4>&{write}"
        self._process = subprocess.Popen(
            ["bash", "-c", shell], pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        self._rest, self._number, self._session = b"", 0, None
        self.console, self.requests = [], []
        (page,) = [one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        found = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(width, height)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[theme])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def send(self, method, **parameters):
        """Sends a command and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {} if self._session is None else {"sessionId": self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        while b"\0" not in self._rest:
            part = os.read(self._answers, 2**20)
            assert part, "Chromium has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        values = message.get("params", {})
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(values)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        return message

    def resize(self, width, height):
        """Sets the size of the window in CSS pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, page):
        """Opens a file, or the address of a server, and waits until it is loaded."""
        self.send("Page.navigate", url=str(page) if "://" in str(page) else Path(page).as_uri())
        self.wait("location.href !== 'about:blank'")

    def evaluate(self, expression):
        """Returns the value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression, seconds=20):
        """Waits until an expression is true on a loaded page."""
        deadline, is_true = time.monotonic() + seconds, False
        while not is_true:
            assert time.monotonic() < deadline, expression
            with contextlib.suppress(AssertionError):  # the page is being loaded
                is_true = self.evaluate(f"document.readyState === 'complete' && ({expression})")
            time.sleep(0.05)

    def middle(self, selector, x=0.5, y=0.5):
        """Scrolls to an element and returns the coordinates of a point in it, by default of its middle."""
        element = f"document.querySelector({json.dumps(selector)})"
        box = self.evaluate(
            f"({element}.scrollIntoView({{block: 'center'}}),"
            f"(({{x, y, width, height}}) => [x, y, width, height])({element}.getBoundingClientRect()))"
        )
        return box[0] + x * box[2], box[1] + y * box[3]

    def move(self, selector, x=0.5, y=0.5):
        """Moves the pointer to a point of an element."""
        x, y = self.middle(selector, x, y)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector, x=0.5, y=0.5):
        """Clicks on a point of an element."""
        x, y = self.middle(selector, x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, selector, x=0.5, y=0.5):
        """Taps on a point of an element with a finger."""
        x, y = self.middle(selector, x, y)
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key):
        """Presses a key of the keyboard."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_KEYS[key])

    def screenshot(self, file, *, whole=False):
        """Writes a PNG file of the window, or of the whole page."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(file).write_bytes(base64.b64decode(shot["data"]))
