"""Siblings of the shared cases: reading, building, scoring, prediction, exports."""

from __future__ import annotations

import gzip
import json
import os
import shutil

import nibabel as nib
import numpy as np

from jras_jax.data import phantom
from tests.reliability import SMALL, Lab, files_of, row

ACDC, MNMS = "--labels=RV:1,MYO:2,LV:3", "--labels=LV:1,MYO:2,RV:3"
OTHER_ORDER = np.array([0, 3, 2, 1], np.uint8)
FORMS = ("text", "empty", "cut", "nan", "flat", "not gzipped to the end", "metres", "no affine")


def heart(seed=0, shape=(32, 32, 6)):
    """(image int16, mask uint8 in ACDC's order) of a round LV inside myocardium, an RV beside it."""
    x, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
    size = 1 - 0.05 * np.abs(z - 2) + 0.02 * (seed % 5)
    left, right = np.hypot(x - 17, y - 15) / size, np.hypot(x - 9, y - 15) / size
    mask = np.select([left < 4, left < 6.5, right < 5.5], [3, 2, 1]).astype(np.uint8)
    grey = np.choose(mask, [60, 200, 90, 210]) + np.random.default_rng(seed).normal(0, 8, shape)
    return np.clip(grey, 0, None).astype(np.int16), mask


def save(path, array, affine=None, unit="mm", codes=(1, 1), **header):
    affine = np.diag([-2.5, -2.5, 8.0, 1.0]) if affine is None else affine
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units(unit, "sec")
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    for field, value in header.items():
        image.header[field] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        gzip.compress(image.to_bytes(), mtime=0) if path.name.lower().endswith(".gz") else image.to_bytes()
    )
    return path


def acdc(lab: Lab, people=2):
    """A small data set in ACDC's layout."""
    phantom.write_acdc(lab.folder / "acdc", train_patients=people, test_patients=0, seed=lab.seed)
    return lab.folder / "acdc"


def build(lab: Lab, manual, name="acdc"):
    return lab.jras("build", name, f"--manual_dir={manual}", f"--data_dir={lab.folder / 'D'}")


@row("stale cache", "a gzip of several members whose first changes and whose last does not")
def bgzip(lab):
    manual = acdc(lab)
    scan = next(manual.rglob("*_frame01.nii.gz"))
    raw = gzip.decompress(scan.read_bytes())
    parts = [raw[i : i + 60_000] for i in range(0, len(raw), 60_000)]
    scan.write_bytes(b"".join(gzip.compress(p, mtime=0) for p in parts))
    assert build(lab, manual).status == 0
    first = bytearray(parts[0])
    first[1000] ^= 1
    scan.write_bytes(b"".join(gzip.compress(p, mtime=0) for p in [bytes(first), *parts[1:]]))
    again = build(lab, manual)
    assert again.status == 0 and "built already" not in again.out
    return "rebuilt"


@row("label order", "one of the predictions in the other order, scored", times=3)
def one_exchanged(lab):
    for n in range(4):
        mask = heart(lab.seed + n)[1]
        save(lab.folder / "ref" / f"p{n}.nii.gz", mask)
        save(lab.folder / "pred" / f"p{n}.nii.gz", OTHER_ORDER[mask] if n == lab.seed else mask)
    done = lab.jras("score", lab.folder / "ref", lab.folder / "pred", ACDC)
    assert done.said("LV and RV seem exchanged", f"p{lab.seed}.nii.gz") and "/pred" in done.err
    return "warned, naming it"


@row("label order", "wrong --labels for both folders, scored")
def both_exchanged(lab):
    for side in ("ref", "pred"):
        save(lab.folder / side / "p.nii.gz", heart()[1])
    done = lab.jras("score", lab.folder / "ref", lab.folder / "pred", MNMS)
    assert done.status == 0 and done.out.count("LV and RV seem exchanged") == 2
    return "warned twice, beside the scores"


@row("label order", "a gallery folder in the other order")
def gallery_exchanged(lab):
    for n in range(3):
        image, mask = heart(n)
        save(lab.folder / "g" / f"p{n}.nii.gz", image)
        save(lab.folder / "g" / f"p{n}_gt.nii.gz", OTHER_ORDER[mask])
    done = lab.jras("gallery", f"--workdir={lab.run}", f"--input={lab.folder / 'g'}", f"--output={lab.folder / 'G'}")
    assert done.refused("exchanged") and files_of(lab.folder / "G") == []
    return "refused"


