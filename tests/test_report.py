"""The report of a run: one page from the files of its folder, whatever of them is missing."""

import csv
import html.parser
import io
import json
import math
import pathlib
import re
import shutil
from typing import ClassVar

import numpy as np
import pytest
from scipy import ndimage

from jras_jax.data import STRUCTURES
from jras_jax.errors import UserError
from jras_jax.evaluation import metrics, statistics
from jras_jax.report import __main__ as program
from jras_jax.report import (
    analysis,
    axes,
    cases,
    charts,
    evidence,
    files,
    images,
    markup,
    process,
    results,
    write_report,
)

SIZE, SLICES = 48, 5


def heart(rng: np.random.Generator, phase: str) -> tuple[np.ndarray, np.ndarray]:
    """A phantom heart: image (Z, S, S) uint8 and labels (Z, S, S), LV a disk in a ring, RV a crescent to its left."""
    rows, cols = np.mgrid[:SIZE, :SIZE].astype(float)
    centre = SIZE / 2 + rng.uniform(-2, 2, 2)
    scale = SIZE / 48 * (0.8 if phase == "ES" else 1.0) * rng.uniform(0.9, 1.1)
    labels = np.zeros((SLICES, SIZE, SIZE), np.uint8)
    for z in range(SLICES):
        inner = scale * 7 * (1 - 0.7 * z / SLICES)
        distance = np.hypot(rows - centre[0], cols - centre[1])
        right = np.hypot(rows - centre[0], cols - centre[1] + inner + 6 * scale)
        labels[z][right < inner + 1.5 * scale] = STRUCTURES["RV"]
        labels[z][distance < inner + 3.5 * scale] = STRUCTURES["MYO"]
        labels[z][distance < inner] = STRUCTURES["LV"]
    grey = np.choose(labels, [60, 190, 90, 210]) + rng.normal(0, 12, labels.shape)
    return np.clip(ndimage.gaussian_filter(grey, (0, 0.6, 0.6)), 0, 255).astype(np.uint8), labels


def blurred(rng: np.random.Generator, labels: np.ndarray, amount: float) -> np.ndarray:
    """Labels as an imperfect network gives them: the class with the largest blurred, noisy share of each pixel."""
    shares = np.stack([ndimage.gaussian_filter((labels == c).astype(float), (0, 1, 1)) for c in range(4)])
    near = ndimage.gaussian_filter((labels > 0).astype(float), (0, 3, 3))
    noise = ndimage.gaussian_filter(rng.normal(size=shares.shape), (0, 0, 2, 2)) * 6 * near
    return np.argmax(shares + amount * noise, 0).astype(np.uint8)


def write_evidence(path, rng, image, truth, prediction, dice, guides):
    """An evidence file as evaluation writes it."""
    arrays = {"image": image, "truth": truth, "prediction": prediction, "dice": np.float32(dice)}
    if guides:
        others = [heart(rng, "ED") for _ in range(guides)]
        names = [[f"patient{k:03d} ED slice {z + 1}" for k in range(guides)] for z in range(SLICES)]
        similarity = np.sort(rng.uniform(0.6, 0.95, (SLICES, guides)).astype(np.float32))[:, ::-1]
        weights = np.exp(similarity / 0.1)
        arrays |= {
            "guide_images": np.stack([o[0] for o in others], 1),
            "guide_masks": np.stack([o[1] for o in others], 1),
            "weights": (weights / weights.sum(1, keepdims=True)).astype(np.float32),
            "similarity": similarity,
            "guide_names": np.array(names),
        }
    np.savez_compressed(path, **arrays)


