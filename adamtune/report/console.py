"""The terminal as we print to it: text is shown as it is, whatever it holds."""

from __future__ import annotations

import textwrap
from typing import Any

from rich.console import Console
from rich.text import Text

from adamtune.plain_text import plain


class PlainConsole(Console):
    """A console to which brackets are no markup, colons no emoji, and control characters no commands.

    So names from files and folders can be printed and put into tables without a thought.
    """

    def __init__(self, **options: Any) -> None:
        """As rich's own; `options` are passed on."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text that is printed goes through here, a table's cells too; a `Text` does not."""
        return super().render_str(plain(text, keep="\n"), **options)

    def tell(self, text: str, indent: int = 2, style: str | None = None) -> None:
        """Print a sentence. At a terminal it breaks between words and goes on `indent` columns in; a pipe gets one
        line.
        """
        if self.is_terminal:
            hanging = " " * min(indent, self.width // 2)
            text = textwrap.fill(
                text,
                self.width,
                subsequent_indent=hanging,
                break_long_words=False,
                break_on_hyphens=False,
                replace_whitespace=False,
            )
        self.print(text, style=style, soft_wrap=True)
