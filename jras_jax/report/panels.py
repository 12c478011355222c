"""A case on the page: its slices with contours, the guides of each, the error map and the baseline's mask.

Every picture of a slice has the same size. Colours name structures; line styles tell truth from prediction; hatching
marks errors.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from jras_jax.data.description import DatasetDescription
from jras_jax.data.dice import structure_counts
from jras_jax.report import charts, images
from jras_jax.report.axes import legend
from jras_jax.report.evidence import Evidence
from jras_jax.report.markup import Html, element, join, number, plural, render

HATCHES = {images.MISSED: "M0 4L4 0", images.ADDED: "M0 0L4 4", images.CONFUSED: "M0 4L4 0M0 0L4 4"}  # in a 4 x 4 tile


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture of a slice: its kind (a CSS class), text alternative, drawing, title and the lines under it."""

    kind: str
    label: str
    drawing: Html
    title: str
    lines: Sequence[str]
    weight: float | None = None

    @property
    def bar(self) -> float:
        """The weight as the length of a bar, in percent."""
        known = self.weight is not None and math.isfinite(self.weight)
        return round(100 * min(max(self.weight, 0.0), 1.0), 2) if self.weight is not None and known else 0.0


def panel(evidence: Evidence, heading: str, detail: str, most: int, described: DatasetDescription) -> Html:
    """A case with its slider. `most` bounds the side of its images in pixels."""
    window = images.window_around([evidence.truth, evidence.prediction, evidence.guide_masks])
    drawer = _Drawer(evidence, window=window, most=most, described=described)
    count = len(evidence.image)
    # The slice with the most labelled pixels opens: the heart is on it, with or without script.
    first = int(np.argmax((evidence.truth > 0).sum((1, 2))))
    dice = [_mean(slice_dice(evidence.truth[z], evidence.prediction[z], described)) for z in range(count)]
    strip = charts.bars(dice, label=f"Mean Dice of each of the {count} slices of {evidence.name}, as bars.")
    layers = {"truth": "truth", "prediction": "prediction"} | ({"mask": "guide masks"} if evidence.guides else {})
    return render(
        "panel.html",
        id=anchor(evidence.name),
        heading=heading,
        detail=detail,
        first=first,
        strip=strip,
        layers=layers,
        guides=evidence.guides,
        side=window.side,
        hatches=drawer.hatches(),
        slices=[drawer.pictures(z) for z in range(count)],
    )


def anchor(name: str) -> str:
    """The id of a case's panel."""
    return "case-" + re.sub(r"[^A-Za-z0-9_-]", "-", name)


def slice_dice(truth: np.ndarray, prediction: np.ndarray, described: DatasetDescription) -> dict[str, float]:
    """Dice per structure on one (S, S) slice; NaN where neither mask has the structure."""
    counts = structure_counts(truth, prediction, described.structures)
    return {name: math.nan if c.empty == "both" else c.dice for name, c in counts.items()}


def _mean(scores: dict[str, float]) -> float:
    known = [v for v in scores.values() if not math.isnan(v)]
    return float(np.mean(known)) if known else math.nan


