"""Storage URLs without their passwords, for whatever is written down or shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote_plus

HIDDEN = "***"

_SHORTEST = 3
"""Characters of a secret that is looked for in other texts; a shorter one stands in any word."""

# Up to the last @ that may be meant: a password with one in it, typed without quoting it, is a password still.
_IN_FRONT = re.compile(r"(?P<front>\w[\w+.-]*://[^\s/?#:@]*:)(?P<secret>[^\s]*)(?=@)")
_IN_QUERY = re.compile(r"(?P<front>[?&][^=&\s]*(?:pass|pwd|secret|token)[^=&\s]*=)(?P<secret>[^&#\s]*)", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """`text` with the password in every URL in it as `***`: `postgresql://me:***@host/db`."""
    for pattern in (_IN_FRONT, _IN_QUERY):
        text = pattern.sub(rf"\g<front>{HIDDEN}", text)
    return text


def without_those_of(url: str, text: str) -> str:
    """`text`, such as a driver's message, without the passwords of `url`, wherever it quotes them."""
    text = without_passwords(text)
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def has_password(url: str) -> bool:
    """Whether there is one in `url`."""
    return any(pattern.search(url) for pattern in (_IN_FRONT, _IN_QUERY))


def left_out(url: str) -> bool:
    """Whether a password of `url` is only its place: the URL was written down by us."""
    return HIDDEN in _secrets(url)


def _secrets(url: str) -> set[str]:
    return set(_each_secret(url))


def _each_secret(url: str) -> Iterator[str]:
    for pattern in (_IN_FRONT, _IN_QUERY):
        for found in pattern.finditer(url):
            for secret in (found["secret"], unquote_plus(found["secret"])):
                # A driver splits at another @, and quotes what it took for a host or a port.
                yield from (part for part in (secret, *secret.split("@")) if len(part) >= _SHORTEST)
