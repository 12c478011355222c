"""What the report draws: contours, images, error maps, axes, charts and numbers."""

import io
import math
import re

import numpy as np
import pytest
from scipy import ndimage

from jras_jax.data.description import CARDIAC
from jras_jax.report import axes, charts, evidence, images, markup, panels, responsive
from jras_jax.report.files import ReportError
from tests.fake_run import heart


def inside(path: str, size: int) -> np.ndarray:
    """Pixels whose centre is inside a contour path by the even-odd rule."""
    crossings = np.zeros((size, size), int)
    centres = 2 * np.arange(size) + 1  # path units are half pixels
    for part in path.split("M")[1:]:
        points = np.cumsum(np.array(re.findall(r"-?\d+", part), int).reshape(-1, 2), 0)
        for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, 0), strict=True):
            for row in np.flatnonzero((y1 > centres) != (y2 > centres)):
                x = x1 + (centres[row] - y1) / (y2 - y1) * (x2 - x1)
                crossings[row] += x > centres
    return crossings % 2 == 1


@pytest.mark.parametrize("seed", range(5))
def test_contours_enclose_exactly_their_mask(seed):
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(24, 24)), 1.0) > 0.05
    path = images.contour_path(mask)
    np.testing.assert_array_equal(inside(path, 24), mask)
    holes = ndimage.label(np.pad(~mask, 1, constant_values=True), np.ones((3, 3)))[1] - 1
    assert path.count("M") == path.count("z") == ndimage.label(mask)[1] + holes
    assert images.contour_path(np.zeros((4, 4), bool)) == ""


def decoded(file: bytes) -> np.ndarray:
    """The pixels of a PNG as an independent decoder reads them, RGBA."""
    image = pytest.importorskip("PIL.Image", reason="Pillow decodes the PNG")
    return np.asarray(image.open(io.BytesIO(file)).convert("RGBA"))


def test_png_keeps_every_pixel():
    grey = np.random.default_rng(0).integers(0, 256, (7, 5)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(images.png(grey))[..., :3], np.repeat(grey[..., None], 3, 2))
    with pytest.raises(ValueError, match="uint8"):
        images.png(grey.astype(float))


def test_errors_are_named_by_kind():
    truth, prediction = np.array([[1, 0, 2, 3, 0]]), np.array([[0, 2, 3, 3, 0]])
    assert images.errors(truth, prediction).tolist() == [[images.MISSED, images.ADDED, images.CONFUSED, 0, 0]]


def test_window_holds_all_labels_and_stays_on_the_grid():
    a, b = np.zeros((2, 64, 64), np.uint8), np.zeros((2, 3, 64, 64), np.uint8)
    a[0, 0, 10], b[1, 2, 40, 20] = 1, 2
    window = images.window_around([a, b])
    assert window.crop(a).sum() == 1 and window.crop(b).sum() == 2
    assert window.top >= 0 and window.top + window.side <= 64 and window.side >= 48
    assert images.window_around([np.zeros((1, 64, 64), np.uint8)]) == images.Window(0, 0, 64)


def test_shrinking_keeps_the_mean_and_is_never_enlarging():
    image = np.random.default_rng(0).integers(0, 256, (50, 50)).astype(np.uint8)
    small = images.shrink(image, 20)
    assert small.shape == (20, 20) and small.mean() == pytest.approx(image.mean(), abs=0.6)
    assert images.shrink(image, 80) is image


def test_pages_stay_small_whatever_the_scans():
    # Noise is the hardest image to compress: a bound that holds for it holds for all.
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (6, 128, 128)).astype(np.uint8)
    full = np.ones_like(grey)
    none, flat = np.zeros((6, 0, 128, 128), np.uint8), np.zeros((6, 0))
    item = evidence.Evidence(
        "noise",
        0.5,
        image=grey,
        truth=full,
        prediction=full,
        guide_images=none,
        guide_masks=none,
        weights=flat,
        similarity=flat,
        guide_names=flat.astype(str),
    )
    budget = 60_000
    side = evidence.side_within([item], budget)
    assert side < 128
    panel = panels.panel(item, "noise", detail="", most=side, described=CARDIAC)
    assert sum(map(len, re.findall(r"data:[^\"]+", panel))) < 1.45 * budget


def test_the_whole_slice_is_shown_with_the_outline_of_the_crop(tmp_path):
    rng = np.random.default_rng(0)
    image, labels = heart(rng, "ED")
    edges = np.array([[-0.5, -0.5], [-0.5, 31.5], [31.5, 31.5], [31.5, -0.5]])  # row, column: all of 32 pixels
    arrays = {"image": image, "truth": labels, "prediction": labels, "wholes": image[:, :32, :32], "corners": edges}
    drawn = {}
    for name, corners in (("found", edges), ("none", np.zeros((0, 2)))):
        np.savez(tmp_path / f"{name}.npz", **(arrays | {"corners": corners}))
        item = evidence.load(name, tmp_path / f"{name}.npz")
        drawn[name] = panels.panel(item, name, detail="", most=64, described=CARDIAC)
    side = re.search(r'viewBox="0 0 (\d+) \1" role="img"', drawn["found"])[1]
    points = f"0.0,0.0 {side}.0,0.0 {side}.0,{side}.0 0.0,{side}.0"
    assert drawn["found"].count(f'points="{points}" class="crop"') == len(image)
    assert 'class="crop"' not in drawn["none"] and drawn["none"].count("no heart found") == 2 * len(image)
    np.savez(tmp_path / "odd.npz", **(arrays | {"wholes": image[1:]}))
    with pytest.raises(ReportError, match="wholes and corners do not fit the images"):
        evidence.load("odd", tmp_path / "odd.npz")