class _Drawer:
    """Draws the pictures of one case."""

    def __init__(self, evidence: Evidence, window: images.Window, most: int, described: DatasetDescription):
        self._evidence, self._window, self._most, self._described = evidence, window, most, described
        self._name = anchor(evidence.name)

    def pictures(self, z: int) -> list[Picture]:
        """Query, guides, errors and the baseline's mask of one slice."""
        crop, evidence = self._window.crop, self._evidence
        truth, prediction = crop(evidence.truth[z]), crop(evidence.prediction[z])
        name = f"slice {z + 1} of {evidence.name}"
        contours = "with the contours of truth (solid) and prediction (dashed)"
        query = self._grey(evidence.image[z], identifier=f"{self._name}-{z}")
        drawing = join(query, self._outlines(truth, "truth"), self._outlines(prediction, "prediction"))
        found = [
            Picture(
                "query",
                f"Query, {name}, {contours}",
                drawing=drawing,
                title="Query",
                lines=[self._scores(truth, prediction)],
            )
        ]
        found += [self._guide(z, k) for k in range(evidence.guides)]
        found.append(self._errors(z, truth, prediction=prediction, name=name))
        if evidence.baseline is not None:
            other, image = crop(evidence.baseline.prediction[z]), evidence.baseline.image[z]
            truth = crop(evidence.baseline.truth[z])
            shown = self._query(z) if np.array_equal(image, evidence.image[z]) else self._grey(image)
            drawing = join(shown, self._outlines(truth, "truth"), self._outlines(other, "prediction"))
            label = f"Baseline, {name}, {contours} of the baseline"
            found.append(
                Picture("baseline", label, drawing=drawing, title="Baseline", lines=[self._scores(truth, other)])
            )
        if evidence.wholes is not None and evidence.corners is not None:
            found.append(self._whole(evidence.wholes[z], evidence.corners, name))
        return found

    def _whole(self, image: np.ndarray, corners: np.ndarray, name: str) -> Picture:
        """The whole slice with the outline of the crop that the network sees."""
        side = self._window.side
        uri = images.data_uri(images.png(images.shrink(image, self._most)))
        drawing = element("image", width=side, height=side, href=uri)
        line = "no heart found: the network sees all of it"
        if len(corners):
            points = " ".join(f"{x:.1f},{y:.1f}" for y, x in (corners + 0.5) * side / image.shape[-1])
            drawing = join(drawing, element("polygon", points=points, class_="crop"))
            line = "framed: what the network sees of query and guides"
        return Picture("whole-slice", f"Whole {name}, {line}", drawing=drawing, title="Whole slice", lines=[line])

    def _guide(self, z: int, k: int) -> Picture:
        evidence = self._evidence
        source, weight = str(evidence.guide_names[z, k]), float(evidence.weights[z, k])
        grey = self._grey(evidence.guide_images[z, k])
        mask = self._outlines(self._window.crop(evidence.guide_masks[z, k]), "mask")
        figures = f"weight {number(weight, 2)}, similarity {number(float(evidence.similarity[z, k]), 2)}"
        label = f"Guide {k + 1} for slice {z + 1}: {source}, with its mask"
        over = self._query(z, class_="over")  # seen while the reader lets query and guides blink
        return Picture(
            "guide",
            label,
            drawing=join(grey, over, mask),
            title=f"Guide {k + 1}",
            lines=[source, figures],
            weight=weight,
        )

    def _errors(self, z: int, truth: np.ndarray, prediction: np.ndarray, name: str) -> Picture:
        """The dimmed query with each kind of error hatched in the colour of the structure: the true one, or if
        there is none, the predicted one."""
        kinds = images.errors(truth, prediction)
        counts = {kind: int((kinds == kind).sum()) for kind in images.ERROR_NAMES}
        spoken = ", ".join(f"{word} {plural(counts[kind], 'pixel')}" for kind, word in images.ERROR_NAMES.items())
        shapes = []
        for kind in images.ERROR_NAMES:
            owner = prediction if kind == images.ADDED else truth
            for label in self._described.structures.values():
                path = images.contour_path((kinds == kind) & (owner == label))
                if path:
                    fill = f"url(#{self._name}-hatch-{kind}-{label})"
                    shapes.append(element("path", d=path, fill=fill, class_=f"s{label}"))
        layer = element("g", shapes, transform="scale(0.5)", class_="errors") if shapes else None
        drawing = join(self._query(z, opacity="0.45"), layer)
        return Picture("error-map", f"Error map of {name}: {spoken}", drawing=drawing, title="Errors", lines=[spoken])

    def hatches(self) -> list[Html]:
        """A pattern for each kind of error and structure, in half pixels as the contours are."""
        scale = f"scale({self._window.side / 80:.3f})"
        return [
            hatch(f"{self._name}-hatch-{kind}-{label}", kind=kind, transform=scale, class_=f"s{label}")
            for kind in HATCHES
            for label in self._described.structures.values()
        ]

    def _query(self, z: int, **attributes: str) -> Html:
        """The query's image again, without its bytes."""
        return element("use", href=f"#{self._name}-{z}", **attributes)

    def _grey(self, image: np.ndarray, identifier: str | None = None) -> Html:
        uri = images.data_uri(images.png(images.shrink(self._window.crop(image), self._most)))
        return element("image", id=identifier, width=self._window.side, height=self._window.side, href=uri)

    def _scores(self, truth: np.ndarray, prediction: np.ndarray) -> str:
        scores = slice_dice(truth, prediction, self._described)
        known = [f"{name} {number(value, 2)}" for name, value in scores.items() if not math.isnan(value)]
        return "Dice here: " + ", ".join(known) if known else "no structure in truth or prediction"

    def _outlines(self, labels: np.ndarray, layer: str) -> Html:
        """Contours of the structures as one layer, each over a dark halo."""
        paths = []
        for label, mask in images.regions(labels, self._described).items():
            drawn = images.contour_path(mask)
            if drawn:
                paths.append(element("path", d=drawn, class_=f"s{label}"))
        return element("g", *paths, transform="scale(0.5)", class_=f"outline {layer}") if paths else Html("")


def hatch(identifier: str, kind: int, **attributes: str) -> Html:
    """The pattern that fills errors of a kind; its lines have the colour of its class."""
    line = element("path", d=HATCHES[kind])
    if transform := attributes.pop("transform", None):
        attributes["patternTransform"] = transform
    tile = {"width": 4, "height": 4, "patternUnits": "userSpaceOnUse"}
    return element("pattern", line, id=identifier, **tile, **attributes)


def key(described: DatasetDescription) -> Html:
    """What the lines, colours and hatches of the panels mean."""
    first = next(iter(described.structures.values()))
    ground = element("rect", width=28.0, height=14.0, rx=2.0, class_="ground")

    def line(layer: str, label: int) -> Html:
        drawn = element("path", d="M2 7h24", class_=f"s{label}")
        return join(ground, element("g", drawn, class_=f"outline {layer}"))

    def patch(label: int) -> Html:
        area = element("path", d="M3 3h22v8h-22z", class_=f"s{label}")
        return join(ground, element("g", area, class_="outline mask"))

    def hatched(kind: int) -> Html:
        area = element("rect", x=3.0, y=1.0, width=22.0, height=12.0, fill=f"url(#hatch-{kind})", class_="plain")
        return join(ground, hatch(f"hatch-{kind}", kind=kind, class_="plain"), element("g", area, class_="errors"))

    entries = [
        (line("truth", first), "truth: solid, white"),
        (line("prediction", first), "prediction: dashed, in the structure's colour"),
        *((patch(label), images.outline_name(name, described)) for name, label in described.structures.items()),
        *((hatched(kind), f"error, hatched: {word}") for kind, word in images.ERROR_NAMES.items()),
    ]
    return legend(entries)


def colours(described: DatasetDescription) -> str:
    """The style rules that give each structure its colour, s1 the first."""
    pairs = zip(described.structures.values(), described.colours, strict=True)
    return "".join(f".s{label} {{ --c: {colour}; }}\n" for label, colour in pairs)