def write_fake_run(
    folder: pathlib.Path, *, noise: float = 1.0, guides: int = 2, patients: int = 8, shown: int = 4, unit: str = "mm"
) -> pathlib.Path:
    """A run folder as training and evaluation leave it, with phantom hearts; `noise` spoils its predictions."""
    folder.mkdir(parents=True)
    (folder / "evaluation" / "evidence").mkdir(parents=True)
    rng, spoil = np.random.default_rng(0), np.random.default_rng(1)
    rows, kept, thirds, slices = [], [], [], []
    for number in range(patients):
        for phase in ("ED", "ES"):
            image, truth = heart(rng, phase)
            prediction = blurred(spoil, truth, noise * spoil.uniform(0.1, 0.6))
            if number == 0 and phase == "ES":
                prediction[prediction == STRUCTURES["RV"]] = 0  # a structure that was not found
            spacing = (1.4, 1.4, 8.0) if unit == "mm" else None
            scores = metrics.score_structures(truth.transpose(1, 2, 0), prediction.transpose(1, 2, 0), spacing)
            dice = float(np.mean([s.dice for s in scores.values()]))
            shared = {
                "patient": f"patient{number:03d}",
                "phase": phase,
                "group": ("NOR", "DCM", "HCM", "RV")[number % 4],
                "vendor": ("Siemens", "Philips")[number % 2],
                "centre": "",
                "unit": unit,
                "entropy": 0.6 - 0.5 * dice + 0.02 * float(rng.normal()),
                "guide_agreement": 0.4 + 0.4 * dice + 0.05 * float(rng.normal()) if guides else math.nan,
            }
            for name, score in scores.items():
                fields = ("dice", "jaccard", "hd", "hd95", "assd", "volume_ml", "reference_volume_ml", "voxels")
                fields += ("reference_voxels", "empty")
                rows.append(shared | {"structure": name} | {f: getattr(score, f) for f in fields})
            masks = (truth.transpose(1, 2, 0), prediction.transpose(1, 2, 0))
            thirds += [{"patient": shared["patient"], "phase": phase} | r for r in metrics.position_scores(*masks)]
            slices.append(metrics.paper_2d_scores(*masks, size=SIZE))
            kept.append((dice, f"{shared['patient']}_{phase}", image, truth, prediction))
    metrics.write_cases_csv(folder / "evaluation" / "cases.csv", rows)
    metrics.write_cases_csv(folder / "evaluation" / "positions.csv", thirds, ("patient", "phase", "structure", "dice"))
    kept.sort(key=lambda k: k[0])
    for dice, name, image, truth, prediction in kept[: shown // 2] + kept[len(kept) - (shown - shown // 2) :]:
        path = folder / "evaluation" / "evidence" / f"{name}.npz"
        write_evidence(path, rng, image, truth, prediction, dice, guides)
    write_records(folder, rows, guides, unit)
    file = folder / "evaluation" / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"paper_2d": metrics.aggregate_paper_2d(slices)}))
    return folder


