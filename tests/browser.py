"""A page opened in headless Chromium: what it drew, asked for and complained about."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)


class Page:
    """One page in a browser of its own."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self.seconds = 0.0

    def open(self, file: Path, wait: float = 60.0) -> None:
        """Load a file and wait until all its plots are drawn; `seconds` is how long that took."""
        begun = time.perf_counter()
        self.driver.get(file.resolve().as_uri())
        while self.run("return document.documentElement.dataset.drawn") is None:
            assert time.perf_counter() - begun < wait, "the page has not drawn its plots"
            time.sleep(0.01)
        self.seconds = time.perf_counter() - begun

    def run(self, script: str, *arguments: Any) -> Any:
        """What JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def resize(self, width: int, height: int = 900) -> None:
        """The size of the page, and not of a window, which Chromium does not make narrower than 500 pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        time.sleep(0.5)  # plots follow a little later

    def prefer(self, scheme: str) -> None:
        """A light or dark colour scheme, as set in the system."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        time.sleep(0.5)

    def screenshot(self, file: Path) -> None:
        """The whole page, from top to bottom."""
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return document.documentElement.clientWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        data = self.driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]
        file.write_bytes(base64.b64decode(data))

    def complaints(self) -> list[str]:
        """What stands in the console, warnings included."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Every address the page has asked for since it was last asked."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [each for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [each["params"]["request"]["url"] for each in sent]


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Chromium with the new, empty `profile`."""
    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    try:
        driver.get("about:blank")  # away from Chromium's own first page
        driver.get_log("performance")
        yield Page(driver)
    finally:
        driver.quit()
