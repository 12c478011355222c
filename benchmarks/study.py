"""Do the frame of the heart and the guides help? Trains the arms of the study on ACDC, one after another.

    python -m benchmarks.study --acdc=PATH_TO_ACDC --output=runs/study            every arm that is not done
    python -m benchmarks.study --acdc=PATH --output=runs/study --only=heart/none  the arms whose name begins so
    python -m benchmarks.study --output=runs/study --list                         the arms, and which are done
    python -m benchmarks.study --acdc=PATH --output=runs/study --jobs=12          twelve at a time, for an accelerator

An arm that is done is skipped, and one that was stopped is resumed. The tables go to OUTPUT/tables.md and the curve to
OUTPUT/patients.svg. docs/STUDY.md reads them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import json
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TextIO

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
    "pixels": (
        "--config.retriever.variant=pixels",
        "--config.retriever.dim=1024",
        "--config.retrieval.overlap_weight=0",
    ),
    "random": ("--config.retrieval.strategy=random",),
    "oracle": ("--config.retrieval.strategy=oracle",),
}
# What was tried to make guides help, beside the kind of fusion.
VARIANTS = {
    "": (),
    "k8": ("--config.retrieval.top_k=8",),
    "k16": ("--config.retrieval.top_k=16",),
    "dropped": ("--config.fusion.blank_share=0.5",),  # half of the training queries see no guide
    "matched": ("--config.retrieval.strategy=gumbel_top_k",),  # guides in training are drawn, so worse than the best
    "taught": ("--config.fusion.guide_gradient=True",),  # the encoder learns from the guides' features too
    "without_DCM": ("--config.dataset.leave_out=('DCM',)",),
}
PROTOCOLS = {"patient": (), "paper": ("--config.protocol=paper",)}
GROWN, TRAIN = "validation+gallery=gallery64", "validation+gallery=train"  # names of second evaluations
WRITING = threading.Lock()
PATIENTS = (4, 8, 16, 32, 64)
SEEDS = (0, 1, 2)


class Arm(NamedTuple):
    """One run of the study."""

    frame: str
    guides: str
    fusion: str = ""
    patients: int = 64
    seed: int = 0
    variant: str = ""
    protocol: str = "patient"

    @property
    def kind(self) -> str:
        """All but the seed: 'heart/learnt-prototype/8'."""
        guides = "-".join(filter(None, (self.guides, self.fusion, self.variant)))
        frame = self.frame if self.protocol == "patient" else f"{self.protocol}_{self.frame}"
        return f"{frame}/{guides}/{self.patients}"

    @property
    def name(self) -> str:
        """'heart/learnt-prototype/8/seed0', also its folder."""
        return f"{self.kind}/seed{self.seed}"

    @property
    def second(self) -> str:
        """The evaluation with another gallery; '' if there is none.

        An arm of few patients, or without a pathology, gets all 64 training patients. One of the paper's protocol,
        whose guides are the evaluated slices themselves, gets the training slices.
        """
        if self.guides == "none":
            return ""
        if self.protocol == "paper":
            return TRAIN
        return "" if self.patients == max(PATIENTS) and not self.variant.startswith("without") else GROWN

    @property
    def options(self) -> list[str]:
        """The options of run.py."""
        options = [*SETTING, *GUIDES[self.guides], *VARIANTS[self.variant], *PROTOCOLS[self.protocol]]
        options += [f"--config.dataset.frame={self.frame}", f"--config.seed={self.seed}"]
        if self.guides != "none":
            options.append(f"--config.fusion.name={self.fusion}")
        if self.patients < max(PATIENTS):  # 64 are all that fold 0 trains on
            options.append(f"--config.dataset.max_train_patients={self.patients}")
        return options


def arms() -> Iterator[Arm]:
    """The study: those that decide first, with three seeds where it matters."""
    for patients in (8, 64):
        for seed in SEEDS:
            yield Arm("heart", "none", patients=patients, seed=seed)
        for seed, fusion in itertools.product(SEEDS, ("prototype", "prior")):
            yield Arm("heart", "learnt", fusion, patients=patients, seed=seed)
        yield Arm("whole", "none", patients=patients)
    for patients, fusion in itertools.product((8, 64), ("cross_attention", "concat", "adapter")):
        yield Arm("heart", "learnt", fusion, patients=patients)
    for seed, guides in itertools.product(SEEDS, ("random", "pixels")):
        yield Arm("heart", guides, "prototype", patients=8, seed=seed)
    for patients, seed in itertools.product((8, 64), SEEDS[1:]):
        yield Arm("whole", "none", patients=patients, seed=seed)
    for variant, fusion in itertools.product(("k8", "k16", "dropped", "matched"), ("prototype", "prior")):
        yield Arm("heart", "learnt", fusion, patients=8, variant=variant)
    for patients, fusion in itertools.product((8, 64), ("prototype", "prior")):
        yield Arm("heart", "oracle", fusion, patients=patients)
    for guides, fusion in (("none", ""), ("learnt", "prototype"), ("learnt", "prior")):
        yield Arm("heart", guides, fusion, variant="without_DCM")
    for guides, fusion in (("none", ""), ("learnt", "concat"), ("learnt", "prototype")):
        yield Arm("whole", guides, fusion, protocol="paper")
    for patients in (4, 16, 32):
        yield Arm("heart", "none", patients=patients)
        yield Arm("heart", "learnt", "prototype", patients=patients)
        yield Arm("whole", "none", patients=patients)
    for patients, guides in itertools.product((64,), ("random", "pixels")):
        yield Arm("heart", guides, "prototype", patients=patients)
    yield Arm("heart", "learnt", "prototype", patients=8, variant="taught")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--acdc", help="folder of the ACDC download")
    parser.add_argument("--output", required=True, help="folder of the runs and tables")
    parser.add_argument("--only", default="", help="run the arms whose name begins so")
    parser.add_argument("--list", action="store_true", help="name the arms and run none")
    parser.add_argument("--jobs", type=int, default=1, help="arms that run at a time (default: 1)")
    options = parser.parse_args(arguments)
    output = pathlib.Path(options.output)
    chosen = [arm for arm in arms() if arm.name.startswith(options.only)]
    if options.list:
        print("\n".join(f"{'done' if complete(output, arm) else '    '}  {arm.name}" for arm in chosen))
        return 0
    if not options.acdc:
        parser.error("--acdc is needed to run arms")
    waiting = [arm for arm in chosen if not complete(output, arm)]
    if waiting:
        build(output, options.acdc)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        failed = [name for name in pool.map(functools.partial(run, output, acdc=options.acdc), waiting) if name]
    write(output)
    if failed:
        print("these arms failed; their log.txt says why: " + ", ".join(failed), file=sys.stderr)
    return bool(failed)


def build(output: pathlib.Path, acdc: str) -> None:
    """Builds the data set once, which all arms read."""
    folders = [f"--manual_dir={acdc}", f"--data_dir={output.absolute() / 'data'}"]
    subprocess.run([sys.executable, "run.py", "build", "acdc", *folders], cwd=ROOT, check=True)


def run(output: pathlib.Path, arm: Arm, acdc: str) -> str:
    """Trains and evaluates one arm; what it says goes to its log.txt. Returns its name if it failed, else ''."""
    folder = output / arm.name
    folder.mkdir(parents=True, exist_ok=True)
    workdir = f"--workdir={folder.absolute()}"
    train = ["--config=configs/acdc_unet.py", f"--config.dataset.manual_dir={acdc}", *arm.options]
    train.append(f"--config.dataset.data_dir={output.absolute() / 'data'}")
    print(arm.name, flush=True)
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        works = result(output, arm) is not None or _run_py(log, workdir, *train)
        if works and arm.second:
            works = _run_py(log, "evaluate", workdir, other_guides(output, arm, acdc))
    if works:
        with WRITING:
            write(output)
    return "" if works else arm.name


def _run_py(log: TextIO, *arguments: str) -> bool:
    """Whether run.py ended well; what it says goes to `log`."""
    command = [sys.executable, "run.py", *arguments]
    return not subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode


def other_guides(output: pathlib.Path, arm: Arm, acdc: str) -> str:
    """The option of an arm's second evaluation, see `Arm.second`."""
    if arm.protocol == "paper":
        return "--config.eval.gallery=train"
    gallery = output / "gallery64"
    with WRITING:
        link(gallery, output / arm.name, acdc)
    return f"--gallery={gallery.absolute()}"


