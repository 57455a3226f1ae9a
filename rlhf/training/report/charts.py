"""What the charts of every report share: colours that follow the page, the style, an empty chart, and inline SVG."""

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Each colour is drawn as a stand-in and replaced by a variable of the page's style sheet.
INK, MUTED, GRID, BAD = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0505{i:02x}" for i in range(8))
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", BAD: "var(--bad)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "rlhf", "font.size": 8, "text.color": MUTED, "text.parse_math": False,
    "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "axes.spines.top": False, "axes.spines.right": False,
    "axes.spines.left": False, "axes.grid": True, "axes.grid.axis": "y", "grid.color": GRID, "grid.linewidth": 0.6,
    "axes.formatter.useoffset": False, "axes.axisbelow": True, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.major.pad": 4, "legend.frameon": False, "legend.fontsize": 8,
    "legend.handlelength": 1.2, "lines.linewidth": 1.6, "lines.solid_capstyle": "round", "savefig.transparent": True,
}


@dataclass(frozen=True)
class Drawing:
    """A drawn chart, ready for the page."""

    section: str
    title: str
    caption: str
    latest: str
    svg: str


def canvas(x_label: str, height: float = 2.45) -> tuple[Figure, Axes]:
    """An empty chart as wide as the page's column, `height` inches high; draw inside `matplotlib.rc_context(STYLE)`."""
    figure = Figure(figsize=(5.4, height), layout="constrained")
    axes = figure.subplots()
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(x_label, loc="right", fontsize=7, labelpad=1)
    return figure, axes


def scale_y(axes: Axes, values: Sequence[float], share: bool) -> None:
    """The range of the y axis for `values`: from 0 in percent for shares, logarithmic over three decades and more."""
    if share:
        top = max(values, default=1.0)
        axes.set_ylim(0, 1.02 if top > 0.5 else max(top * 1.3, 0.05))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif values and min(values) > 0 and max(values) / min(values) > 1000:
        axes.set_yscale("log")
    elif values and math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-15):
        # A constant has no range of its own; matplotlib's choice would print it in seven equal labels.
        middle = values[0]
        spread = abs(middle) * 0.5 or 1.0
        axes.set_ylim(middle - spread, middle + spread)


def add_legend(axes: Axes) -> None:
    """A legend in one line above the chart, where it hides no data."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6, borderaxespad=0.2, columnspacing=1.0,
                labelcolor=MUTED)


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that fills its place in the page and has the page's colours and fonts."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # text stays text, and the reader's browser has fonts for what matplotlib's lacks
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    return re.sub("|".join(VARIABLES), lambda match: VARIABLES[match.group()], svg)
