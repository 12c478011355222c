"""The evidence of a case: its slices with contours, the guides that were fetched for each, and the error map."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import zipfile
from collections.abc import Sequence

import numpy as np

from jras_jax.data.dice import structure_counts
from jras_jax.report import charts, images
from jras_jax.report.axes import legend
from jras_jax.report.files import ReportError
from jras_jax.report.markup import Html, element, join, number, plural

# Missed, added, wrong structure: apart in lightness as well as in hue; drawn on the dimmed image.
ERROR_PALETTE = np.array([[0, 0, 0, 0], [255, 255, 255, 255], [230, 120, 30, 255], [70, 140, 220, 255]], np.uint8)
BYTES_PER_PIXEL = 1.0  # of a base64-encoded grey PNG of MRI, measured 0.8 to 1.0
SMALLEST_SIDE = 64


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What evaluation kept of one case. Z slices, S pixels a side, K guides a slice (0 without retrieval).

    Attributes:
      name: of the case.
      dice: mean over structures, of the volume.
      image: (Z, S, S) uint8.
      truth, prediction: (Z, S, S) uint8 labels.
      guide_images, guide_masks: (Z, K, S, S) uint8.
      weights, similarity: (Z, K) float32.
      guide_names: (Z, K) str, such as "patient012 ED slice 3".
    """

    name: str
    dice: float
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    guide_images: np.ndarray
    guide_masks: np.ndarray
    weights: np.ndarray
    similarity: np.ndarray
    guide_names: np.ndarray

    @property
    def guides(self) -> int:
        """K."""
        return self.guide_images.shape[1]


def load(name: str, path: pathlib.Path) -> Evidence:
    """Reads an evidence file.

    Raises:
      ReportError: it is no .npz file, lacks an array, or its arrays do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise ReportError(f"{path} is not a readable .npz file ({e}); evaluate the run again") from e
    missing = {"image", "truth", "prediction"} - set(found)
    if missing:
        raise ReportError(f"{path} lacks the arrays {', '.join(sorted(missing))}; evaluate the run again")
    image = found["image"]
    slices, size = image.shape[0], image.shape[-1]
    none = np.zeros((slices, 0, size, size), np.uint8)
    evidence = Evidence(
        name=name,
        dice=float(found.get("dice", math.nan)),
        image=image,
        truth=found["truth"],
        prediction=found["prediction"],
        guide_images=found.get("guide_images", none),
        guide_masks=found.get("guide_masks", none),
        weights=found.get("weights", np.zeros((slices, 0))),
        similarity=found.get("similarity", np.zeros((slices, 0))),
        guide_names=found.get("guide_names", np.zeros((slices, 0), str)),
    )
    wanted = {"truth": image.shape, "prediction": image.shape, "guide_masks": evidence.guide_images.shape}
    wanted |= {key: evidence.guide_images.shape[:2] for key in ("weights", "similarity", "guide_names")}
    for key, shape in wanted.items():
        if getattr(evidence, key).shape != shape:
            raise ReportError(f"{path}: {key} has shape {getattr(evidence, key).shape}, but {shape} fits the images")
    return evidence


def side_within(shown: Sequence[Evidence], budget: int) -> int:
    """Largest side, in pixels, at which the grey images of all cases take at most `budget` bytes of the page."""
    count = sum(len(e.image) * (1 + e.guides) for e in shown)
    return max(SMALLEST_SIDE, math.isqrt(int(budget / BYTES_PER_PIXEL / max(count, 1))))


def panel(evidence: Evidence, heading: str, detail: str, most: int) -> Html:
    """A case with its slider. `most` bounds the side of its images in pixels."""
    identifier = anchor(evidence.name)
    window = images.window_around([evidence.truth, evidence.prediction, evidence.guide_masks])
    count = len(evidence.image)
    # The slice with the most labelled pixels opens: the heart is on it, with or without script.
    first = int(np.argmax((evidence.truth > 0).sum((1, 2))))
    slices = [_slice(evidence, z=z, window=window, most=most, shown=z == first) for z in range(count)]
    dice = [slice_dice(evidence.truth[z], evidence.prediction[z]) for z in range(count)]
    strip = charts.bars(
        [_mean(d) for d in dice], label=f"Mean Dice of each of the {count} slices of {evidence.name}, as bars."
    )
    slider = element(
        "input",
        type="range",
        id=f"{identifier}-slice",
        min=1,
        max=count,
        step=1,
        value=first + 1,
        aria_valuetext=f"Slice {first + 1} of {count}",
    )
    controls = element(
        "div",
        element(
            "div", element("label", "Slice", for_=f"{identifier}-slice"), slider, _output(first, count), class_="pick"
        ),
        strip,
        element("fieldset", element("legend", "Show"), *_toggles(evidence.guides > 0)),
        class_="controls",
    )
    return element(
        "article",
        element("header", element("h3", heading, id=f"{identifier}-title"), element("p", detail, class_="meta")),
        controls,
        *slices,
        class_="panel",
        id=identifier,
        aria_labelledby=f"{identifier}-title",
        data_slices=count,
    )


def anchor(name: str) -> str:
    """The id of a case's panel."""
    return "case-" + re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _output(first: int, count: int) -> Html:
    return element("output", f"{first + 1} of {count}", aria_live="polite")


def _toggles(guides: bool) -> list[Html]:
    names = {"truth": "truth", "prediction": "prediction"} | ({"masks": "guide masks"} if guides else {})
    return [
        element("label", element("input", type="checkbox", checked=True, data_layer=layer), name)
        for layer, name in names.items()
    ]


