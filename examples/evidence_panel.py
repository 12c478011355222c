"""Draws one slice of an evaluated case beside the guides that were retrieved for it, as a PNG.

python examples/evidence_panel.py runs/demo panel.png [CASE] [SLICE]
"""

import pathlib
import sys

import matplotlib
import matplotlib.axes
import matplotlib.lines

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from jras_jax.data.description import CARDIAC
from jras_jax.run_folder.layout import RunFolder

STRUCTURES = CARDIAC.structures
COLOURS = dict(zip(STRUCTURES, CARDIAC.colours, strict=True))  # those of the report


def outline(axes: matplotlib.axes.Axes, mask: np.ndarray, style: str) -> None:
    """Contours of each structure of a (S, S) label map."""
    for name, label in STRUCTURES.items():
        if (mask == label).any():
            axes.contour(mask == label, [0.5], colors=COLOURS[name], linestyles=style, linewidths=1.8)


def main(workdir: str, output: str, case: str = "", number: str = "") -> None:
    """Draws the panel; by default the first kept case and its slice with most foreground."""
    kept = {path.stem: path for path in sorted(RunFolder(workdir).path.glob("evaluation/**/*.npz"))}
    evidence = np.load(kept[case] if case else next(iter(kept.values())))
    z = int(number) if number else int((evidence["truth"] > 0).sum((1, 2)).argmax())
    guides = range(evidence["weights"].shape[1])
    figure, axes = plt.subplots(1, 1 + len(guides), figsize=(3 * (1 + len(guides)), 3.4), layout="constrained")
    axes[0].imshow(evidence["image"][z], cmap="gray")
    outline(axes[0], evidence["truth"][z], "solid")
    outline(axes[0], evidence["prediction"][z], "dashed")
    axes[0].set_title("query: truth (solid), prediction (dashed)", fontsize=9)
    for k in guides:
        axes[1 + k].imshow(evidence["guide_images"][z, k], cmap="gray")
        outline(axes[1 + k], evidence["guide_masks"][z, k], "solid")
        name = str(evidence["guide_names"][z, k])
        axes[1 + k].set_title(f"guide, weight {evidence['weights'][z, k]:.2f}\n{name}", fontsize=9)
    for a in axes:
        a.axis("off")
    handles = [matplotlib.lines.Line2D([], [], color=colour, label=name) for name, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
