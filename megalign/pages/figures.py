"""How all figures look."""

from __future__ import annotations

# Okabe and Ito's colours without the yellow, which is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#888888",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "text.color": "#222222",
    "axes.labelcolor": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "savefig.dpi": 160,
}
# Curves: a grid, and no frame above and on the right.
CURVES = {**STYLE, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
