"""Figures of a round."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from labeling.comparison import Judgement
from labeling.measures.agreement import annotator_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 15
"""With more annotators than this the cells are too small for numbers."""


def annotator_heatmap(judgements: Iterable[Judgement]) -> "Figure":
    """Pairwise agreement of each two annotators; white where they share no record."""
    from matplotlib.figure import Figure

    names, agreeing, records = annotator_matrix(judgements)
    size = max(4.0, 0.6 * len(names) + 2)
    figure = Figure(figsize=(size + 1, size))
    axes = figure.add_subplot()
    axes.set_title("Pairwise agreement of annotators")
    if not names:
        axes.text(0.5, 0.5, "no record was ranked by two annotators", ha="center", va="center")
        axes.set_axis_off()
        return figure
    image = axes.imshow(np.ma.masked_invalid(agreeing), cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    if len(names) <= NUMBERED:
        for row, column in np.argwhere(records > 0):
            share = agreeing[row, column]
            ink = "black" if share > 0.6 else "white"
            label = f"{share:.2f}\n{records[row, column]}"
            axes.text(column, row, label, ha="center", va="center", color=ink, fontsize=7)
        axes.set_xlabel("share ordered alike, and records in common")
    figure.colorbar(image, ax=axes, label="share of pairs ordered alike")
    figure.tight_layout()
    return figure
