"""One style for all figures, and files whose bytes depend only on the numbers."""

import functools
import io
import os
from pathlib import Path

import matplotlib

if "MPLBACKEND" not in os.environ:  # a notebook sets it, and shows figures
    matplotlib.use("Agg")  # files only: no window system is needed

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct for colour-blind readers and in grey print.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"

DPI = 150
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, ORANGE, GREEN, RED]),
    "figure.constrained_layout.use": True,
    "image.interpolation": "nearest",
    "pdf.fonttype": 42,  # text stays text
}


# style(): a context in which figures have the project's style, whatever the caller's settings.
style = functools.partial(plt.rc_context, STYLE)


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG or PDF (by the suffix), without dates, closes it and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_bytes(figure, path.suffix.removeprefix("."), DPI))
    return path


def as_bytes(figure: Figure, kind: str = "png", dpi: int = DPI) -> bytes:
    """Returns the figure as the content of a "png" or "pdf" file, without a date; closes it."""
    content = io.BytesIO()
    dates = {"CreationDate": None, "ModDate": None} if kind == "pdf" else {"Software": None}
    figure.savefig(content, format=kind, dpi=dpi, metadata=dates)
    plt.close(figure)
    return content.getvalue()


def hide_axes(axes) -> None:
    """Hides ticks, grid and frame, which an image does not need."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
