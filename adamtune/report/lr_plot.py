"""The range test as a picture, in the terminal and as an HTML page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adamtune.lr_finder import LRFindResult


def lr_terminal_plot(result: LRFindResult, width: int, height: int = 20) -> str:
    """The smoothed loss over log lr, `width` columns wide, without colour; empty where there is no curve to draw."""
    points = [
        (math.log10(lr), loss)
        for lr, loss in zip(result.curve.lrs, result.curve.losses, strict=True)
        if math.isfinite(loss)
    ]
    # How high a diverging loss ends says nothing, and would flatten the rest.
    while len(points) > 2 and points[-1][1] > points[0][1] + abs(points[0][1]):
        points.pop()
    if len(points) < 2:
        return ""
    import plotext

    plot = plotext.figure  # one for the process, so it is emptied first
    plot.clear()
    plot.plot_size(width, height)
    plot.draw(plot.signal([x for x, _ in points], [y for _, y in points]))
    decades = range(math.floor(points[0][0] + 1e-9), math.ceil(points[-1][0] - 1e-9) + 1)
    plot.ruler("x").ticks(list(decades), [f"1e{decade}" for decade in decades])
    legend = "learning rate"
    if result.curve.band:
        legend += "   | band"
        for edge in result.curve.band:
            plot.line(math.log10(edge), "vertical")
    if result.suggestion is not None:
        legend += f"   ! suggestion {result.suggestion:.3g}"
        at = math.log10(result.suggestion)
        ends = [min(y for _, y in points), max(y for _, y in points)]
        plot.draw(plot.segment([at, at], ends, marker="!"))
    plot.label(legend, axis="x")
    return str(plotext.uncolorize(str(plot.build()))).rstrip("\n")


def lr_html_plot(result: LRFindResult) -> str:
    """A page of its own: the curve with its spread, the band, every rule's suggestion and the short trials."""
    from adamtune.report.figures import range_figure
    from adamtune.report.page import page, paragraph, picture

    data = result.to_dict()
    suggestions = dict(data["suggestions"])
    if result.suggestion is not None:
        suggestions["adamtune"] = result.suggestion
    drawn = range_figure(data["curve"], data["band"], suggestions, data["response"])
    answer = "none" if result.suggestion is None else f"{result.suggestion:g}"
    told = paragraph(f"suggestion for {result.horizon} steps: {answer} ({result.status}: {result.reason})", "answer")
    caption = f"Range test over {result.seeds} seeds; shaded green: the band where the loss falls."
    return page(f"adamtune lr-find: {result.task}", [told, picture(drawn, caption)])
