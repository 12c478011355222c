"""Puts the page together: header, contents, sections, style and script in one file that asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
import os
import pathlib
import urllib.parse
from collections.abc import Sequence
from importlib import resources

from jras_jax import files
from jras_jax.data.description import KNOWN
from jras_jax.report import analysis, breakdowns, cases, markup, panels, process, results
from jras_jax.report.files import ReportedRun, read
from jras_jax.report.markup import Html, plural, render
from jras_jax.run_folder.layout import EvaluationFolder, RunFolder, without_retrieval


def write_report(
    run_dir: str | os.PathLike[str],
    *,
    split: str | None = None,
    baseline_dir: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    evidence: str | Sequence[str] | None = None,
) -> pathlib.Path:
    """Writes the report of one evaluation of a run: one HTML file, no network, the same bytes from the same files.

    Args:
      run_dir: a run folder with a summary.json in it; any other file may be missing, and the page then says so.
      split: the name of the evaluation, a folder in `run_dir`/evaluation; None is the last one made.
      baseline_dir: another run folder to compare with; None takes `run_dir`/baseline if that one is evaluated likewise.
      output: the file to write; None is report.html in the folder of the evaluation, and `run_dir`/report.html too if
        it is the last one made.
      evidence: names of the cases to show with their slices, or 'all' that evaluation kept; None is the worst, the
        median and the best case.

    Returns:
      The file written; `run_dir`/report.html if it is one of two.

    Raises:
      ReportError: a folder is missing or not evaluated (the message says which command does it), a file is damaged,
        or evaluation kept no evidence of a case that is to be shown.
    """
    run = read(os.fspath(run_dir), split)
    folder = RunFolder(run.path)
    if baseline_dir is not None:
        baseline: ReportedRun | None = read(
            os.fspath(baseline_dir), _of_baseline(RunFolder(baseline_dir), run.evaluation)
        )
    else:
        like = _of_baseline(folder.baseline, run.evaluation)
        baseline = read(folder.baseline.path, like) if like in folder.baseline.evaluations() else None
    sections = _sections(run, baseline, evidence)
    place = folder.find_evaluation(run.evaluation)
    if output is not None:
        return _write(pathlib.Path(output), run, sections=sections, place=place)
    if place.path != folder.evaluation("").path:  # an older version's has no folder
        _write(place.report, run, sections=sections, place=place)
        if place != folder.find_evaluation():
            return place.report
    return _write(folder.report, run, sections=sections, place=place)


def _of_baseline(baseline: RunFolder, evaluation: str) -> str:
    """The name of the baseline's evaluation to compare with: the same; without options of retrieval if it has none."""
    there = baseline.evaluations()
    return evaluation if evaluation in there else without_retrieval(evaluation)


def _sections(
    run: ReportedRun, baseline: ReportedRun | None, wanted: str | Sequence[str] | None
) -> list[markup.Section]:
    """The parts of the page, in their order."""
    found = analysis.cases(run.cases)
    shown = {name: panels.anchor(name) for name in cases.choose(list(run.evidence), found, wanted)}
    comparable = baseline if baseline and baseline.cases and baseline.unit == run.unit else None
    return [
        results.headline(run, baseline),
        breakdowns.structures(run, comparable),
        breakdowns.breakdowns(run, comparable),
        *([results.clinical_section(run)] if run.description.indices else []),
        process.uncertainty(run, found, shown),
        cases.section_of(run, baseline, found=found, shown=shown),
        process.retriever(run),
        process.training(run, baseline),
        process.options(run),
        process.provenance(run, baseline),
    ]


def _write(
    page: pathlib.Path, run: ReportedRun, sections: list[markup.Section], place: EvaluationFolder
) -> pathlib.Path:
    """Writes the page, its links to the tables relative to its own folder; returns its path."""
    assets = resources.files(__package__).joinpath("assets")
    style, script = (assets.joinpath(name).read_text("utf-8") for name in ("style.css", "report.js"))
    style += panels.colours(run.description)
    tables = [file for file in (place.cases, place.positions, place.summary) if file.is_file()]
    text = render(
        "page.html",
        title=f"{run.name}: report, {run.evaluation}",
        policy=_policy(style, script),
        style=Html(style),
        script=Html(script),
        header=_header(run),
        links={file.name: _link(page, file) for file in tables},
        sections=sections,
    )
    files.write_text(page, text)
    return page


def _link(page: pathlib.Path, file: pathlib.Path) -> str:
    """The address of a file, relative to a page."""
    relative = os.path.relpath(file.resolve(), page.resolve().parent)
    return urllib.parse.quote(pathlib.Path(relative).as_posix())


def _policy(style: str, script: str) -> Html:
    """A content security policy that forbids every request: only this style, this script and images within the page."""

    def digest(content: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    return Html(f"default-src 'none'; img-src data:; style-src {digest(style)}; script-src {digest(script)}")


def _header(run: ReportedRun) -> Html:
    """Name, what kind of run it is, on whom it was scored, and the warnings."""
    split = str(run.summary.get("split", ""))
    where = _SPLITS.get(split, split or "patients of an unknown split")
    patients = len({r["patient"] for r in run.cases})
    size = f" ({plural(patients, 'patient')})" if patients else ""
    scored = f"{_kind(run)}Scored on {where}{size}."
    return render("header.html", name=run.name, lead=scored, warnings=run.warnings)


_SPLITS = {"validation": "the validation fold", "test": "the test set", "train": "its own training patients"}
_PROPER = {"acdc": "ACDC", "mnms": "M&Ms", "phantom": "Phantom", "unet": "U-Net", "segformer": "SegFormer"}
_PROPER |= {"transunet": "TransUNet", "sam": "SAM"}


def _kind(run: ReportedRun) -> str:
    """'ACDC, U-Net, prototype fusion of 2 guides. '; what the config does not say is left out."""
    config = {name: run.config.get(name) or {} for name in ("dataset", "backbone", "retrieval", "fusion")}
    words = [_PROPER.get(name, name) for name in [config["backbone"].get("name")] if name]
    if name := config["dataset"].get("name"):
        words.insert(0, _PROPER.get(name, name) if name in KNOWN else run.description.name)
    if config["retrieval"].get("enabled"):
        guides = config["retrieval"].get("top_k", 0)
        words.append(f"{config['fusion'].get('name', '').replace('_', '-')} fusion of {plural(guides, 'guide')}")
    elif words:
        words.append("no retrieval")
    return ", ".join(words) + ". " if words else ""