def slice_dice(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Dice per structure on one (S, S) slice; NaN where neither mask has the structure."""
    counts = structure_counts(truth, prediction)
    return {name: math.nan if c.empty == "both" else c.dice for name, c in counts.items()}


def _mean(scores: dict[str, float]) -> float:
    known = [v for v in scores.values() if not math.isnan(v)]
    return float(np.mean(known)) if known else math.nan


def _slice(evidence: Evidence, z: int, window: images.Window, most: int, *, shown: bool) -> Html:
    """One slice: query, errors, guides."""
    query_id = f"{anchor(evidence.name)}-{z}"
    truth, prediction = window.crop(evidence.truth[z]), window.crop(evidence.prediction[z])
    name = f"slice {z + 1} of {evidence.name}"
    outlines = join(_outlines(truth, "truth"), _outlines(prediction, "prediction"))
    query = _picture(
        f"Query, {name}, with the contours of truth (solid) and prediction (dashed)",
        window.side,
        _grey(window.crop(evidence.image[z]), side=window.side, most=most, identifier=query_id),
        outlines,
    )
    kinds = images.errors(truth, prediction)
    counts = {kind: int((kinds == kind).sum()) for kind in images.ERROR_NAMES}
    spoken = ", ".join(f"{word} {plural(counts[kind], 'pixel')}" for kind, word in images.ERROR_NAMES.items())
    layer = element("image", width=window.side, height=window.side, href=_errors_uri(kinds), class_="errors")
    dimmed = element("use", href=f"#{query_id}", opacity="0.4")
    error_map = _picture(f"Error map of {name}: {spoken}", window.side, dimmed, layer)
    scores = slice_dice(truth, prediction)
    figures = [
        element("figure", query, element("figcaption", element("b", "Query"), _scores_text(scores)), class_="query"),
        element(
            "figure", error_map, element("figcaption", element("b", "Errors"), element("span", spoken)), class_="query"
        ),
    ]
    guides = [_guide(evidence, z=z, k=k, window=window, most=most) for k in range(evidence.guides)]
    if guides:
        figures.append(element("div", *guides, class_="guides"))
    return element("div", *figures, class_="slice", data_slice=z, hidden=not shown)


def _scores_text(scores: dict[str, float]) -> Html:
    known = [f"{name} {number(value, 2)}" for name, value in scores.items() if not math.isnan(value)]
    return element("span", "Dice here: " + ", ".join(known) if known else "no structure in truth or prediction")


def _guide(evidence: Evidence, z: int, k: int, window: images.Window, most: int) -> Html:
    mask = window.crop(evidence.guide_masks[z, k])
    source, weight = str(evidence.guide_names[z, k]), float(evidence.weights[z, k])
    similarity = float(evidence.similarity[z, k])
    picture = _picture(
        f"Guide {k + 1} for slice {z + 1}: {source}, with its mask",
        window.side,
        _grey(window.crop(evidence.guide_images[z, k]), window.side, most),
        _outlines(mask, "mask"),
    )
    filled = element("rect", width=100 * min(max(weight, 0.0), 1.0), height=4, class_="filled")
    whole = element("rect", width=100, height=4, class_="whole")
    bar = element(
        "svg", whole, filled, viewBox="0 0 100 4", preserveAspectRatio="none", class_="weight", aria_hidden="true"
    )
    figures = f"weight {number(weight, 2)}, similarity {number(similarity, 2)}"
    caption = element(
        "figcaption", element("b", f"Guide {k + 1}"), element("span", source), bar, element("span", figures)
    )
    return element("figure", picture, caption, class_="guide")


def _picture(label: str, side: int, *parts: Html) -> Html:
    return element("svg", *parts, viewBox=f"0 0 {side} {side}", role="img", aria_label=label, class_="picture")


def _grey(image: np.ndarray, side: int, most: int, identifier: str | None = None) -> Html:
    uri = images.data_uri(images.png(np.ascontiguousarray(images.shrink(image, most))))
    return element("image", id=identifier, width=side, height=side, href=uri)


def _errors_uri(kinds: np.ndarray) -> str:
    return images.data_uri(images.png(np.ascontiguousarray(kinds), ERROR_PALETTE))


def _outlines(labels: np.ndarray, layer: str) -> Html:
    """Contours of RV, epicardium and LV as one layer, each over a dark halo."""
    paths = []
    for name, mask in images.regions(labels).items():
        drawn = images.contour_path(mask)
        if drawn:
            paths.append(element("path", d=drawn, class_=name.lower()))
    return element("g", *paths, transform="scale(0.5)", class_=f"outline {layer}") if paths else Html("")


def key() -> Html:
    """What the lines and colours of the panels mean."""

    def line(layer: str, structure: str) -> Html:
        ground = element("rect", width=28.0, height=14.0, rx=2.0, class_="ground")
        return join(ground, element("g", element("path", d="M2 7h24", class_=structure), class_=f"outline {layer}"))

    def patch(kind: int) -> Html:
        red, green, blue = ERROR_PALETTE[kind][:3]
        return element("rect", x=8.0, y=1.0, width=12.0, height=12.0, class_="patch", fill=f"rgb({red},{green},{blue})")

    return legend(
        [
            (line("truth", "lv"), "truth: solid, white"),
            (line("prediction", "lv"), "prediction: dashed, coloured"),
            (line("mask", "rv"), "RV"),
            (line("mask", "myo"), "epicardium (myocardium with LV)"),
            (line("mask", "lv"), "LV"),
            *((patch(kind), f"error: {word}") for kind, word in images.ERROR_NAMES.items()),
        ]
    )