@row("geometry", "metres called millimetres, sform against qform, a mirrored prediction")
def contradictions(lab):
    image, mask = heart()
    plain = np.diag([-2.5, -2.5, 8.0, 1.0])
    scans = lab.folder / "scans"
    save(scans / "metres.nii.gz", image, plain @ np.diag([1e-3, 1e-3, 1e-3, 1]))
    twisted = nib.load(save(scans / "twisted.nii.gz", image))
    twisted.header.set_qform(plain @ np.diag([-1.0, 1, 1, 1]), 1)
    (scans / "twisted.nii.gz").write_bytes(gzip.compress(twisted.to_bytes()))
    save(scans / "good.nii.gz", image)
    done = lab.predict(scans, lab.folder / "M")
    assert done.refused("metres.nii.gz", "twisted.nii.gz", status=1)
    assert files_of(lab.folder / "M") == ["good.json", "good.nii.gz"]
    save(lab.folder / "ref" / "a.nii.gz", mask)
    save(lab.folder / "pred" / "a.nii.gz", mask, plain @ np.diag([-1.0, 1, 1, 1]))
    assert lab.jras("score", lab.folder / "ref", lab.folder / "pred", ACDC).refused("a.nii.gz")
    return "refused"


@row("geometry", "a scan in all 48 orders of its axes, predicted")
def orders(lab):
    from tests.test_axes import ORDERS, restored, stored

    scan = nib.load(next((lab.shelf / "data" / "scans").rglob("patient101_frame01.nii.gz"))) if lab.run else None
    (lab.folder / "scans").mkdir()
    for number, how in enumerate(ORDERS):
        nib.save(stored(scan, *how), lab.folder / "scans" / f"o{number:02d}.nii.gz")
    assert lab.predict(lab.folder / "scans", lab.folder / "M").status == 0
    masks = [
        restored(np.asarray(nib.load(lab.folder / "M" / f"o{number:02d}.nii.gz").dataobj), *how)
        for number, how in enumerate(ORDERS)
    ]
    assert masks[0].any() and all(np.array_equal(mask, masks[0]) for mask in masks)
    return "the same mask, voxel for voxel"


@row("one stem, two files", "x.nii beside x.nii.gz, in prediction, scoring and galleries")
def twins(lab):
    image, mask = heart()
    for folder, array in (("scans", image), ("ref", mask)):
        save(lab.folder / folder / "x.nii.gz", array)
        save(lab.folder / folder / "x.nii", array)
    assert lab.predict(lab.folder / "scans", lab.folder / "M").refused("x.nii", "x.nii.gz")
    assert lab.jras("score", lab.folder / "ref", lab.folder / "ref", ACDC).refused("x.nii")
    for name in ("x_gt.nii", "x_gt.nii.gz"):
        save(lab.folder / "scans" / name, mask)
    gallery = [f"--input={lab.folder / 'scans'}", f"--output={lab.folder / 'G'}"]
    assert lab.jras("gallery", f"--workdir={lab.run}", *gallery).refused("x")
    return "refused"


@row("outputs as inputs", "masks that would be written beside .nii scans, over another scan or over somebody's JSON")
def shadows(lab):
    scan = save(lab.folder / "scans" / "x.nii", heart()[0])
    other = save(lab.folder / "other" / "x.nii.gz", heart(1)[0])
    (lab.folder / "notes").mkdir()
    (lab.folder / "notes" / "x.json").write_text("{}")
    before = {f: (lab.folder / f).read_bytes() for f in files_of(lab.folder)}
    for output in (scan.parent, other.parent, lab.folder / "notes", lab.folder / "scans" / "x_gt.nii.gz"):
        for source in (scan, scan.parent):
            assert lab.predict(source, output).refused("--output=")
    assert {f: (lab.folder / f).read_bytes() for f in files_of(lab.folder)} == before
    return "refused, nothing changed"


@row("outputs as inputs", "masks copied among the scans under other names, predicted and built a gallery from")
def disguised(lab):
    image, mask = heart()
    save(lab.folder / "scans" / "a.nii.gz", image)
    assert lab.predict(lab.folder / "scans", lab.folder / "M").status == 0
    shutil.copy(lab.folder / "M" / "a.nii.gz", lab.folder / "scans" / "b.nii.gz")
    done = lab.predict(lab.folder / "scans", lab.folder / "N")
    assert done.said("leaves out 1 mask", "b.nii.gz") and files_of(lab.folder / "N") == ["a.json", "a.nii.gz"]
    save(lab.folder / "scans" / "b_gt.nii.gz", mask)
    gallery = [f"--input={lab.folder / 'scans'}", f"--output={lab.folder / 'G'}"]
    assert lab.jras("gallery", f"--workdir={lab.run}", *gallery).refused("b.nii.gz", "written by this program")
    return "left out, and said; refused as a scan"


