"""Puts the page together: header, contents, sections, style and script in one file that asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
import os
import pathlib
import string
from importlib import resources

from jras_jax import files
from jras_jax.report import analysis, breakdowns, cases, evidence, process, results
from jras_jax.report.files import ReportedRun, read
from jras_jax.report.markup import Html, element, join, paragraph, plural
from jras_jax.run_folder.layout import RunFolder, without_retrieval


def write_report(
    run_dir: str | os.PathLike[str],
    *,
    split: str | None = None,
    baseline_dir: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Writes the report of one evaluation of a run: one HTML file, no network, the same bytes from the same files.

    Args:
      run_dir: a run folder with a summary.json in it; any other file may be missing, and the page then says so.
      split: the name of the evaluation, a folder in `run_dir`/evaluation; None is the last one made.
      baseline_dir: another run folder to compare with; None takes `run_dir`/baseline if that one is evaluated likewise.
      output: the file to write; None is report.html in the folder of the evaluation, and `run_dir`/report.html too if
        it is the last one made.

    Returns:
      The file written; `run_dir`/report.html if it is one of two.

    Raises:
      ReportError: a folder is missing or not evaluated (the message says which command does it), or a file is damaged.
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
    text = build(run, baseline)
    if output is not None:
        files.write_text(output, text)
        return pathlib.Path(output)
    place = folder.find_evaluation(run.evaluation)
    if place.path != folder.evaluation("").path:  # an older version's has no folder
        files.write_text(place.report, text)
        if place != folder.find_evaluation():
            return place.report
    files.write_text(folder.report, text)
    return folder.report


def _of_baseline(baseline: RunFolder, evaluation: str) -> str:
    """The name of the baseline's evaluation to compare with: the same; without options of retrieval if it has none."""
    there = baseline.evaluations()
    return evaluation if evaluation in there else without_retrieval(evaluation)


def build(run: ReportedRun, baseline: ReportedRun | None) -> str:
    """The page as text."""
    found = analysis.cases(run.cases)
    shown = {name: evidence.anchor(name) for name in cases.choose(list(run.evidence), found)}
    comparable = baseline if baseline and baseline.cases and baseline.unit == run.unit else None
    sections = [
        results.headline(run, baseline),
        breakdowns.structures(run, comparable),
        breakdowns.breakdowns(run, comparable),
        results.clinical_section(run),
        process.uncertainty(run, found, shown),
        cases.section_of(run, found, shown),
        process.retriever(run),
        process.training(run, baseline),
        process.options(run),
        process.provenance(run, baseline),
    ]
    assets = resources.files(__package__).joinpath("assets")
    template, style, script = (assets.joinpath(n).read_text("utf-8") for n in ("page.html", "style.css", "report.js"))
    return string.Template(template).substitute(
        title=element("title", f"{run.name}: report, {run.evaluation}"),
        policy=_policy(style, script),
        style=style,
        script=script,
        header=_header(run),
        contents=join(element("li", element("a", s.title, href=f"#{s.anchor}")) for s in sections),
        sections=join(s.body for s in sections),
    )


def _policy(style: str, script: str) -> str:
    """A content security policy that forbids every request: only this style, this script and images within the page."""

    def digest(content: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    return f"default-src 'none'; img-src data:; style-src {digest(style)}; script-src {digest(script)}"


def _header(run: ReportedRun) -> Html:
    """Name, what kind of run it is, on whom it was scored, and the warnings."""
    split = str(run.summary.get("split", ""))
    where = _SPLITS.get(split, split or "patients of an unknown split")
    patients = len({r["patient"] for r in run.cases})
    size = f" ({plural(patients, 'patient')})" if patients else ""
    warned = [element("li", w) for w in run.warnings]
    warnings = element(
        "aside",
        element("h2", "Read with care", id="warnings-title"),
        element("ul", warned),
        class_="warning",
        aria_labelledby="warnings-title",
    )
    return join(
        paragraph("Segmentation of cardiac MRI", class_="kicker"),
        element("h1", run.name),
        paragraph(_kind(run), f"Scored on {where}{size}.", class_="lead"),
        warnings if warned else None,
    )


_SPLITS = {"validation": "the validation fold", "test": "the test set", "train": "its own training patients"}
_PROPER = {"acdc": "ACDC", "mnms": "M&Ms", "phantom": "Phantom", "unet": "U-Net", "segformer": "SegFormer"}
_PROPER |= {"transunet": "TransUNet", "sam": "SAM"}


def _kind(run: ReportedRun) -> str:
    """'ACDC, U-Net, prototype fusion of 2 guides. '; what the config does not say is left out."""
    config = {name: run.config.get(name) or {} for name in ("dataset", "backbone", "retrieval", "fusion")}
    names = [config[part].get("name") for part in ("dataset", "backbone")]
    words = [_PROPER.get(name, name) for name in names if name]
    if config["retrieval"].get("enabled"):
        guides = config["retrieval"].get("top_k", 0)
        words.append(f"{config['fusion'].get('name', '').replace('_', '-')} fusion of {plural(guides, 'guide')}")
    elif words:
        words.append("no retrieval")
    return ", ".join(words) + ". " if words else ""
