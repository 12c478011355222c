"""Segments a folder of scans with MONAI's loader, transforms and writer: `benchmarks.folder`'s third side.

`python -m benchmarks.folder_monai SIZES WORK SCANS OUTPUT`: the model and gallery of `benchmarks.folder_torch`, in a
loop as MONAI's bundles have it: dictionary transforms in the workers of a DataLoader, all slices of a volume as one
batch (no sliding window), Invertd to the scan's grid, SaveImaged. Needs monai 1.6.
"""

from __future__ import annotations

import pathlib
import sys

import torch

from benchmarks import measure
from benchmarks.folder_torch import load
from benchmarks.sizes import BY_NAME

WORKERS = 2


def main(size: str, work: str, scans: str, output: str) -> None:
    """Segments all."""
    # Here, as `reference_torch` must first hide a torchvision that does not load.
    from monai import transforms
    from monai.data import DataLoader, Dataset, decollate_batch

    sizes = BY_NAME[size]
    before = transforms.Compose(
        [
            transforms.LoadImaged("image", ensure_channel_first=True),
            transforms.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, b_min=0, b_max=1, clip=True),
            transforms.Resized("image", (sizes.image, sizes.image, -1), mode="trilinear"),
        ]
    )
    after = transforms.Compose(
        [
            transforms.AsDiscreted("mask", argmax=True),
            transforms.Invertd("mask", before, orig_keys="image", nearest_interp=True),
            transforms.SaveImaged(
                "mask",
                output_dir=output,
                output_postfix="",
                data_root_dir=scans,
                separate_folder=False,
                output_dtype="uint8",
                print_log=False,
            ),
        ]
    )
    paths = sorted(pathlib.Path(scans).rglob("*.nii.gz"))
    data = Dataset([{"image": str(path)} for path in paths], before)
    with torch.device(measure.device()):
        model = load(pathlib.Path(work), sizes)
    for batch in DataLoader(data, batch_size=1, num_workers=WORKERS):
        slices = batch["image"][0].permute(3, 0, 1, 2).repeat(1, 3, 1, 1).to(measure.device())  # (Z, 3, S, S)
        with torch.autocast(measure.device(), torch.bfloat16, enabled=sizes.dtype == "bfloat16"):
            scores = model.predict(slices.as_tensor())  # (Z, C, S, S)
        batch["mask"] = scores.float().cpu().permute(1, 2, 3, 0)[None]
        for case in decollate_batch(batch):
            after(case)


if __name__ == "__main__":
    main(*sys.argv[1:])