@row("left out", "links to folders, dangling links, a folder named a.nii")
def links(lab):
    image = heart()[0]
    save(lab.folder / "real" / "sub" / "a.nii.gz", image)
    (lab.folder / "scans").mkdir()
    (lab.folder / "scans" / "linked").symlink_to(lab.folder / "real")
    (lab.folder / "scans" / "annexed.nii.gz").symlink_to("../.git/annex/objects/x")
    (lab.folder / "scans" / "loop").symlink_to(lab.folder / "scans")
    (lab.folder / "scans" / "folder.nii").mkdir()
    done = lab.predict(lab.folder / "scans", lab.folder / "M")
    assert done.said("annexed.nii.gz", "folder.nii")
    assert files_of(lab.folder / "M") == ["linked/sub/a.json", "linked/sub/a.nii.gz"]
    return "links are followed, the rest is named with the reason"


SUFFIXES = ("_4d", "_0000", "_SA", "_LA", "_frame07", "_ES", "_sa_ED", "_frame01_0000")


@row("who is who", "another acquisition of a gallery patient under the suffixes of challenges and tools", len(SUFFIXES))
def suffixes(lab):
    for n in (901, 902, 903):
        image, mask = heart(n)
        save(lab.folder / "g" / f"patient{n}.nii.gz", image)
        save(lab.folder / "g" / f"patient{n}_gt.nii.gz", mask)
    name = f"patient901{SUFFIXES[lab.seed]}"
    save(lab.folder / "scans" / f"{name}.nii.gz", heart(77)[0])
    done = lab.predict(lab.folder / "scans", lab.folder / "M", f"--gallery={lab.folder / 'g'}")
    evidence = json.loads((lab.folder / "M" / f"{name}.json").read_text())
    assert done.said("patient901 (by its name)", "6 of 18 gallery slices are left out")
    assert evidence["matched_by"] == "name" and "patient901" not in json.dumps(evidence["frames"])
    return "left out, and said by what"


@row("who is who", "a gallery patient's scan under another patient's name", times=2)
def renamed(lab):
    for n in (901, 902, 903):
        image, mask = heart(n)
        save(lab.folder / "g" / f"patient{n}.nii.gz", image)
        save(lab.folder / "g" / f"patient{n}_gt.nii.gz", mask)
    name = ("somebody", "patient902")[lab.seed]
    shutil.copytree(lab.folder / "g", lab.folder / "s")
    scan = lab.folder / "one" / f"{name}.nii.gz"
    scan.parent.mkdir()
    shutil.copy(lab.folder / "g" / "patient901.nii.gz", scan)
    done = lab.predict(scan, lab.folder / "M", f"--gallery={lab.folder / 'g'}")
    frames = json.dumps(json.loads((lab.folder / "M" / f"{name}.json").read_text())["frames"])
    assert done.said("patient901 (by its pixels)") and "patient901" not in frames
    assert lab.seed == 0 or ("patient902 (by its name)" in done.err and "patient902" not in frames)
    return "known by its pixels; both persons are left out"


@row("resume and open", "an option left out when training resumes")
def resumed(lab):
    run = lab.own_run()
    before = (run / "config.json").read_bytes()
    data = [f"--config.dataset.data_dir={lab.shelf / 'data'}", f"--workdir={run}"]
    less = [a for a in SMALL if "options" not in a and "num_folds" not in a]
    done = lab.jras("train", *less, *data)
    assert done.refused("backbone.options.levels", "backbone.options.base_channels", "dataset.num_folds")
    assert (run / "config.json").read_bytes() == before
    assert lab.jras("predict", f"--workdir={run}", "--input=x", "--output=y", "--config.fusion.options.a=1").status == 2
    return "refused, all differences named, config.json untouched"


@row("resume and open", "an export whose scans are gone, or whose folder is a file")
def exports(lab):
    run = lab.own_run()
    (lab.folder / "file").write_text("notes")
    before = files_of(run)
    done = lab.jras("evaluate", f"--workdir={run}", f"--output={lab.folder / 'file'}")
    assert done.refused(str(lab.folder / "file")) and files_of(run) == before
    assert "evaluating" not in done.out
    return "refused before the evaluation starts"


@row("one bad file", "one scan of three is damaged in another way each time", len(FORMS))
def damaged(lab):
    image = heart()[0]
    for name in "abc":
        save(lab.folder / "scans" / f"{name}.nii.gz", image)
    bad, form = lab.folder / "scans" / "b.nii.gz", FORMS[lab.seed]
    if form in ("text", "empty", "cut"):
        bad.write_bytes({"text": b"no scan", "empty": b"", "cut": bad.read_bytes()[:700]}[form])
    elif form == "nan":
        save(bad, np.where(image > 200, np.nan, image).astype(np.float32))
    elif form == "flat":
        save(bad, image[..., 0])
    elif form == "not gzipped to the end":
        bad.write_bytes(bad.read_bytes()[:-4] + b"\0\0\0\0")
    elif form == "metres":
        save(bad, image, np.diag([1e-3, 1e-3, 1e-3, 1]))
    else:
        raw = bytearray(gzip.decompress(bad.read_bytes()))
        raw[280:328] = bytes(48)  # the sform
        bad.write_bytes(gzip.compress(bytes(raw)))
    done = lab.predict(lab.folder / "scans", lab.folder / "M")
    assert done.refused("b.nii.gz", status=1), done.err
    assert files_of(lab.folder / "M") == ["a.json", "a.nii.gz", "c.json", "c.nii.gz"]
    return "the others are segmented, it is named at the end, exit status 1"


