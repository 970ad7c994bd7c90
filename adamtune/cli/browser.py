"""When a command starts a browser, and doing so: `--open` of `report` and `dashboard`."""

from __future__ import annotations

import os
import sys
import webbrowser
from enum import StrEnum


class Open(StrEnum):
    """When a browser is started."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def open_address(address: str, when: Open, auto: bool = True) -> bool:
    """Show a page where that is wanted; whether a browser was started. `auto`: whether `Open.AUTO` may open anything.

    Text browsers would take over the terminal, so `auto` asks for a screen to open a window on.
    """
    screen = sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    seen = auto and screen and sys.stdout.isatty()
    return (when is Open.ALWAYS or (when is Open.AUTO and seen)) and webbrowser.open(address)
