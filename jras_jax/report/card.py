"""The model card of a published run: Markdown written from the run's own files, with the hub's metadata at its head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jras_jax.errors import UserError
from jras_jax.evaluation import certificate, choose, statistics
from jras_jax.report import analysis
from jras_jax.report.files import ReportedRun
from jras_jax.report.results import verdict

PAPER = "[arXiv 2510.09953](https://arxiv.org/abs/2510.09953)"
LICENCES = {"acdc": "cc-by-nc-sa-4.0", "phantom": "apache-2.0"}  # that the data set asks of what is made of it
_SETS = {
    "acdc": "[ACDC](https://humanheart-project.creatis.insa-lyon.fr/database/), short-axis cine MRI, one centre",
    "mnms": "[M&Ms](https://www.ub.edu/mnms/), short-axis cine MRI, several centres and vendors",
    "phantom": "the phantom of jras_jax, synthetic images: **no patient was ever seen**",
}
_TITLES = {"dice": "Dice", "hd95": "HD95", "assd": "ASSD"}


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a card is written from.

    Attributes:
      runs: the run's evaluations as read, the one whose scores come first in front.
      baselines: those of the run without retrieval, if there is one.
      licence: an identifier of the hub, such as 'cc-by-nc-sa-4.0'.
      step: of the published checkpoint.
      patients: numbers of training, validation and test patients by name of the part.
      gallery: a line on the gallery that is published; '' if none is.
      patients_named: whether splits.json names the patients.
    """

    runs: Sequence[ReportedRun]
    baselines: Sequence[ReportedRun]
    licence: str
    step: int
    patients: Mapping[str, int]
    gallery: str
    patients_named: bool


def card(c: Contents) -> str:
    """The text of README.md; raises UserError if huggingface_hub, which writes its head, is not installed."""
    run = c.runs[0]
    parts = [
        f"---\n{_head(c)}\n---\n\n# {run.name}",
        _about(run),
        "## Intended use and limits\n\n" + _limits(run),
        "## Data and split\n\n" + _data(c),
        "## Scores\n\n" + "\n\n".join(_scores(r, c.step) for r in c.runs),
        "## Controls\n\n" + _controls(c),
        "## Use\n\n" + _use(c),
        "## Origin\n\n" + _origin(run, c.step),
        f"## Licence\n\n{c.licence}. The software, jras_jax, is under Apache-2.0.",
    ]
    return "\n\n".join(parts) + "\n"


def _head(c: Contents) -> str:
    """The hub's metadata, YAML."""
    try:
        import huggingface_hub as hub
    except ImportError as e:
        raise UserError("jras publish needs the package huggingface_hub: pip install '.[convert]'") from e
    run, name = c.runs[0], _dataset(c.runs[0])
    found = [
        hub.EvalResult(
            task_type="image-segmentation",
            dataset_type=name,
            dataset_name=name,
            dataset_split=str(r.summary.get("split")),
            metric_type=measure,
            metric_name=f"{title}, mean over structures, {r.evaluation}",
            metric_value=round(analysis.summarise(r.cases, measure).mean, 4),
        )
        for r in c.runs
        for measure, title in _TITLES.items()
        if not math.isnan(analysis.summarise(r.cases, measure).mean)
    ]
    return hub.ModelCardData(
        license=c.licence,
        library_name="jras_jax",
        pipeline_tag="image-segmentation",
        tags=["jax", "medical", "segmentation", "retrieval"],
        model_name=run.name,
        eval_results=found,
    ).to_yaml()


def _about(run: ReportedRun) -> str:
    backbone = run.config.get("backbone", {})
    what = " ".join(str(x) for x in (backbone.get("name"), backbone.get("variant")) if x)
    counts = ", ".join(f"{part} {n:,}" for part, n in run.facts.get("parameters", {}).items())
    guided = "is guided by similar labelled slices of other patients (J-RAS, " + PAPER + ")"
    if not run.config.get("retrieval", {}).get("enabled"):
        guided = "takes no guides (trained without retrieval)"
    named = ", ".join(run.description.structures)
    return f"Segments {named} slice by slice. The backbone ({what}) {guided}. Parameters: {counts or 'unknown'}."


def _limits(run: ReportedRun) -> str:
    lines = [
        "For research on segmentation. **Not a medical device**: not for diagnosis, treatment or triage of patients.",
        "Knows scans like those below. Other vendors, protocols, pathologies and views were not tried unless the "
        "scores say so; measure on labelled scans of your own first.",
        "Each slice is segmented by itself: nothing makes the structures of neighbouring slices agree.",
    ]
    public = [warning for warning in run.warnings if _is_public(warning)]
    lines += [f"Warning of the run: {warning}" for warning in public]
    if left := len(run.warnings) - len(public):
        lines.append(f"The run has {left} more warnings, which name patients or folders; ask its authors.")
    return "\n".join(f"- {line}" for line in lines)


def _is_public(warning: str) -> bool:
    """Whether a warning names neither patients nor folders, which those on changed data do."""
    return warning == choose.UNMEASURED or warning.startswith("config.") or "no known voxel spacing" in warning


