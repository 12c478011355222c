"""Do the frame of the heart and the guides help? Trains the arms of the study on ACDC, one after another.

    python -m benchmarks.study --acdc=PATH_TO_ACDC --output=runs/study            every arm that is not done
    python -m benchmarks.study --acdc=PATH --output=runs/study --only=heart/none  the arms whose name begins so
    python -m benchmarks.study --output=runs/study --list                         the arms, and which are done
    python -m benchmarks.study --acdc=PATH --output=runs/study --jobs=12          twelve at a time, for an accelerator
    python -m benchmarks.study --acdc=PATH --output=runs/study --record=benchmarks/study.json
                                             adds the figures to this file, and skips the arms that it holds already

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
    "neighbours": ("--config.dataset.neighbours=True",),  # the retriever sees the slices before and after too
    "without_DCM": ("--config.dataset.leave_out=('DCM',)",),
}
PROTOCOLS = {"patient": (), "paper": ("--config.protocol=paper",)}
GROWN, TRAIN = "validation+gallery=gallery64-*", "validation+gallery=train"  # second evaluations, as glob patterns
KINDS = ("real", "random", "blank", "permuted", "oracle")
Figures = dict[str, Any]  # of an arm, see `figures`
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
    """The study: those that decide first, with three seeds where it matters.

    What was tried beside the default is tried once, with 8 patients; the fusion is then the default, `prior`.
    """
    for patients in (8, 64):
        for seed in SEEDS:
            yield Arm("heart", "none", patients=patients, seed=seed)
            yield Arm("heart", "learnt", "prior", patients=patients, seed=seed)
            yield Arm("whole", "none", patients=patients, seed=seed)
    for seed in SEEDS:
        yield Arm("heart", "learnt", "prototype", patients=8, seed=seed)
    for fusion in ("cross_attention", "concat", "adapter"):
        yield Arm("heart", "learnt", fusion, patients=8)
    for guides, fusion in (("random", "prior"), ("random", "prototype"), ("pixels", "prior")):
        yield Arm("heart", guides, fusion, patients=8)
    for patients in (8, 64):
        yield Arm("heart", "oracle", "prior", patients=patients)
    for variant in ("k8", "k16", "dropped", "matched", "neighbours"):
        yield Arm("heart", "learnt", "prior", patients=8, variant=variant)
    yield Arm("heart", "learnt", "prototype", patients=8, variant="taught")
    for guides, fusion in (("none", ""), ("learnt", "prior")):
        yield Arm("heart", guides, fusion, variant="without_DCM")
    for guides, fusion in (("none", ""), ("learnt", "concat"), ("learnt", "prototype")):
        yield Arm("whole", guides, fusion, protocol="paper")
    for patients in (4, 16, 32):
        yield Arm("heart", "none", patients=patients)
        yield Arm("heart", "learnt", "prior", patients=patients)
        yield Arm("whole", "none", patients=patients)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--acdc", help="folder of the ACDC download")
    parser.add_argument("--output", required=True, help="folder of the runs and tables")
    parser.add_argument("--only", default="", help="run the arms whose name begins so")
    parser.add_argument("--list", action="store_true", help="name the arms and run none")
    parser.add_argument("--jobs", type=int, default=1, help="arms that run at a time (default: 1)")
    parser.add_argument("--record", help="file of figures: its arms are not run again, and new ones are added")
    options = parser.parse_args(arguments)
    output, record = pathlib.Path(options.output), pathlib.Path(options.record) if options.record else None
    recorded = read_record(record)
    chosen = [arm for arm in arms() if arm.name.startswith(options.only)]
    done = {arm: complete(output, arm) or arm.name in recorded for arm in chosen}
    if options.list:
        print("\n".join(f"{'done' if done[arm] else '    '}  {arm.name}" for arm in chosen))
        return 0
    waiting = [arm for arm in chosen if not done[arm]]
    if waiting:
        if not options.acdc:
            parser.error("--acdc is needed to run arms")
        build(output, options.acdc)
    output.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        job = functools.partial(run, output, acdc=options.acdc, record=record)
        failed = [name for name in pool.map(job, waiting) if name]
    write(output, record)
    if failed:
        print("these arms failed; their log.txt says why: " + ", ".join(failed), file=sys.stderr)
    return bool(failed)


def build(output: pathlib.Path, acdc: str) -> None:
    """Builds the data set once, which all arms read."""
    folders = [f"--manual_dir={acdc}", f"--data_dir={output.absolute() / 'data'}"]
    subprocess.run([sys.executable, "run.py", "build", "acdc", *folders], cwd=ROOT, check=True)


def run(output: pathlib.Path, arm: Arm, acdc: str, record: pathlib.Path | None = None) -> str:
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
            write(output, record)
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
    """The summary of an arm that is done; None if there is none of that evaluation (a glob pattern)."""
    found = sorted((output / arm.name / "evaluation").glob(f"{evaluation}/summary.json"))
    return json.loads(found[0].read_text(encoding="utf-8")) if found else None


def figures(output: pathlib.Path, arm: Arm) -> Figures | None:
    """What the study keeps of an arm: 'own' of its evaluation, 'second' of the other one; None until it is complete.

    Each has dice, dice_2d (with background), retrieval and certificate, the last two as in summary.json.
    """
    if not complete(output, arm):
        return None
    kept: Figures = {}
    for key, evaluation in (("own", "validation"), ("second", arm.second)):
        summary = result(output, arm, evaluation) if evaluation else None
        if summary:
            kept[key] = {
                "dice": summary["mean"]["dice"],
                "dice_2d": summary["paper_2d"]["dice_2d_background"],
                "retrieval": summary["retrieval"],
                "certificate": summary.get("retrieval_certificate", {}),
            }
    return kept


def read_record(record: pathlib.Path | None) -> dict[str, Figures]:
    """Figures by the names of arms; none if there is no such file yet."""
    return json.loads(record.read_text(encoding="utf-8")) if record and record.is_file() else {}


def write(output: pathlib.Path, record: pathlib.Path | None = None) -> None:
    """Writes the tables and the curve of what is done here and of what is on record, and adds the former to the latter.

    An arm that is both is shown as it was done here.
    """
    here = {arm.name: found for arm in arms() if (found := figures(output, arm))}
    known = read_record(record) | here
    if record:
        record.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    done = [(arm, known[arm.name]) for arm in arms() if arm.name in known]
    lines = [*_arms_table(done), "", *_certificates_table(done), "", *_second_tables(done)]
    (output / "tables.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(done, output / "patients.svg")


def _by_kind(done: Sequence[tuple[Arm, Figures]]) -> Iterator[tuple[str, list[tuple[Arm, Figures]]]]:
    """Arms that differ in the seed alone, together."""
    ordered = sorted(done, key=lambda pair: pair[0].name)
    for kind, group in itertools.groupby(ordered, lambda pair: pair[0].kind):
        yield kind, list(group)


def _arms_table(done: Sequence[tuple[Arm, Figures]]) -> Iterator[str]:
    yield "| arm | seeds | Dice of each | mean | nearest guide's mask | mix of the guides |"
    yield "|---|---|---|---|---|---|"
    for kind, group in _by_kind(done):
        dice = [found["own"]["dice"] for _, found in group]
        cells = [kind, ", ".join(str(a.seed) for a, _ in group)]
        cells += [", ".join(f"{x:.4f}" for x in dice), f"**{np.mean(dice):.4f}**"]
        for measure in ("retrieval_dice_1", "retrieval_dice_k"):
            masks = [f["own"]["retrieval"][measure] for _, f in group if measure in f["own"]["retrieval"]]
            cells.append(f"{np.mean(masks):.3f}" if masks else "-")
        yield f"| {' | '.join(cells)} |"


def _certificates_table(done: Sequence[tuple[Arm, Figures]]) -> Iterator[str]:
    """One row an arm with guides, and one for the means of those of several seeds."""
    yield f"| arm | {' | '.join(KINDS)} | real - blank | real - random | verdict |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for kind, group in _by_kind(done):
        own = [(arm.name, found["own"]["certificate"]) for arm, found in group if found["own"]["certificate"]]
        if len(own) > 1:
            means = {name: float(np.mean([certificate[name] for _, certificate in own])) for name in KINDS}
            own.append((f"**{kind}, mean**", means | {"verdict": f"{len(own)} seeds"}))
        for name, certificate in own:
            cells = [f"{certificate[guides]:.4f}" for guides in KINDS]
            cells += [f"{certificate['real'] - certificate[other]:+.4f}" for other in ("blank", "random")]
            yield f"| {' | '.join([name, *cells, certificate['verdict']])} |"


def _second_tables(done: Sequence[tuple[Arm, Figures]]) -> Iterator[str]:
    yield "| arm | its own gallery | 64 patients' gallery | blank guides | random guides |"
    yield "|---|---|---|---|---|"
    for arm, found in done:
        if arm.second == GROWN and "second" in found:
            grown = found["second"]
            values = (found["own"]["dice"], grown["dice"], *(grown["certificate"][k] for k in ("blank", "random")))
            yield f"| {arm.name} | {' | '.join(f'{x:.4f}' for x in values)} |"
    yield ""
    yield "| whole slices | 2-D Dice with background | guided by training slices alone |"
    yield "|---|---|---|"
    for arm, found in done:
        if arm.frame == "whole" and arm.patients == max(PATIENTS):
            pair = [found[key]["dice_2d"] if key in found else None for key in ("own", "second")]
            yield f"| {arm.name} | {' | '.join('-' if x is None else f'{x:.4f}' for x in pair)} |"


def plot(done: Sequence[tuple[Arm, Figures]], file: pathlib.Path) -> None:
    """Dice against labelled patients, a curve an arm, a dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    curves: dict[str, list[tuple[int, float]]] = {}
    for arm, found in done:
        if arm.variant or arm.protocol != "patient":
            continue
        label = f"{arm.frame}, {arm.guides} {arm.fusion}".strip()
        curves.setdefault(label, []).append((arm.patients, found["own"]["dice"]))
    axes.set_prop_cycle(color=pyplot.colormaps["tab20"].colors)  # the usual ten are fewer than the curves
    for label, points in curves.items():
        x = sorted({n for n, _ in points})
        (line,) = axes.plot(x, [np.mean([d for n, d in points if n == at]) for at in x], label=label)
        axes.plot(*zip(*points, strict=True), "o", color=line.get_color(), markersize=3)
    axes.set_xscale("log", base=2)
    axes.set_xticks(PATIENTS, [str(n) for n in PATIENTS])
    axes.set_xlabel("labelled patients")
    axes.set_ylabel("3-D Dice, mean of RV, MYO and LV")
    if curves:
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
