"""The frame of an HTML page that works offline: one file, plotly once, light and dark, for screen readers too."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from adamtune.report.figures import described
from adamtune.report.page_parts import DRAW, NOTHING_FROM_ELSEWHERE, STYLE

_LONG = 36
"""Characters of a table's cell beyond which it may break into lines."""


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading of its own, which the contents lead to."""

    title: str
    body: str
    """HTML; headings in it begin at h3."""
    name: str
    """Of the link to it: a word of ours, not text from outside."""
    parts: Sequence[tuple[str, str]] = ()
    """Headings within it that the contents name too: name and title."""


def page(title: str, lead: str, sections: Sequence[Section] = ()) -> str:
    """A whole page. `title` is text, `lead` the HTML before the first section."""
    body = "\n".join(_section(section) for section in sections)
    whole = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_FROM_ELSEWHERE}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">Skip to the content</a>\n'
        f"<header><h1>{escape(title)}</h1></header>\n{_contents(sections)}"
        f'<main id="content" tabindex="-1">\n{lead}\n{body}\n</main>\n'
        # Last, so that the text can be read while five megabytes of it are still being parsed.
        f"<script>{get_plotlyjs()}</script>\n<script>{DRAW}</script>\n</body>\n</html>\n"
    )
    # Names that were no UTF-8 cannot be written; escaped they can.
    return whole.encode("utf-8", "backslashreplace").decode("utf-8")


def _section(section: Section) -> str:
    heading = f'<h2 id="{section.name}">{escape(section.title)}</h2>'
    return f'<section aria-labelledby="{section.name}">\n{heading}\n{section.body}\n</section>'


def _contents(sections: Sequence[Section]) -> str:
    """Links to every section, where there are several."""
    if len(sections) < 2:
        return ""
    links = []
    for section in sections:
        within = "".join(f"<li>{_link(name, title)}</li>" for name, title in section.parts)
        links.append(f"<li>{_link(section.name, section.title)}{f'<ul>{within}</ul>' if within else ''}</li>")
    return f'<nav aria-label="Contents"><details><summary>Contents</summary><ul>{"".join(links)}</ul></details></nav>\n'


def _link(name: str, title: str) -> str:
    return f'<a href="#{name}">{escape(title)}</a>'


def picture(drawn: go.Figure, caption: str, data: str = "") -> str:
    """A plot with its caption, as HTML. `data` is the table of what it shows, for those who cannot see it."""
    # Plotly writes `<`, `>` and `/` inside its JSON as escapes, so a name cannot close the script element.
    plot = to_json_plotly(drawn)
    layout = drawn.layout
    size = f"height:{int(layout.height)}px"
    scroll = '<div class="scroll">'
    if "least_width" in (layout.meta or {}):  # wider than a narrow page
        size += f";min-width:{int(layout.meta['least_width'])}px"
        scroll = '<div class="scroll" role="group" tabindex="0" aria-label="Plot that scrolls sideways">'
    shown = f"<details><summary>The figures behind it</summary>{data}</details>" if data else ""
    # What plotly draws is hidden from screen readers: a hundred parts without a name.
    return (
        f'<figure>{scroll}<div role="img" aria-label="{escape(described(drawn))}">'
        f'<div class="plot" aria-hidden="true" style="{size}"></div></div></div>'
        f'<script type="application/json">{plot}</script>'
        f"<figcaption>{escape(caption)}</figcaption>{shown}</figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str = "", marked: Collection[int] = ()) -> str:
    """A table of texts, as HTML; it scrolls within its own width. `name` is what a screen reader calls it.

    The rows `marked`, by their place, stand out.
    """
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    opens = {True: '<tr class="marked">', False: "<tr>"}
    body = "".join(opens[place in marked] + "".join(map(_cell, row)) + "</tr>" for place, row in enumerate(rows))
    called = escape(name or f"Table: {', '.join(filter(None, head))}")
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{called}">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    return f'<td class="long">{escape(text)}</td>' if len(text) > _LONG else f"<td>{escape(text)}</td>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of text, as HTML."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def verbatim(text: str, name: str) -> str:
    """A file or a command as it stands; `name` is what a screen reader calls it."""
    return f'<pre tabindex="0" role="group" aria-label="{escape(name)}">{escape(text)}</pre>' if text else ""


def cards(entries: Sequence[tuple[str, str, str]]) -> str:
    """Figures to be seen at once: what, how much, and the small print."""
    told = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(much)} <small>{escape(small)}</small></dd></div>"
        for what, much, small in entries
    )
    return f'<dl class="cards">{told}</dl>'
