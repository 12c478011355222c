"""Segments a folder of scans in PyTorch, as the J-RAS paper's authors would write it: `benchmarks.folder`'s other side.

`python -m benchmarks.folder_torch SIZES WORK SCANS OUTPUT`: nibabel reads a scan; its slices are scaled to the grid;
retriever, softmax over the k nearest, einsum over the gallery and SegFormer run on all slices of a volume as one batch;
the labels are scaled back and written. Weights are random. The gallery's embeddings are read, not computed.
"""

from __future__ import annotations

import pathlib
import sys

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import measure
from benchmarks import reference_torch as reference
from benchmarks.sizes import BY_NAME, Sizes


def load(work: pathlib.Path, sizes: Sizes) -> reference.Joint:
    """The model and the gallery, as float tensors in memory."""
    with np.load(work / "gallery.npz") as stored:
        images = torch.as_tensor(stored["images"]).float()[:, None].expand(-1, 3, -1, -1).contiguous() / 255
        masks = torch.as_tensor(stored["masks"]).float()[:, None]
        embeddings = torch.as_tensor(stored["embeddings"])
    segmenter = reference.backbone("segformer-b0", sizes.unet)
    model = reference.Joint(
        segmenter, reference.Retriever("tiny", sizes.retriever_images["tiny"]), images=images, masks=masks
    )
    model.embeddings = embeddings
    return model


def segment(model: reference.Joint, scan: np.ndarray, side: int, bf16: bool = False) -> np.ndarray:
    """(X, Y, Z) intensities -> (X, Y, Z) uint8 labels."""
    low, high = np.percentile(scan, (0.5, 99.5))
    scaled = np.clip((scan - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    slices = torch.as_tensor(scaled).permute(2, 0, 1)[:, None]
    images = F.interpolate(slices, (side, side), mode="bilinear", align_corners=False).repeat(1, 3, 1, 1)
    with torch.autocast(measure.device(), torch.bfloat16, enabled=bf16):
        labels = model.predict(images).argmax(1, keepdim=True).float()
    back = F.interpolate(labels, scan.shape[:2], mode="nearest")[:, 0]
    return back.permute(1, 2, 0).cpu().numpy().astype(np.uint8)


def main(size: str, work: str, scans: str, output: str) -> None:
    """Segments all."""
    sizes = BY_NAME[size]
    torch.set_default_device(measure.device())
    model = load(pathlib.Path(work), sizes)
    for path in sorted(pathlib.Path(scans).rglob("*.nii.gz")):
        image = nib.load(path)
        scan = image.get_fdata(dtype=np.float32)
        mask = nib.Nifti1Image(segment(model, scan, sizes.image, sizes.dtype == "bfloat16"), image.affine)
        place = pathlib.Path(output) / path.relative_to(scans)
        place.parent.mkdir(parents=True, exist_ok=True)
        nib.save(mask, place)


if __name__ == "__main__":
    main(*sys.argv[1:])
