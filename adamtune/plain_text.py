"""Text from outside, fit for a terminal and for one line of a message: what could steer either is spelled out."""

from __future__ import annotations


def plain(text: object, keep: str = "") -> str:
    """`text` with every character that does not print as its escape (`\\x1b`, `\\udcff`), but for those in `keep`.

    An escape sequence in a file's name could clear the screen or type into the terminal, and a name that is no UTF-8
    could not be printed at all.
    """
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in str(text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
