"""Folders of one's own data, as their owners have them, made small: discs and squares on noise."""

import json
import pathlib

import nibabel as nib
import numpy as np
import PIL.Image

SHAPE = (24, 20, 3)
LABELS = {"background": 0, "disc": 2, "square": 5}


def case(rng, channels=1, shape=SHAPE):
    """Image (X, Y, Z, channels) float32 and mask (X, Y, Z) uint8 with the values of `LABELS`."""
    x, y = np.meshgrid(*(np.arange(n) for n in shape[:2]), indexing="ij")
    mask = np.zeros(shape, np.uint8)
    mask[(x - rng.uniform(7, 10)) ** 2 + (y - rng.uniform(7, 9)) ** 2 < 20] = 2
    left, low = rng.integers(14, 17), rng.integers(10, 13)
    mask[left : left + 5, low : low + 5] = 5
    image = rng.normal(20, 4, (*shape, channels)) + 30 * (mask == 2)[..., None]
    image[..., -1] += 60 * (mask == 5)
    return image.astype(np.float32), mask


def write_volume(path, array, zooms=(1.5, 1.5, 6.0)):
    image = nib.Nifti1Image(array, np.diag([-zooms[0], -zooms[1], zooms[2], 1.0]))
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def write_picture(path, array):
    """(X, Y[, 3]) uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.ascontiguousarray(np.swapaxes(array, 0, 1))).save(path)


def facts(folder, channels=1, **more):
    names = {str(i): name for i, name in enumerate(("T1", "T2", "FLAIR")[:channels])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": names, "labels": LABELS, **more}))


def nnunet(folder: pathlib.Path, *, cases=6, channels=2, tests=0, seed=0) -> pathlib.Path:
    """nnU-Net's raw layout: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, dataset.json."""
    rng = np.random.default_rng(seed)
    facts(folder, channels, numTraining=cases, file_ending=".nii.gz")
    for number in range(cases + tests):
        part = "Tr" if number < cases else "Ts"
        image, mask = case(rng, channels)
        for channel in range(channels):
            write_volume(folder / f"images{part}" / f"shape_{number:03d}_{channel:04d}.nii.gz", image[..., channel])
        write_volume(folder / f"labels{part}" / f"shape_{number:03d}.nii.gz", mask)
    return folder


def pictures(folder: pathlib.Path, *, cases=6, suffix=".png", colour=False, seed=0) -> pathlib.Path:
    """NAME.png and NAME_gt.png side by side, with dataset.json."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = {str(i): name for i, name in enumerate(("red", "green", "blue"))} if colour else {"0": "ultrasound"}
    (folder / "dataset.json").write_text(json.dumps({"labels": LABELS, "channel_names": names}))
    for number in range(cases):
        image, mask = case(rng, 3 if colour else 1, (24, 20, 1))
        pixels = np.clip(image[:, :, 0], 0, 255).astype(np.uint8)
        write_picture(folder / f"lesion {number}{suffix}", pixels if colour else pixels[..., 0])
        write_picture(folder / f"lesion {number}_gt.png", mask[:, :, 0])
    return folder