@row("scoring", "predict's own output tree, of nested folders with equal file names")
def own_tree(lab):
    for site in ("a", "b"):
        image, mask = heart(len(site))
        save(lab.folder / "data" / site / "p1_ED.nii.gz", image)
        save(lab.folder / "data" / site / "p1_ED_gt.nii.gz", mask)
    assert lab.predict(lab.folder / "data", lab.folder / "M").status == 0
    done = lab.jras("score", lab.folder / "data", lab.folder / "M", ACDC, f"--output={lab.folder / 's.csv'}")
    text = (lab.folder / "s.csv").read_text()
    assert done.status == 0 and "a/p1_ED" in text and "b/p1_ED" in text
    return "scored by path"


@row("scoring", "three of four predictions are missing; a prediction has no reference")
def missing(lab):
    for n in range(4):
        save(lab.folder / "ref" / f"p{n}.nii.gz", heart(n)[1])
    save(lab.folder / "pred" / "p0.nii.gz", heart()[1])
    save(lab.folder / "pred" / "q.nii.gz", heart()[1])
    done = lab.jras("score", lab.folder / "ref", lab.folder / "pred", ACDC)
    assert done.refused(*(f"p{n}.nii.gz" for n in (1, 2, 3)), "q.nii.gz", "4 files", status=1)
    return "named, exit status 1"


@row("scoring", "a submission's names against the official masks, each in its own order")
def submission(lab):
    folder = lab.folder / "ref" / "patient090"
    for frame in (11, 4):
        save(folder / f"patient090_frame{frame:02d}_gt.nii.gz", heart(frame)[1])
    (folder / "Info.cfg").write_text("ED: 11\nES: 4\n")
    for phase, frame in (("ED", 11), ("ES", 4)):
        save(lab.folder / "pred" / f"patient090_{phase}.nii.gz", OTHER_ORDER[heart(frame)[1]])
    maps = [ACDC.replace("--", "--reference_"), MNMS.replace("--", "--prediction_")]
    done = lab.jras("score", lab.folder / "ref", lab.folder / "pred", *maps, f"--output={lab.folder / 's.csv'}")
    assert done.status == 0 and "scored:" not in done.err and "exchanged" not in done.err
    rows = (lab.folder / "s.csv").read_text().splitlines()[1:]
    assert len(rows) == 6 and all(",1.0,1.0," in r for r in rows)
    return "matched by Info.cfg, every Dice is 1"


@row("privacy", "names in every text of the header, in an extension and in the folder's name")
def texts(lab):
    scan = lab.folder / "JANE_DOE" / "a.nii.gz"
    save(scan, heart()[0], descrip=b"JANE", aux_file=b"JANE", db_name=b"JANE", intent_name=b"JANE")
    image = nib.load(scan)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"JANE"))
    scan.write_bytes(gzip.compress(image.to_bytes()))
    assert lab.predict(scan.parent, lab.folder / "M").status == 0
    assert b"JANE" not in gzip.decompress((lab.folder / "M" / "a.nii.gz").read_bytes())
    assert "JANE" not in (lab.folder / "M" / "a.json").read_text()
    return "none of them in mask or JSON"


@row("small", "file names of 240 letters, and the name of one mask as the output")
def names(lab):
    save(lab.folder / "scans" / f"{'n' * 240}.nii.gz", heart()[0])
    assert lab.predict(lab.folder / "scans", lab.folder / "M").status == 0
    assert files_of(lab.folder / "M") == [f"{'n' * 240}.json", f"{'n' * 240}.nii.gz"]
    scan = save(lab.folder / "one" / "a.nii.gz", heart()[0])
    assert lab.predict(scan, lab.folder / "heart.nii.gz").status == 0 and os.path.isfile(lab.folder / "heart.nii.gz")
    assert lab.predict(scan.parent, lab.folder / "all.nii.gz").refused("all.nii.gz")
    return "work; a folder's masks are refused one name"


@row("small", "the phantom's build is named after the phantom")
def phantom_name(lab):
    more = [f"--config.dataset.data_dir={lab.folder / 'D'}", f"--workdir={lab.folder / 'W'}"]
    done = lab.jras("train", *SMALL, *more)
    built = [line for line in done.out.splitlines() if ": built from" in line]
    assert done.status == 0 and len(built) == 1 and built[0].startswith("phantom")
    return "it is"
