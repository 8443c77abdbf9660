"""A real Chromium for tests, driven over its debugging pipe with nothing but the standard library."""

import base64
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--hide-scrollbars", "--remote-debugging-pipe"]


def find_chromium() -> str | None:
    """The browser's path, from XQG_TEST_CHROMIUM or PATH."""
    return os.environ.get("XQG_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab; `events` keeps everything that the browser reported."""

    def __init__(self, out: int, back: int) -> None:
        self.out, self.back = out, os.fdopen(back, "rb", buffering=0)
        self.rest, self.number, self.session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters):
        """Send a command and return its result; events that come before are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        os.write(self.out, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self) -> dict:
        while b"\0" not in self.rest:
            block = self.back.read(1 << 16)
            assert block, "the browser went away"
            self.rest += block
        line, self.rest = self.rest.split(b"\0", 1)
        return json.loads(line)

    def open(self, what: Path | str, *, width: int, dark: bool = False) -> None:
        """Show a file or an address in a window of `width` CSS pixels and wait until it is loaded."""
        self.events.clear()
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=what if isinstance(what, str) else what.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())
        self.run("1")  # what is on its way has come

    def run(self, script: str):
        """The value of a script in the page, or of what its promise brings."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, the content policy's included."""
        found = [e["params"]["entry"]["text"] for e in self.events if e["method"] == "Log.entryAdded"]
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return found + [json.dumps(e["params"]) for e in self.events if e["method"] in kinds]

    def requests(self) -> list[str]:
        """Every address that was asked for."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def screenshot(self, path: Path, *, top: int = 0, height: int | None = None) -> None:
        """A picture (PNG) of the page or of a strip of it."""
        width, full = self.run("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": top, "width": width, "height": height or full, "scale": 1}
        data = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path: Path) -> None:
        """What would be printed on A4."""
        data = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser(folder: Path):
    """A `Page` of a fresh Chromium that keeps its profile in `folder`."""
    to_read, out = os.pipe()
    back, to_write = os.pipe()
    # the browser reads commands from descriptor 3 and answers on 4
    command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
    process = subprocess.Popen(
        ["bash", "-c", command, find_chromium(), *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_read)
    os.close(to_write)
    try:
        page = Page(out, back)
        try:
            yield page
        finally:
            page.back.close()
    finally:
        os.close(out)
        process.terminate()
        process.wait(20)
