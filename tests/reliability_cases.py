"""The shared cases that went wrong once, each as its README says it must end."""

from __future__ import annotations

import gzip
import json
import os
import shutil

import nibabel as nib
import numpy as np

from jras_jax.data import prepared
from tests.reliability import SMALL, Lab, files_of, row


def build(lab: Lab, name: str, manual):
    return lab.jras("build", name, f"--manual_dir={manual}", f"--data_dir={lab.folder / 'D'}")


def built_nothing(lab: Lab) -> bool:
    return files_of(lab.folder / "D") == []


def masks_of(lab: Lab):
    volumes = prepared.load_volumes(lab.folder / "D" / "acdc" / "1.0.0", "train")
    return {v.case: v.mask for v in volumes}


@row("stale cache", "plain NIfTI files named .nii.gz are corrected, sizes and times unchanged")
def stale_plain_in_gz(lab):
    case = lab.case("stale_plain_in_gz")
    scans = lab.folder / "S"
    shutil.copytree(case / "before", scans)
    assert build(lab, "acdc", scans).status == 0
    before = masks_of(lab)
    shutil.copytree(case / "after", scans, dirs_exist_ok=True)
    again, third = build(lab, "acdc", scans), build(lab, "acdc", scans)
    assert again.status == third.status == 0
    assert "built already" not in again.out + again.err and "built already" in third.out + third.err
    after = masks_of(lab)
    assert all(np.array_equal(np.roll(before[k], 3, 0), after[k]) for k in before)
    return "rebuilt, and says so"


@row("label order", "ACDC folders whose masks hold LV 1, RV 3")
def labels_exchanged_acdc(lab):
    assert build(lab, "acdc", lab.case("labels_exchanged_acdc")).refused("exchanged") and built_nothing(lab)
    return "refused"


def score(lab: Lab, case, labels: str):
    return lab.jras("score", case / "ref", case / "pred", f"--labels={labels}", f"--output={lab.folder / 's.csv'}")


@row("label order", "references in the other order than --labels")
def score_reference_in_other_order(lab):
    done = score(lab, lab.case("score_reference_in_other_order"), "LV:1,MYO:2,RV:3")
    assert done.said("LV and RV seem exchanged", "/ref") and "LV and RV seem exchanged" in done.out
    return "warned on stderr and beside the scores"


@row("geometry", "masks whose pixdim is not the size by their affine, scored")
def score_pixdim_against_affine(lab):
    done = score(lab, lab.case("score_pixdim_against_affine"), "RV:1,MYO:2,LV:3")
    assert done.status in (1, 2) and "1 x 1 x 1" in done.err and "2.5 x 2.5 x 8" in done.err
    return "refused with both sizes"


@row("geometry", "a scan whose slices run along the first axis, predicted")
def predict_slice_axis_first(lab):
    done = lab.predict(lab.case("predict_slice_axis_first") / "scans", lab.folder / "M")
    evidence = json.loads((lab.folder / "M" / "sideways.json").read_text())
    assert done.said("sideways.nii.gz", "first axis") and len(evidence["frames"][0]["slices"]) == 6
    return "segmented along its first axis, which is said"


@row("geometry", "a scan without spacing, predicted by a run trained with it")
def predict_without_spacing(lab):
    done = lab.predict(lab.case("predict_without_spacing") / "scans", lab.folder / "M")
    assert done.said("nospacing.nii.gz", "gives no spacing") or done.refused("nospacing.nii.gz")
    return "warned"


@row("one stem, two files", "x.nii beside x.nii.gz, built")
def build_two_files_of_one_stem(lab):
    done = build(lab, "acdc", lab.case("build_two_files_of_one_stem"))
    assert done.refused("patient001_frame01.nii", "patient001_frame01.nii.gz") and built_nothing(lab)
    return "refused, naming both"


@row("outputs as inputs", "predict twice with the masks' folder inside the scans' folder")
def predict_output_inside_input(lab):
    scans = lab.case("predict_output_inside_input") / "scans"
    for _ in range(2):
        done = lab.predict(scans, scans / "masks")
        assert done.status == 0 and "[2/2]" in done.out and not (scans / "masks" / "masks").exists()
    return "segments two scans each time, and says what is left out"


@row("left out", "a suffix in capitals, predicted")
def predict_upper_case(lab):
    assert lab.predict(lab.case("predict_upper_case") / "scans", lab.folder / "M").status == 0
    assert len([f for f in files_of(lab.folder / "M") if f.lower().endswith(".nii.gz")]) == 2
    return "both scans are segmented"


@row("left out", "patient folders whose names differ a little")
def build_misnamed_patients(lab):
    done = build(lab, "acdc", lab.case("build_misnamed_patients"))
    named = all(name in done.err + done.out for name in ("Patient003", "patient_004", "patient005_new"))
    assert done.status in (0, 2) and named
    return "named"


