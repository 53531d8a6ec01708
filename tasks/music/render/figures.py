"""Figures of matplotlib as PNG: the colours of all pictures, and the same bytes for the same figure."""

import io
import warnings
from typing import Any

# Ten hues that stay apart for colour-blind eyes and hold against paper as well as against a dark page.
PART_COLOURS = (
    "#2f6fb7", "#d1642a", "#2c8f6a", "#a8479b", "#b8860b", "#4fa3c7", "#c0392b", "#6c7a1f", "#7a5bd0", "#8a6d5a",
)  # fmt: skip
PAPER, INK, FAINT = "#f7f5f0", "#33312d", "#dcd8ce"


def new_figure(width: float, height: float, **options: Any) -> Any:
    """Return a figure of this size in inches of 100 pixels."""
    # The import takes half a second. Figures without pyplot keep no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor=PAPER, **options)
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Any, optimize: bool = True) -> bytes:
    """Draw a figure of `new_figure`.

    Args:
        optimize: take longer for a smaller file.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks shows boxes
        figure.canvas.print_png(buffer, metadata={"Software": None}, pil_kwargs={"optimize": optimize})
    return buffer.getvalue()
