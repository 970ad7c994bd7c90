"""The range test as a picture, in the terminal and as an HTML page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adamtune.lr_finder import LRFindResult


def lr_terminal_plot(result: LRFindResult, width: int, height: int = 20) -> str:
    """The smoothed loss over log lr, at most `width` columns wide, without colour, with a legend below.

    Empty where there is no curve to draw.
    """
    points = _points(result)
    if len(points) < 2:
        return ""
    import plotext

    plot = plotext.figure  # one for the process, so it is emptied first
    plot.clear()
    plot.plot_size(width, height)
    curve = plot.signal([x for x, _ in points], [y for _, y in points])
    curve.lines()
    plot.draw(curve)
    legend, marked = ["loss over learning rate"], [points[0][0], points[-1][0]]
    if result.curve.band:
        low, high = result.curve.band
        legend.append(f"│ band {low:.2g} to {high:.2g}")
        for edge in (low, high):
            plot.line(math.log10(edge), "vertical")
    if result.suggestion is not None:
        legend.append(f"! suggestion {result.suggestion:.3g}")
        at = math.log10(result.suggestion)
        marked.append(at)
        ends = [min(y for _, y in points), max(y for _, y in points)]
        plot.draw(plot.segment([at, at], ends, marker="!"))
    # plotext's own log axis labels only whole powers inside the data, so log10 is drawn and the decades named here.
    decades = range(math.floor(min(marked) + 1e-9), math.ceil(max(marked) - 1e-9) + 1)
    plot.ruler("x").ticks(list(decades), [f"1e{decade}" for decade in decades])
    drawn = plotext.uncolorize(str(plot.build())).splitlines()
    in_a_row = "   ".join(legend)
    return "\n".join(line.rstrip() for line in [*drawn, *([in_a_row] if len(in_a_row) <= width else legend)])


def _points(result: LRFindResult) -> list[tuple[float, float]]:
    """The curve as (log10 lr, loss), up to where it climbs far above its start.

    How high a diverging loss ends says nothing, and would flatten the rest.
    """
    points = [
        (math.log10(lr), loss)
        for lr, loss in zip(result.curve.lrs, result.curve.losses, strict=True)
        if math.isfinite(loss)
    ]
    while len(points) > 2 and points[-1][1] > points[0][1] + abs(points[0][1]) / 4:
        points.pop()
    return points


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
    told = [paragraph(f"suggestion for {result.horizon} steps: {answer} ({result.status}: {result.reason})", "answer")]
    if data.get("interval"):
        low, high = data["interval"]
        told.append(paragraph(f"The best one should lie between {low:.2g} and {high:.2g}."))
    told.append(paragraph(f"It cost {result.steps_used:,} training steps and {result.seconds:.0f} seconds."))
    caption = f"Range test over {result.seeds} seed{'s' if result.seeds > 1 else ''}"
    caption += "; shaded green: the band where the loss falls." if data["band"] else "."
    missing = result.response and sum(not math.isfinite(score) for score in result.response.scores)
    if missing:
        caption += f" Of the short trials' learning rates, {missing} diverged or were pruned and have no point."
    return page(f"adamtune lr-find: {result.task}", "\n".join([*told, picture(drawn, caption)]))