@pytest.mark.parametrize(("low", "high"), [(0.43, 0.97), (-3210.0, 45.0), (1e-5, 9e-4), (0.0, 40.0), (5.0, 5.0)])
def test_axes_end_on_round_numbers_around_the_values(low, high):
    bounds = axes.limits([low, high, math.nan])
    assert bounds[0] <= low and high <= bounds[1] and bounds[0] < bounds[1]
    at = axes.ticks(*bounds)
    assert 2 <= len(at) <= 12 and bounds[0] - 1e-12 <= at[0] and at[-1] <= bounds[1] + 1e-12
    assert len({axes.tick_label(v, at[1] - at[0]) for v in at}) == len(at)


def test_charts_leave_undefined_values_out_and_survive_having_none():
    nothing = responsive.Values([math.nan])
    drawn = responsive.box_plot(["a", "b"], [("run", [responsive.Values([1.0, math.nan, 3.0]), nothing])], title="HD")
    assert drawn.count('class="dot"') == 2 * 2 and "a run: median 2.00" in drawn and "nan" not in drawn
    for empty in (
        charts.bland_altman([], math.nan, low=math.nan, high=math.nan, title="t", unit="ml"),
        charts.scatter([], x_title="x", y_title="y"),
        charts.curves([charts.Line("a", [])], title="t"),
        responsive.differences([], title="t"),
        charts.bars([], label="l"),
    ):
        assert "nan" not in empty


def test_every_patient_is_named_on_the_axis_of_differences():
    rows = [(f"patient{i:03d}", i / 100 - 0.2) for i in range(60)]
    drawn = responsive.differences(rows, title="t")
    wide, narrow = drawn.split('class="chart narrow"')
    for name, _ in rows:
        assert wide.count(f">{name}</text>") == narrow.count(f">{name}</text>") == 1
    assert wide.count("<g transform=") == 3 and narrow.count("<g transform=") == 1  # columns


def test_patients_outside_the_limits_are_named_beside_their_points():
    points = [charts.Point(float(i), y=float(i % 3), name=f"p{i:02d}") for i in range(9)] + [charts.Point(4, 9, "far")]
    drawn = charts.bland_altman(points, bias=1.0, low=-1.0, high=3.0, title="t", unit="ml")
    assert re.findall(r">([^<]+)</text>", drawn).count("far") == 1 and ">p01</text>" not in drawn


def test_thinning_keeps_the_end_and_the_mean():
    points = [(float(i), float(i % 7)) for i in range(1000)]
    thinned = charts.thin(points, 100)
    assert len(thinned) == 100 and thinned[-1] == points[-1]
    assert np.mean([y for _, y in thinned]) == pytest.approx(3.0, abs=0.1)


def test_numbers_are_written_for_readers():
    assert markup.number(-0.0004) == "0.000" and markup.number(-1.25, 1) == "−1.2"
    assert markup.number(math.nan) == markup.number(None) == "–"
    assert markup.number(12345.6, 0) == "12,300" and markup.number(0.5, 1, signed=True) == "+0.5"
    assert markup.number(0.86949) == "0.869" and markup.number(0.9996) == "1.00" and markup.number(99.96, 2) == "100"
    assert markup.p_value(0.0001) == "< 0.001" and markup.interval(math.nan, 1.0) == ""
    assert markup.element("td", "a < b", class_="n", hidden=False) == '<td class="n">a &lt; b</td>'


def test_a_baseline_whose_slices_are_cut_otherwise_is_drawn_over_its_own(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.integers(0, 256, (1, 64, 64)).astype(np.uint8)}
    arrays |= dict.fromkeys(
        ("truth", "prediction"), np.pad(np.ones((1, 20, 20), np.uint8), ((0, 0), (22, 22), (22, 22)))
    )
    np.savez(tmp_path / "ours.npz", **arrays)
    np.savez(tmp_path / "same.npz", **arrays)
    np.savez(tmp_path / "other.npz", **arrays | {"image": arrays["image"][:, ::-1]})
    images_of = {}
    for name in ("same", "other"):
        item = evidence.load("case", tmp_path / "ours.npz", tmp_path / f"{name}.npz")
        images_of[name] = panels.panel(item, "case", detail="", most=64, described=CARDIAC).count("<image")
    assert images_of == {"same": 1, "other": 2}
