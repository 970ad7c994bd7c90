"""The frame of an HTML page that works offline: one file, plotly once, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1, h2, p { overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-top: 1px solid #8886; padding-top: 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
pre { overflow-x: auto; background: #8881; padding: .8rem; border-radius: .4rem; }
figure { margin: 1rem 0; } figcaption { color: #888; font-size: .9rem; }
.answer { font-size: 1.2rem; }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """A whole page; `title` is text, `sections` are HTML."""
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def picture(drawn: go.Figure, caption: str) -> str:
    """A plot with its caption, as HTML."""
    # Plotly writes `<`, `>` and `/` inside its JSON as escapes, so a name cannot close the script element.
    plot = drawn.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True, "displaylogo": False})
    return (
        f'<figure role="group" aria-label="{escape(caption)}">{plot}<figcaption>{escape(caption)}</figcaption></figure>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, as HTML."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of text, as HTML."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