def link(gallery: pathlib.Path, folder: pathlib.Path, acdc: str) -> None:
    """Makes a folder of labelled scans: links to the 64 patients outside of fold 0, which validates."""
    if gallery.is_dir():
        return
    folds = json.loads((folder / "splits.json").read_text(encoding="utf-8"))["folds"]
    gallery.mkdir()
    for patient in itertools.chain.from_iterable(folds[1:]):
        (gallery / patient).symlink_to(pathlib.Path(acdc).absolute() / "training" / patient)


def complete(output: pathlib.Path, arm: Arm) -> bool:
    """Whether an arm has all of its evaluations."""
    return all(result(output, arm, name) is not None for name in ("validation", arm.second) if name)


def result(output: pathlib.Path, arm: Arm, evaluation: str = "validation") -> dict[str, Any] | None:
    """The summary of an arm that is done; None if there is none of that evaluation."""
    file = output / arm.name / "evaluation" / evaluation / "summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def write(output: pathlib.Path) -> None:
    """Writes the tables and the curve of what is done."""
    done = [(arm, summary) for arm in arms() if (summary := result(output, arm))]
    lines = [
        "| arm | seeds | Dice of each | mean | nearest guide's mask | mix of the guides |",
        "|---|---|---|---|---|---|",
    ]
    key = lambda pair: pair[0].kind  # noqa: E731
    for kind, group in itertools.groupby(sorted(done, key=lambda pair: pair[0].name), key):
        own = list(group)
        dice = [summary["mean"]["dice"] for _, summary in own]
        cells = [kind, ", ".join(str(a.seed) for a, _ in own)]
        cells += [", ".join(f"{x:.4f}" for x in dice), f"**{np.mean(dice):.4f}**"]
        for measure in ("retrieval_dice_1", "retrieval_dice_k"):
            found = [s["retrieval"][measure] for _, s in own if s["retrieval"]]
            cells.append(f"{np.mean(found):.3f}" if found else "-")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| arm | real | random | blank | permuted | oracle | verdict |", "|---|---|---|---|---|---|---|"]
    for arm, summary in done:
        if certificate := summary.get("retrieval_certificate"):
            figures = [f"{certificate[kind]:.4f}" for kind in ("real", "random", "blank", "permuted", "oracle")]
            lines.append(f"| {arm.name} | {' | '.join(figures)} | {certificate['verdict']} |")
    lines += ["", "| arm | its own gallery | 64 patients' gallery | blank guides |", "|---|---|---|---|"]
    for arm, summary in done:
        if grown := result(output, arm, GROWN):
            figures = (summary["mean"]["dice"], grown["mean"]["dice"], grown["retrieval_certificate"]["blank"])
            lines.append(f"| {arm.name} | {' | '.join(f'{x:.4f}' for x in figures)} |")
    lines += ["", "| whole slices | 2-D Dice with background | guided by training slices alone |", "|---|---|---|"]
    for arm, summary in done:
        if arm.frame == "whole" and arm.patients == max(PATIENTS):
            honest = result(output, arm, TRAIN)
            found = [s["paper_2d"]["dice_2d_background"] if s else None for s in (summary, honest)]
            lines.append(f"| {arm.name} | {' | '.join('-' if x is None else f'{x:.4f}' for x in found)} |")
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
        if arm.variant or arm.protocol != "patient":
            continue
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
