"""Segments a scan with a trained run, from Python.

python examples/predict.py runs/demo SCAN.nii.gz
"""

import pathlib
import sys

import nibabel as nib

import jras_jax


def main(workdir: str, path: str) -> None:
    """Prints what was found in each slice, counted from 1 as in the report, and which cases guided it."""
    run = jras_jax.open_run(workdir)
    gallery = run.open_gallery()  # the run's own; open_gallery("FOLDER") takes labelled scans of another hospital
    scan = nib.load(path)
    image, spacing = scan.get_fdata(), scan.header.get_zooms()[:3]
    name = pathlib.Path(path).name.partition(".")[0]  # the gallery's slices of this patient must not guide
    result = run.segment(image, spacing=spacing, affine=scan.affine, gallery=gallery, patient=name)
    print(result.labels.shape, result.probabilities.shape)
    for z, guides in enumerate(gallery.guides(result)):
        found = [name for name, label in jras_jax.STRUCTURES.items() if (result.labels[:, :, z] == label).any()]
        named = ", ".join(f"{g['case']} slice {g['slice'] + 1} ({g['weight']:.2f})" for g in guides)
        print(f"slice {z + 1}: {', '.join(found) or 'no heart'}; guided by {named}")


if __name__ == "__main__":
    main(*sys.argv[1:])
