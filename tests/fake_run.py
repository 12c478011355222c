"""A run folder with phantom hearts, for tests of the report."""

import csv
import json
import math
import pathlib

import numpy as np
from scipy import ndimage

from jras_jax.data import STRUCTURES
from jras_jax.evaluation import metrics

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
    """An evidence file as evaluation writes it, of crops in a frame."""
    arrays = {"image": image, "truth": truth, "prediction": prediction, "dice": np.float32(dice)}
    corners = np.array([[-0.5, 3.0], [20.0, -0.5], [image.shape[-1] / 2, 30.0], [8.0, image.shape[-1] / 2]])
    arrays |= {"wholes": image[:, ::2, ::2], "corners": corners}
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
    """A run folder as training and evaluation leave it, with phantom hearts; `noise` spoils its predictions.

    A baseline keeps the evidence of the cases that the run above it keeps, as an evaluation does.
    """
    folder.mkdir(parents=True)
    place = folder / "evaluation" / "validation"
    (place / "evidence").mkdir(parents=True)
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
            jitter = [
                float(rng.normal()) for _ in range(3)
            ]  # drawn with and without guides, so that hearts are the same
            shared = {
                "patient": f"patient{number:03d}",
                "phase": phase,
                "group": ("NOR", "DCM", "HCM", "RV")[number % 4],
                "vendor": ("Siemens", "Philips")[number % 2],
                "centre": "",
                "unit": unit,
                "expected_dice": 0.3 + 0.7 * dice + 0.02 * jitter[2],
                "entropy": 0.6 - 0.5 * dice + 0.02 * jitter[0],
                "guide_agreement": 0.4 + 0.4 * dice + 0.05 * jitter[1] if guides else math.nan,
            }
            for name, score in scores.items():
                fields = ("dice", "jaccard", "hd", "hd95", "assd", "volume_ml", "reference_volume_ml", "voxels")
                fields += ("reference_voxels", "empty")
                rows.append(shared | {"structure": name} | {f: getattr(score, f) for f in fields})
            masks = (truth.transpose(1, 2, 0), prediction.transpose(1, 2, 0))
            thirds += [{"patient": shared["patient"], "phase": phase} | r for r in metrics.position_scores(*masks)]
            slices.append(metrics.paper_2d_scores(*masks, size=SIZE))
            kept.append((dice, f"{shared['patient']}_{phase}", image, truth, prediction))
    metrics.write_cases_csv(place / "cases.csv", rows)
    metrics.write_cases_csv(place / "positions.csv", thirds, ("patient", "phase", "structure", "dice"))
    kept.sort(key=lambda k: k[0])
    above = {file.stem for file in (folder.parent / "evaluation" / "validation" / "evidence").glob("*.npz")}
    wanted = kept[: shown // 2] + kept[len(kept) - (shown - shown // 2) :]
    for dice, name, image, truth, prediction in [k for k in kept if k[1] in above] if above else wanted:
        path = place / "evidence" / f"{name}.npz"
        write_evidence(path, rng, image=image, truth=truth, prediction=prediction, dice=dice, guides=guides)
    write_records(folder, rows, guides=guides, unit=unit)
    file = place / "summary.json"
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
    columns = ["step", "loss", "dice_loss", "ce_loss", "grad_norm", "lr_backbone", "slices_per_s"]
    columns += ["val/dice", "val/dice_RV"]
    columns += ["val/dice_MYO", "val/dice_LV"] + (["val/retrieval_dice_1", "val/weight_entropy"] if guides else [])
    with (folder / "metrics.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, columns, restval="")
        writer.writeheader()
        for step in range(10, 401, 10):
            fall = math.exp(-step / 120)
            row = {"step": step, "loss": 0.2 + fall, "dice_loss": 0.1 + 0.6 * fall, "ce_loss": 0.1 + 0.4 * fall}
            row |= {"grad_norm": 0.5 + fall, "lr_backbone": 1e-3 * (1 - step / 400), "slices_per_s": 160 + step % 30}
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
    (folder / "evaluation" / "validation" / "summary.json").write_text(json.dumps(summary))