def write_records(folder: pathlib.Path, rows, guides: int, unit: str) -> None:
    """config.json, run.json, splits.json, metrics.csv and summary.json of a fake run."""
    retrieval = {"enabled": guides > 0, "strategy": "top_k", "top_k": guides, "temperature": 0.1, "exclude": "patient"}
    config = {
        "name": "phantom_unet" if guides else "phantom_unet_baseline",
        "seed": 0,
        "dataset": {"name": "phantom", "image_size": SIZE, "fold": 0},
        "backbone": {"name": "unet", "variant": "", "options": {}},
        "retrieval": retrieval,
        "fusion": {"name": "prototype", "options": {}},
        "train": {"num_steps": 400, "batch_size": 8},
    }
    (folder / "config.json").write_text(json.dumps(config))
    facts = {
        "command": "python run.py --config=configs/demo.py --workdir=runs/demo",
        "started": "2026-11-24T10:00:00+00:00",
        "duration_s": 754.2,
        "git_revision": "0123456789ab",
        "python": "3.11.2",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "device": "1 x cpu (cpu)",
        "seed": 0,
        "parameters": {"backbone": 1_234_567},
        "warnings": [],
    }
    (folder / "run.json").write_text(json.dumps(facts))
    people = sorted({r["patient"] for r in rows})
    (folder / "splits.json").write_text(json.dumps({"train": ["patient100", "patient101"], "validation": people}))
    columns = ["step", "loss", "dice_loss", "ce_loss", "grad_norm", "lr", "slices_per_s", "val/dice", "val/dice_RV"]
    columns += ["val/dice_MYO", "val/dice_LV"] + (["val/retrieval_dice_1", "val/weight_entropy"] if guides else [])
    with (folder / "metrics.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, columns, restval="")
        writer.writeheader()
        for step in range(10, 401, 10):
            fall = math.exp(-step / 120)
            row = {"step": step, "loss": 0.2 + fall, "dice_loss": 0.1 + 0.6 * fall, "ce_loss": 0.1 + 0.4 * fall}
            row |= {"grad_norm": 0.5 + fall, "lr": 1e-3 * (1 - step / 400), "slices_per_s": 160 + step % 30}
            if step % 100 == 0:
                row |= {c: 0.9 - fall / 2 for c in columns if c.startswith("val/")}
            writer.writerow(row)
    summary = metrics.aggregate(rows) | {
        "protocol": "3-D, per volume, native grid",
        "unit": unit,
        "split": "validation",
        "checkpoint_step": 400,
        "gallery": {"patients": 2, "slices": 40},
        "warnings": [],
    }
    if guides:
        values = {"dice_1": 0.41, "dice_k": 0.44, "random": 0.18, "pixel": 0.37, "oracle": 0.67, "weight_entropy": 0.5}
        summary["retrieval"] = values
    (folder / "evaluation" / "summary.json").write_text(json.dumps(summary))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run and its baseline."""
    root = tmp_path_factory.mktemp("runs")
    write_fake_run(root / "run")
    write_fake_run(root / "run" / "baseline", noise=1.6, guides=0)
    return root


@pytest.fixture(scope="module")
def page(folders):
    return write_report(folders / "run").read_text(encoding="utf-8")


class Outline(html.parser.HTMLParser):
    """Checks that tags close in order, and collects ids, links and the text."""

    VOID: ClassVar = {"meta", "link", "input", "br", "hr"}

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.links, self.text, self.attributes = [], [], [], [], []
        self.feed(page)
        assert not self.open
        self.text = re.sub(r"\s+", " ", "".join(self.text))

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *a) for a in attrs]
        self.ids += [v for k, v in attrs if k == "id"]
        self.links += [v for k, v in attrs if k == "href" and tag == "a"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text.append(data)


def test_page_is_whole_and_asks_nothing_of_a_network(page):
    outline = Outline(page)
    assert len(set(outline.ids)) == len(outline.ids)
    assert outline.links and all(link[1:] in outline.ids for link in outline.links)
    for tag, name, value in outline.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
            assert value.startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"@import|url\(", page)
    assert "default-src 'none'" in page


def test_page_speaks_to_those_who_do_not_see_it(page):
    labels = [v for tag, k, v in Outline(page).attributes if tag == "svg" and k == "aria-label"]
    assert len(labels) == page.count('role="img"') and all(len(label) > 10 for label in labels)
    ids = Outline(page).ids
    for target in re.findall(r'(?:aria-labelledby|for)="([^"]+)"', page):
        assert target in ids
    assert re.findall(r"<h1>", page) == ["<h1>"]


def test_headline_states_the_statistics_of_the_rows(folders, page):
    rows = metrics.read_cases_csv(folders / "run" / "evaluation" / "cases.csv")
    text = Outline(page).text
    for measure, digits in (("dice", 3), ("hd95", 2), ("assd", 2)):
        found = statistics.summarise([r[measure] for r in rows], [r["patient"] for r in rows])
        assert f"{found.mean:.{digits}f}" in text
        assert f"95% interval {found.low:.{digits}f} to {found.high:.{digits}f}" in text
    assert "1 structure not found" in text and "no distance: it is not in the mean distances" in text


def test_slice_positions_and_the_papers_figure_stand_beside_ours(folders, page):
    rows = metrics.read_cases_csv(folders / "run" / "evaluation" / "positions.csv")
    text = Outline(page).text
    found = text.index("Dice by slice position")
    for position, name in (("base", "Base"), ("mid", "Middle"), ("apex", "Apex")):
        own = [r for r in rows if r["position"] == position and r["structure"] == "RV"]
        mean = statistics.summarise([r["dice"] for r in own]).mean
        found = text.index(f"{name}{mean:.3f}", found)  # in this order
    paper = json.loads((folders / "run" / "evaluation" / "summary.json").read_text())["paper_2d"]
    assert f"{paper['dice_2d']:.4f} ± {paper['dice_2d_sd']:.4f}" in text


def test_report_is_the_same_for_the_same_files(folders, page, tmp_path):
    again = write_report(
        folders / "run", baseline_dir=folders / "run" / "baseline", output=tmp_path / "deep" / "r.html"
    )
    assert again == tmp_path / "deep" / "r.html"
    assert again.read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("baseline", "No evaluated baseline was given"),
        ("metrics.csv", "no training curves"),
        ("run.json", "code, versions and device are not known"),
        ("splits.json", "who trained and who was scored is not known"),
        ("config.json", "the settings are not known"),
        ("evaluation/cases.csv", "no intervals, tests, breakdowns or plots"),
        ("evaluation/evidence", "there are no slices to show"),
    ],
)
def test_a_missing_piece_is_left_out_with_a_sentence(folders, tmp_path, missing, sentence):
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run, ignore=shutil.ignore_patterns(*([missing] if "/" not in missing else [])))
    if (run / missing).is_dir():
        shutil.rmtree(run / missing)
    else:
        (run / missing).unlink(missing_ok=True)
    text = Outline(write_report(run).read_text(encoding="utf-8")).text
    assert sentence in text
    assert "nan" not in re.findall(r"[A-Za-z]+", text) and "None" not in text


def test_a_run_without_evaluation_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"run\.py --mode=evaluate"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "nowhere")


def test_damaged_files_are_named(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run)
    file = next((run / "evaluation" / "evidence").glob("*.npz"))
    whole = dict(np.load(file))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=file.name):
        write_report(run)
    np.savez(file, **(whole | {"truth": whole["truth"][:-1]}))
    with pytest.raises(UserError, match="truth has shape"):
        write_report(run)
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        write_report(run)


def test_text_from_files_cannot_become_markup(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run)
    facts = json.loads((run / "run.json").read_text())
    facts |= {"device": "<script>alert(1)</script>", "warnings": ["<b>leak</b>"]}
    (run / "run.json").write_text(json.dumps(facts))
    table = run / "evaluation" / "cases.csv"
    table.write_text(table.read_text().replace("patient003", "<img src=x onerror=y>"))
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img" not in page and "<b>leak" not in page
    assert "&lt;b&gt;leak" in page


def test_voxels_are_never_called_millimetres(tmp_path):
    page = write_report(write_fake_run(tmp_path / "run", unit="voxel", patients=2)).read_text(encoding="utf-8")
    text = Outline(page).text
    assert "distances are in voxels" in text and "Myocardial mass" not in text
    assert not re.search(r"\b(mm|ml)\b", text)


def test_one_patient_gets_no_test_and_no_crash(tmp_path):
    write_fake_run(tmp_path / "run", patients=1, shown=1)
    write_fake_run(tmp_path / "run" / "baseline", patients=1, shown=0, guides=0)
    text = Outline(write_report(tmp_path / "run").read_text(encoding="utf-8")).text
    assert "not given for fewer than 6 patients" in text


def test_program_writes_and_explains_itself(folders, tmp_path, capsys):
    assert program.main([str(folders / "run"), f"--output={tmp_path / 'r.html'}"]) == 0
    assert (tmp_path / "r.html").is_file()
    assert program.main([str(tmp_path)]) == 1
    assert "--mode=evaluate" in capsys.readouterr().err


def test_comparison_by_hand():
    def row(patient, dice, phase="ED"):
        return {"patient": patient, "phase": phase, "structure": "LV", "dice": dice, "hd95": math.nan, "assd": 1.0}

    ours = [row("a", 0.9), row("b", 0.7), row("b", 0.9, "ES"), row("c", 0.5)]
    theirs = [row("a", 0.8), row("b", 0.8), row("b", 0.6, "ES"), row("d", 0.5)]
    dice = analysis.compare(ours, theirs)["dice"]
    assert dice.difference.mean == pytest.approx((0.1 - 0.1 + 0.3) / 3)
    assert dict(dice.per_patient) == pytest.approx({"a": 0.1, "b": 0.1})
    assert dice.n_unmatched == 2 and math.isnan(dice.p)


@pytest.mark.parametrize(
    ("low", "high", "p", "words"),
    [
        (0.01, 0.03, 0.01, "excludes 0, and Holm"),
        (0.01, 0.03, 0.2, "weak evidence"),
        (0.01, 0.03, math.nan, "no test is made"),
        (-0.01, 0.03, 0.01, "do not show which is better"),
    ],
)
def test_verdict_claims_no_more_than_interval_and_test(low, high, p, words):
    summary = statistics.Summary(12, 0, 4, 0.02, 0.1, 0.02, low, high)
    assert words in results.verdict(analysis.Paired(summary, {}, p, 0))


def test_retriever_is_not_praised_for_chance():
    assert "no better than a random slice" in process.reading({"dice_1": 0.17, "random": 0.18})
    assert "below plain pixel" in process.reading({"dice_1": 0.3, "pixel": 0.37})
    assert "50%" in process.reading({"dice_1": 0.4, "random": 0.2, "oracle": 0.6})


def test_catch_counts_failures_among_the_most_uncertain():
    def case(dice):
        return analysis.Case("", "", "", "", "", dice, 0.0, {}, 0, 0.0, 0.0)

    found = [case(d) for d in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
    assert analysis.catch(found, [9, 1, 8, 0, 0, 0, 0, math.nan]) == analysis.Catch(2, 1, 2)
    assert analysis.catch(found, [9, 8, 1, 0, 0, 0, 0, 0]).caught == 2


def test_evidence_is_taken_from_both_ends():
    found = [analysis.Case(f"c{i:02d}", "", "", "", "", i / 30, 0.0, {}, 0, 0.0, 0.0) for i in range(30)]
    chosen = cases.choose([c.name for c in reversed(found)], found)
    assert chosen == [f"c{i:02d}" for i in [*range(6), *range(24, 30)]]


def inside(path: str, size: int) -> np.ndarray:
    """Pixels whose centre lies inside a contour path by the even-odd rule."""
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
    index = grey % 4
    np.testing.assert_array_equal(decoded(images.png(index, evidence.ERROR_PALETTE)), evidence.ERROR_PALETTE[index])
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
    item = evidence.Evidence("noise", 0.5, grey, full, full, none, none, flat, flat, flat.astype(str))
    budget = 60_000
    side = evidence.side_within([item], budget)
    assert side < 128
    panel = evidence.panel(item, "noise", "", side)
    assert sum(map(len, re.findall(r"data:[^\"]+", panel))) < 1.45 * budget


@pytest.mark.parametrize(("low", "high"), [(0.43, 0.97), (-3210.0, 45.0), (1e-5, 9e-4), (0.0, 40.0), (5.0, 5.0)])
def test_axes_end_on_round_numbers_around_the_values(low, high):
    bounds = axes.limits([low, high, math.nan])
    assert bounds[0] <= low and high <= bounds[1] and bounds[0] < bounds[1]
    at = axes.ticks(*bounds)
    assert 2 <= len(at) <= 12 and bounds[0] - 1e-12 <= at[0] and at[-1] <= bounds[1] + 1e-12
    assert len({axes.tick_label(v, at[1] - at[0]) for v in at}) == len(at)


def test_charts_leave_undefined_values_out_and_survive_having_none():
    nothing = charts.Values([math.nan])
    drawn = charts.box_plot(["a", "b"], [("run", [charts.Values([1.0, math.nan, 3.0]), nothing])], title="HD")
    assert drawn.count('class="dot"') == 2 and "a run: median 2.000" in drawn and "nan" not in drawn
    for empty in (
        charts.bland_altman([], math.nan, math.nan, math.nan, title="t", unit="ml"),
        charts.scatter([], x_title="x", y_title="y"),
        charts.curves([charts.Line("a", [])], title="t"),
        charts.differences([], title="t"),
        charts.bars([], label="l"),
    ):
        assert "nan" not in empty


def test_thinning_keeps_the_end_and_the_mean():
    points = [(float(i), float(i % 7)) for i in range(1000)]
    thinned = charts.thin(points, 100)
    assert len(thinned) == 100 and thinned[-1] == points[-1]
    assert np.mean([y for _, y in thinned]) == pytest.approx(3.0, abs=0.1)


def test_numbers_are_written_for_readers():
    assert markup.number(-0.0004) == "0.000" and markup.number(-1.25, 1) == "−1.2"
    assert markup.number(math.nan) == markup.number(None) == "–"
    assert markup.number(12345.6, 0) == "12,346" and markup.number(0.5, 1, signed=True) == "+0.5"
    assert markup.p_value(0.0001) == "< 0.001" and markup.interval(math.nan, 1.0) == ""
    assert markup.element("td", "a < b", class_="n", hidden=False) == '<td class="n">a &lt; b</td>'


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_text_and_lines_stand_out_in_both_schemes(page):
    style = page[page.index("<style>") : page.index("</style>")]
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part)) for part in style.split("@media", 2)[:2])
    for colours in (light, light | dark):
        for ground in ("ground", "raised"):
            for text in ("ink", "quiet", "accent", "second"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
            for line in ("third", "fourth", "fifth"):
                assert contrast(colours[line], colours[ground]) >= 3.0, (line, ground)
        assert contrast(colours["ink"], colours["warn-ground"]) >= 4.5


def test_run_folder_reads_what_is_there(folders):
    run = files.read(folders / "run")
    assert run.name == "phantom_unet" and run.unit == "mm" and len(run.evidence) == 4
    assert [step for step, _ in run.metrics["val/dice"]] == [100, 200, 300, 400]
    assert set(run.evidence) <= {files.case_name(r) for r in run.cases}


def test_mixed_units_are_not_averaged(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run, ignore=shutil.ignore_patterns("baseline"))
    rows = metrics.read_cases_csv(run / "evaluation" / "cases.csv")
    rows = [r | {"unit": "voxel"} if r["patient"] == "patient000" else r for r in rows]
    metrics.write_cases_csv(run / "evaluation" / "cases.csv", rows)
    summary = json.loads((run / "evaluation" / "summary.json").read_text()) | {"unit": "mixed"}
    (run / "evaluation" / "summary.json").write_text(json.dumps(summary))
    assert all(math.isnan(r["hd95"]) for r in files.read(run).cases)
    assert "mixed, not averaged" in Outline(write_report(run).read_text(encoding="utf-8")).text