@row("left out", "the files a Mac leaves beside scans")
def predict_mac_files(lab):
    done = lab.predict(lab.case("predict_mac_files") / "scans", lab.folder / "M")
    assert done.status == 0 and "._" not in done.err + done.out and len(files_of(lab.folder / "M")) == 4
    return "passed over without a word"


@row("one bad file", "one of three scans is cut short")
def predict_one_cut_short(lab):
    done = lab.predict(lab.case("predict_one_cut_short") / "scans", lab.folder / "M")
    assert done.refused("b.nii.gz", status=1) and "b.nii.gz" in done.err.splitlines()[-2]
    assert files_of(lab.folder / "M") == ["a.json", "a.nii.gz", "c.json", "c.nii.gz"]
    return "the others are segmented, it is named at the end, exit status 1"


@row("who is who", "another acquisition of a gallery patient, named patient901_4d")
def leak_name_4d(lab):
    case = lab.case("leak_name_4d")
    done = lab.predict(case / "scans", lab.folder / "M", f"--gallery={case / 'gallery'}")
    text = (lab.folder / "M" / "patient901_4d.json").read_text()
    assert done.said("patient901 (by its name)") and json.loads(text)["gallery_patient"] == "patient901"
    assert not any(g["case"].startswith("patient901") for f in json.loads(text)["frames"] for s in f["slices"]
                   for g in s["guides"])  # fmt: skip
    return "his slices are left out, and that is said"


@row("geometry", "masks whose affine is mirrored against the images', built")
def build_mirrored_masks(lab):
    done = build(lab, "acdc", lab.case("build_mirrored_masks"))
    assert done.refused("_gt.nii.gz") and built_nothing(lab)
    return "refused"


@row("tables", "blank rows at the end of M&Ms' CSV")
def build_csv_blank_rows(lab):
    done = build(lab, "mnms", lab.case("build_csv_blank_rows"))
    assert done.status == 0 and "6 train" in done.out
    return "built"


@row("tables", "semicolons in M&Ms' CSV")
def build_csv_semicolons(lab):
    done = build(lab, "mnms", lab.case("build_csv_semicolons"))
    assert done.status == 0 and "6 train" in done.out
    return "built"


def checkpoints_of(run):
    return {f: (run / "checkpoints" / f).read_bytes() for f in files_of(run / "checkpoints")}


@row("damaged state", "splits.json cut short, then trained on and predicted with")
def state_cut_splits(lab):
    run, cut = lab.own_run(), lab.case("state_cut_splits") / "splits.json"
    shutil.copy(cut, run / "splits.json")
    before = checkpoints_of(run)
    scans = lab.case("header_descrip") / "scans"
    data = f"--config.dataset.data_dir={lab.shelf / 'data'}"
    for command in (["train", *SMALL, data], ["predict", f"--input={scans}", f"--output={lab.folder / 'M'}"]):
        assert lab.jras(*command, f"--workdir={run}").refused(str(run / "splits.json"))
    assert checkpoints_of(run) == before
    return "refused, checkpoints untouched"


@row("damaged state", "a first start that fails, then one with a smaller batch")
def state_failed_first_start(lab):
    case, run = lab.case("state_failed_first_start"), lab.folder / "V"
    more = ["--config.dataset.name=acdc", f"--config.dataset.manual_dir={case}"]
    more += [f"--config.dataset.data_dir={lab.folder / 'D'}", f"--workdir={run}"]
    assert lab.jras("train", *SMALL, *more, "--config.train.batch_size=500").refused("batch_size")
    assert lab.jras("train", *SMALL, *more, "--config.train.batch_size=4").status == 0
    return "refused; the second start trains"


@row("privacy", "a name and a date of birth in the scan's header")
def header_descrip(lab):
    scans = lab.case("header_descrip") / "scans"
    assert lab.predict(scans, lab.folder / "M").status == 0
    assert b"DOE^JANE" not in gzip.decompress((lab.folder / "M" / "a.nii.gz").read_bytes())
    scan, mask = nib.load(scans / "a.nii.gz"), nib.load(lab.folder / "M" / "a.nii.gz")
    assert np.array_equal(scan.affine, mask.affine) and scan.header.get_zooms() == mask.header.get_zooms()
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert scan.header[field] == mask.header[field]
    return "the mask has the geometry and not the text"


@row("outputs as inputs", "the output folder is a file")
def output_is_a_file(lab):
    case = lab.case("output_is_a_file")
    before = (case / "masks").read_bytes()
    assert lab.predict(case / "scans", case / "masks").refused(str(case / "masks"))
    assert (case / "masks").read_bytes() == before and os.path.isfile(case / "masks")
    return "refused, the file keeps its content"
