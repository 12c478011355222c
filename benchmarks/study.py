"""Do the frame of the heart and the guides help? Trains the arms of the study on ACDC, one after another.

    python -m benchmarks.study --acdc=PATH_TO_ACDC --output=runs/study            every arm that is not done
    python -m benchmarks.study --acdc=PATH --output=runs/study --only=heart/none  the arms whose name begins so
    python -m benchmarks.study --output=runs/study --list                         the arms, and which are done

An arm that is done is skipped, and one that was stopped is resumed. The tables go to OUTPUT/tables.md and the curve to
OUTPUT/patients.svg. docs/STUDY.md reads them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A size of minutes: METHOD's trials, a U-Net of 16 base channels at 64 pixels, 800 steps of batch 12.
SETTING = (
    "--config.dataset.image_size=64",
    "--config.backbone.options.base_channels=16",
    "--config.backbone.options.deep_supervision=False",
    "--config.retriever.image_size=64",
    "--config.train.batch_size=12",
    "--config.optim.lr_backbone=3e-3",
    "--config.train.num_steps=800",
    "--config.train.eval_every=800",
    "--config.train.checkpoint_every=200",
)
GUIDES = {
    "none": ("--config.retrieval.enabled=False",),
    "learnt": (),
    "random": ("--config.retrieval.strategy=random",),
    "oracle": ("--config.retrieval.strategy=oracle",),
}
FUSIONS = ("prototype", "cross_attention", "concat", "adapter")
PATIENTS = (4, 8, 16, 32, 64)
SEEDS = (0, 1, 2)


class Arm(NamedTuple):
    """One run of the study."""

    frame: str
    guides: str
    fusion: str
    patients: int
    seed: int

    @property
    def name(self) -> str:
        """'heart/learnt-prototype/8/seed0', also its folder."""
        guides = self.guides if self.guides == "none" else f"{self.guides}-{self.fusion}"
        return f"{self.frame}/{guides}/{self.patients}/seed{self.seed}"

    @property
    def options(self) -> list[str]:
        """The options of run.py."""
        options = [*SETTING, *GUIDES[self.guides], f"--config.dataset.frame={self.frame}", f"--config.seed={self.seed}"]
        if self.guides != "none":
            options.append(f"--config.fusion.name={self.fusion}")
        if self.patients < max(PATIENTS):  # 64 are all that fold 0 trains on
            options.append(f"--config.dataset.max_train_patients={self.patients}")
        return options


def arms() -> Iterator[Arm]:
    """The study: those that decide first, with three seeds where it matters."""
    for patients, seed, frame in itertools.product((64, 8), SEEDS, ("heart", "whole")):
        yield Arm(frame, "none", fusion="", patients=patients, seed=seed)
    for patients, seed, guides in itertools.product((8, 64), SEEDS, ("learnt", "random")):
        yield Arm("heart", guides, fusion="prototype", patients=patients, seed=seed)
    for patients, guides, fusion in itertools.product((8, 64), ("learnt", "oracle"), FUSIONS):
        arm = Arm("heart", guides, fusion=fusion, patients=patients, seed=0)
        if (guides, fusion) != ("learnt", "prototype"):
            yield arm
    for patients, frame in itertools.product((4, 16, 32), ("heart", "whole")):
        yield Arm(frame, "none", fusion="", patients=patients, seed=0)
    for patients in (4, 16, 32):
        yield Arm("heart", "learnt", fusion="prototype", patients=patients, seed=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--acdc", help="folder of the ACDC download")
    parser.add_argument("--output", required=True, help="folder of the runs and tables")
    parser.add_argument("--only", default="", help="run the arms whose name begins so")
    parser.add_argument("--list", action="store_true", help="name the arms and run none")
    options = parser.parse_args(arguments)
    output = pathlib.Path(options.output)
    chosen = [arm for arm in arms() if arm.name.startswith(options.only)]
    if options.list:
        print("\n".join(f"{'done' if result(output, arm) else '    '}  {arm.name}" for arm in chosen))
        return 0
    if not options.acdc:
        parser.error("--acdc is needed to run arms")
    for arm in chosen:
        if result(output, arm) is None:
            run(output, arm, options.acdc)
            write(output)
    write(output)
    return 0


def run(output: pathlib.Path, arm: Arm, acdc: str) -> None:
    """Trains and evaluates one arm; what it says goes to its log.txt."""
    folder = output / arm.name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "run.py", "--config=configs/acdc_unet.py", f"--workdir={folder.absolute()}"]
    command += [f"--config.dataset.manual_dir={acdc}", f"--config.dataset.data_dir={output.absolute() / 'data'}"]
    print(arm.name, flush=True)
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        done = subprocess.run([*command, *arm.options], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{arm.name} ended with status {done.returncode}; see {folder / 'log.txt'}")


def result(output: pathlib.Path, arm: Arm) -> dict[str, Any] | None:
    """The summary of an arm that is done."""
    file = output / arm.name / "evaluation" / "validation" / "summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def write(output: pathlib.Path) -> None:
    """Writes the tables and the curve of what is done."""
    done = [(arm, summary) for arm in arms() if (summary := result(output, arm))]
    lines = ["| frame | guides | fusion | patients | seeds | Dice of each | mean | nearest guide's mask |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    key = lambda pair: pair[0]._replace(seed=0)  # noqa: E731
    for arm, group in itertools.groupby(sorted(done, key=key), key):
        own = list(group)
        dice = [summary["mean"]["dice"] for _, summary in own]
        nearest = [s["retrieval"].get("retrieval_dice_1") for _, s in own if s["retrieval"]]
        cells = [arm.frame, arm.guides, arm.fusion or "-", str(arm.patients), ", ".join(str(a.seed) for a, _ in own)]
        cells += [", ".join(f"{x:.4f}" for x in dice), f"**{np.mean(dice):.4f}**"]
        cells.append(f"{np.mean(nearest):.3f}" if nearest else "-")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| arm | real | random | blank | permuted | oracle | verdict |", "|---|---|---|---|---|---|---|"]
    for arm, summary in done:
        if certificate := summary.get("retrieval_certificate"):
            figures = [f"{certificate[kind]:.4f}" for kind in ("real", "random", "blank", "permuted", "oracle")]
            lines.append(f"| {arm.name} | {' | '.join(figures)} | {certificate['verdict']} |")
    (output / "tables.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(done, output / "patients.svg")


def plot(done: Sequence[tuple[Arm, dict[str, Any]]], file: pathlib.Path) -> None:
    """Dice against labelled patients, a curve an arm, a dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    curves: dict[str, list[tuple[int, float]]] = {}
    for arm, summary in done:
        label = f"{arm.frame}, {arm.guides} {arm.fusion}".strip()
        curves.setdefault(label, []).append((arm.patients, summary["mean"]["dice"]))
    for label, points in curves.items():
        x = sorted({n for n, _ in points})
        (line,) = axes.plot(x, [np.mean([d for n, d in points if n == at]) for at in x], label=label)
        axes.plot(*zip(*points, strict=True), "o", color=line.get_color(), markersize=3)
    axes.set_xscale("log", base=2)
    axes.set_xticks(PATIENTS, [str(n) for n in PATIENTS])
    axes.set_xlabel("labelled patients")
    axes.set_ylabel("3-D Dice, mean of RV, MYO and LV")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
