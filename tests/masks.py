"""A labelled heart of 16 x 16 x 4 voxels and the way to a NIfTI file."""

import nibabel as nib
import numpy as np

LABELS = "--labels=LV:1,MYO:2,RV:3"
AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])


def heart(seed=0):
    labels = np.zeros((16, 16, 4), np.uint8)
    labels[3:12, 3:12] = 2
    labels[5:10, 5 : 9 + seed % 2] = 1
    labels[12:15, 4:11] = 3
    return labels


def save(path, labels, affine=AFFINE, unit="mm"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(labels, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
