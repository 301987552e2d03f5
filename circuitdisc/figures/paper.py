"""What all figures for papers share: size, type, colours, and how they are written.

Text stays text: PDF gets the font's used letters as TrueType, SVG keeps `<text>` elements. The font, DejaVu Sans, comes with
matplotlib, so that a figure is the same on every machine; nothing in a file says when it was made.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitdisc.errors import BadSetting, nearest, tidy
from circuitdisc.files import write_bytes

CM = 1 / 2.54
"""Inches."""


SMALL, NORMAL = 5.5, 6.5
"""Points of the text in a figure: marks, and everything else."""

INK, GREY, FAINT = "#2B2F36", "#8A9099", "#D3D7DD"
ENDINGS = (".pdf", ".svg", ".png")

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": NORMAL,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a stranger's name is a dollar
    "text.usetex": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": NORMAL,
    "axes.linewidth": 0.5,
    "axes.titlesize": NORMAL,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.0,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "circuitdisc",
    "savefig.dpi": 400,
    "figure.dpi": 200,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw and write in our style, whatever the user's own is."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name in letters that the font lacks gets boxes
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@dataclass(frozen=True, eq=False)
class PaperFigure:
    """A figure for a paper. In a notebook it shows itself.

    Args:
        figure: matplotlib's, for changes of your own.
        caption: what it shows, with its numbers as the page has them.
    """

    figure: Figure
    caption: str

    def save(self, path: str | PathLike[str]) -> Path:
        """Write it as PDF, SVG or PNG, by the ending of its name.

        Raises:
            BadSetting: the ending is another.
            BadRun: the file cannot be written.
        """
        path = check_ending(path)
        write_bytes(path, self._bytes(path.suffix.lower()[1:]))
        return path

    def _bytes(self, kind: str) -> bytes:
        written = BytesIO()
        about: dict[str, Any] = {
            "pdf": {"Subject": self.caption, "CreationDate": None},
            "svg": {"Description": self.caption, "Date": None},
            "png": {"Description": self.caption},
        }[kind]
        with style():
            self.figure.savefig(written, format=kind, metadata=about)
        return written.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """What a notebook shows: drawn fine, at a width for a screen."""
        return self._bytes("png"), {"width": round(120 * self.figure.get_figwidth())}

    def __repr__(self) -> str:
        return f"PaperFigure({self.caption})"


def check_ending(path: str | PathLike[str]) -> Path:
    """The name of a figure's file.

    Raises:
        BadSetting: its ending says none of the formats.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise BadSetting(f"a figure is written as {', '.join(ENDINGS)}, by the ending of its name: {path} has none of these")
    return path


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in centimetres; what is added makes room for its labels."""
    return Figure(figsize=(width * CM, height * CM), layout="constrained")


def words(text: object, most: int = 28) -> str:
    """A name of a user's on an axis: no control characters, and a long one without its beginning."""
    text = tidy(" ".join(str(text).split()), 400)
    return text if len(text) <= most else f"…{text[1 - most :]}"


def on_dark(colour: tuple[float, ...]) -> str:
    """Ink that is read on this colour: white on dark ones."""
    red, green, blue = colour[:3]
    return "#FFFFFF" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else INK


def bare(axes: Axes) -> None:
    """Take away the frame and the ticks of a map; their labels stay."""
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def choose(what: str, asked: str | None, known: Sequence[str]) -> str:
    """What was asked for; the first if nothing was.

    Raises:
        BadSetting: there is none of that name, or none at all.
    """
    if not known:
        raise BadSetting(f"there is no {what} to draw")
    if asked is None:
        return known[0]
    if asked not in known:
        near = nearest(asked, known) or known
        raise BadSetting(f"there is no {what} '{asked[:80]}' to draw here: {' or '.join(near)}")
    return asked
