"""ACDC's and M&Ms' official folders in small, and how a test breaks them."""

import csv

import nibabel as nib
import numpy as np

CSV = "201014_M&Ms_Dataset_Information_-_opendataset.csv"
AFFINE = np.array([[-1.1, -0.5, 4.1, 122.9], [0.0, -1.0, -6.5, 152.6], [0.8, -0.7, 5.8, -91.0], [0, 0, 0, 1]])


def write_mnms(root):
    """Three patients in the official M&Ms layout, 4 frames, ED at 2 and ES at 0, in M&Ms labels."""
    rng = np.random.default_rng(0)
    rows = []
    for code, split, vendor, letter, centre in (
        ("A1B2C3", "Training/Labeled", "Siemens", "A", 1),
        ("D4E5F6", "Validation", "Philips", "B", 2),
        ("G7H8I9", "Testing", "GE", "C", 4),
    ):
        image = rng.integers(0, 900, (9, 7, 3, 4)).astype(np.int16)
        mask = np.zeros(image.shape, np.uint8)
        mask[..., [0, 2]] = rng.integers(0, 4, (9, 7, 3, 2))
        save(root / split / code / f"{code}_sa.nii.gz", image)
        save(root / split / code / f"{code}_sa_gt.nii.gz", mask)
        rows.append([len(rows), code, vendor, letter, centre, 2, 0, "", "HCM", "", "", ""])
    header = [
        "",
        "External code",
        "VendorName",
        "Vendor",
        "Centre",
        "ED",
        "ES",
        "Age",
        "Pathology",
        "Sex",
        "Height",
        "Weight",
    ]
    with (root / CSV).open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header, *rows])
    return root


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def frame_of(folder, phase):
    """Path of the scan of a phase in an ACDC patient's folder."""
    info = dict(line.split(": ") for line in (folder / "Info.cfg").read_text().splitlines())
    return folder / f"{folder.name}_frame{int(info[phase]):02d}.nii.gz"


def mask_of(scan):
    return scan.with_name(scan.name.replace(".nii.gz", "_gt.nii.gz"))


def edit_info(path, key, value):
    """Sets a line of an Info.cfg, or takes it out (None)."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key}:")]
    path.write_text("\n".join(lines + ([] if value is None else [f"{key}: {value}"])) + "\n")


def edit_csv(path, code, column, value):
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["External code"] == code:
            row[column] = value
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def change(path, function):
    """Rewrites a scan's voxels, its header kept."""
    image = nib.load(path)
    array = function(np.asarray(image.dataobj).copy())
    image.header.set_data_dtype(array.dtype)
    nib.save(nib.Nifti1Image(array, image.affine, image.header), path)


def poke(value):
    def function(array):
        array = array.astype(np.float32)
        array[1, 1, 1] = value
        return array

    return function


def left_in(folder):
    return [p for p in folder.rglob("*") if p.is_file()] if folder.exists() else []