def _data(c: Contents) -> str:
    run = c.runs[0]
    data = run.config.get("dataset", {})
    name = _dataset(run)
    folds = f"fold {data.get('fold')} of {data.get('num_folds')} validates, the others train"
    size = f"{data.get('image_size')} x {data.get('image_size')} pixels"
    spacing = f"of {data.get('spacing_mm')} mm" if data.get("spacing_mm") else "of native size"
    if data.get("frame") == "heart":
        spacing = "in the frame of the heart, which a locator finds"
    counts = ", ".join(f"{part} {n}" for part, n in c.patients.items())
    named = "splits.json names them" if c.patients_named else "they are not named here"
    split = f"Split by patient, stratified, seed {data.get('split_seed')}: {folds}"
    if run.config.get("protocol") == "paper":
        split = "Slices were split at random, so that slices of one patient both train and are scored"
    return "\n".join(
        [
            f"- Data set: {_SETS.get(name, name)}.",
            f"- {split}. Patients: {counts}; {named}.",
            f"- Model grid: {size} {spacing}; intensities by percentiles of each volume.",
            f"- One seed ({run.config.get('seed')}): the scores do not show how much another seed would change them.",
        ]
    )


def _scores(run: ReportedRun, step: int) -> str:
    """A table of one evaluation, a row a structure and their mean."""
    unit = "voxels" if run.unit == "voxel" else run.unit
    rows = [("mean", run.cases)]
    rows += [(str(key[0]), own) for key, own in analysis.group_rows(run.cases, "structure").items()]
    head = f"| structure | Dice | HD95, {unit} | ASSD, {unit} |\n|---|---|---|---|"
    body = [
        f"| {name} | " + " | ".join(_estimate(analysis.summarise(own, m), m) for m in _TITLES) + " |"
        for name, own in rows
    ]
    patients = len({row["patient"] for row in run.cases})
    about = f"**{run.evaluation}**: {patients} patients, checkpoint of step {step}. {run.summary.get('protocol', '')}."
    note = f"Mean [95% interval]: bootstrap over patients, {statistics.RESAMPLES:,} draws."
    if run.summary.get("split") == "validation":
        note += " The checkpoint was chosen by its Dice on this same fold, so these scores are optimistic."
    return "\n".join([about, "", head, *body, "", note])


def _controls(c: Contents) -> str:
    """What the run without retrieval, and random guides, scored; or that nobody asked."""
    if not c.runs[0].config.get("retrieval", {}).get("enabled"):
        return "This run is itself a control: it has no retrieval."
    lines = []
    others = {b.evaluation: b for b in c.baselines}
    for run in c.runs:
        if (other := others.get(run.evaluation)) is not None and other.cases:
            beside = analysis.compare(run.cases, other.cases, ["dice"])["dice"].comparison
            dice = _estimate(analysis.summarise(other.cases, "dice"), "dice")
            lines.append(f"- {run.evaluation}, the same run trained without retrieval: Dice {dice}. {verdict(beside)}")
    proved = {run.evaluation: found for run in c.runs if (found := run.summary.get("retrieval_certificate"))}
    lines += [f"- {name}: {certificate.sentence(found)}" for name, found in proved.items()]
    drawn = [run for run in c.runs if "strategy=random" in run.evaluation]
    lines += [f"- {run.evaluation}: guides drawn at random, see its scores above." for run in drawn]
    if not others:
        lines.append("- No run without retrieval was evaluated: whether retrieval helps is not known.")
    if not drawn and not proved:
        lines.append("- Random guides were not evaluated: whether it matters which cases guide is not known.")
    return "\n".join(lines)


def _use(c: Contents) -> str:
    enabled = c.runs[0].config.get("retrieval", {}).get("enabled")
    gallery = ""
    if enabled and not c.gallery:
        gallery = " --gallery=LABELLED_SCANS"
    lines = ["```sh", f"jras predict --workdir=hf:ORG/NAME --input=SCANS --output=MASKS{gallery}", "```", ""]
    if gallery:
        lines.append(
            "The gallery of the training patients is not published, because it holds their images. Give labelled scans "
            "of your own (NAME.nii.gz with NAME_gt.nii.gz): they guide. The scores above were obtained with the "
            "gallery of the training patients, and another one can score worse."
        )
    elif c.gallery:
        lines.append(f"The folder `gallery` holds images and masks of patients: {c.gallery}.")
    return "\n".join(lines).rstrip()


def _origin(run: ReportedRun, step: int) -> str:
    facts = run.facts
    versions = facts.get("versions") or {}
    listed = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, Mapping) else str(versions)
    rows: dict[str, Any] = {
        "checkpoint": f"step {step}, the best by validation Dice",
        "started": facts.get("started"),
        "device": facts.get("device"),
        "revision": facts.get("git_revision"),
        "versions": f"Python {facts.get('python')}, {listed}",
    }
    return "\n".join(f"- {name}: {value}" for name, value in rows.items() if value)


def _dataset(run: ReportedRun) -> str:
    name = str(run.config.get("dataset", {}).get("name", "unknown"))
    return run.description.name if name == "folder" else name


def _estimate(s: statistics.Summary, measure: str) -> str:
    """'0.901 [0.880, 0.921]'."""
    digits = 3 if measure == "dice" else 2
    if math.isnan(s.mean):
        return "-"
    spread = "" if math.isnan(s.low) else f" [{s.low:.{digits}f}, {s.high:.{digits}f}]"
    return f"{s.mean:.{digits}f}{spread}"
