"""A cine-MRI phantom: short-axis stacks of made-up hearts, written as the ACDC challenge ships its scans.

Around each heart (see `anatomy`) there is what misleads a network: atria, aorta, epicardial fat, chest wall, liver,
spleen and lung vessels. Axes here are those of `anatomy`; the files then flip and transpose X and Y, their affines with
them.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from jras_jax import files
from jras_jax.data import PHASES, STRUCTURES
from jras_jax.data.nifti import write_image
from jras_jax.data.phantom.anatomy import GROUPS, Contours, Heart, Range, Stage, contours, draw_heart, labels

# What is painted: signed distance in mm (negative inside) and brightness there.
_Layer = tuple[np.ndarray, np.ndarray | float]
_FIRST_TEST_PATIENT = 101  # as in ACDC
_SUB_SLICES = (-0.25, 0.25)  # of the slice thickness: what a thick slice averages


@dataclasses.dataclass(frozen=True)
class PhantomPatient:
    """What was written of one patient.

    Attributes:
      patient: "patientNNN", the folder's name.
      split: "training" or "testing".
      group: pathology group.
      volumes: ml, by "structure/phase" ("LV/ED"), counted in the masks.
    """

    patient: str
    split: str
    group: str
    volumes: dict[str, float]


def write_acdc(
    directory: str | os.PathLike[str],
    *,
    train_patients: int = 20,
    test_patients: int = 8,
    seed: int = 0,
    matrix: tuple[int, int] = (80, 112),
) -> list[PhantomPatient]:
    """Writes the phantom in the official ACDC layout.

    A patient depends on its own number and the seed alone, so that more patients do not change the first ones; the
    groups come in turn. Equal arguments give equal bytes.

    Args:
      directory: gets training/patientNNN and testing/patientNNN, each with Info.cfg, the scans of ED and ES (int16) and
        their masks (1 RV, 2 myocardium, 3 LV).
      train_patients, test_patients: how many of each.
      seed: of everything drawn.
      matrix: the fewest and the most pixels of an image's side.

    Returns:
      What was written, training first.

    Raises:
      ScanError: a file cannot be written.
    """
    directory = pathlib.Path(directory)
    first_test = max(_FIRST_TEST_PATIENT, train_patients + 1)
    numbers = [("training", 1 + i) for i in range(train_patients)]
    numbers += [("testing", first_test + i) for i in range(test_patients)]
    return [
        _write_patient(directory / split, split=split, number=number, seed=seed, matrix=matrix)
        for split, number in numbers
    ]


def _write_patient(folder: pathlib.Path, split: str, number: int, seed: int, matrix: tuple[int, int]) -> PhantomPatient:
    rng = np.random.default_rng([seed, number])
    name = f"patient{number:03d}"
    group = tuple(GROUPS)[(number - 1) % len(GROUPS)]
    heart = draw_heart(rng, group)
    stage = _draw_stage(rng, heart, matrix)
    affine = _draw_affine(rng, stage)
    turn = (bool(rng.random() < 0.3), bool(rng.random() < 0.3), bool(rng.random() < 0.3))
    frames = int(rng.integers(20, 31))
    frame = {"ED": 1, "ES": round(frames * rng.uniform(0.33, 0.45))}
    scene = _draw_scene(rng, stage)
    volumes: dict[str, float] = {}
    for phase in PHASES:
        mask = labels(contours(heart, phase, stage))
        image = _image(rng, heart=heart, phase=phase, stage=stage, scene=scene)
        stem = folder / name / f"{name}_frame{frame[phase]:02d}"
        for suffix, array in (("", image), ("_gt", mask)):
            write_image(f"{stem}{suffix}.nii.gz", _nifti(array, affine, turn), compresslevel=1)
        voxel = stage.pixel**2 * stage.thickness / 1000.0
        volumes |= {f"{s}/{phase}": float((mask == label).sum() * voxel) for s, label in STRUCTURES.items()}
    info = {"ED": frame["ED"], "ES": frame["ES"], "Group": group, "Height": round(float(rng.uniform(155, 192)), 1)}
    info |= {"NbFrame": frames, "Weight": round(float(rng.uniform(52, 105)), 1)}
    files.write_text(folder / name / "Info.cfg", "".join(f"{key}: {value}\n" for key, value in info.items()))
    return PhantomPatient(name, split=split, group=group, volumes=volumes)


def _draw_stage(rng: np.random.Generator, heart: Heart, matrix: tuple[int, int]) -> Stage:
    """Pixel size, matrix, slices, and the heart's position, which differs a little by slice, as breath holds do."""
    pixel, thickness = round(float(rng.uniform(1.3, 1.8)), 4), float(rng.choice([5.0, 7.0, 8.0, 8.0, 10.0, 10.0]))
    sides = [int(np.clip(round(rng.uniform(140, 170) / pixel), *matrix)) for _ in range(2)]
    bottom = heart.length + 0.6 * heart.wall
    first = thickness * rng.uniform(-0.8, 0.3)
    depth = np.arange(first, bottom + thickness * rng.uniform(0.0, 0.8), thickness)
    off = rng.normal(0.0, 6.0, 2) - 0.45 * heart.rv_depth * np.array([np.cos(heart.septum), np.sin(heart.septum)])
    breath = rng.normal(0.0, 0.7, (2, len(depth)))
    axes = [(np.arange(n) - (n - 1) / 2) * pixel for n in sides]
    x, y = np.meshgrid(*axes, indexing="ij")
    tilt = np.array(heart.tilt)[:, None] * (depth - depth.mean())
    centre = off[:, None] + breath + tilt
    return Stage(
        x=(x - centre[0][:, None, None]).astype(np.float32),
        y=(y - centre[1][:, None, None]).astype(np.float32),
        z=depth.astype(np.float32)[:, None, None],
        pixel=pixel,
        thickness=thickness,
    )


def _draw_affine(rng: np.random.Generator, stage: Stage) -> np.ndarray:
    """(4, 4) voxel to world of the upright volume: a usual short-axis view, turned a little."""
    right = np.array([-0.81, 0.0, 0.58])  # towards the patient's left and head
    down = np.array([-0.39, -0.74, -0.55])  # towards back and feet
    right /= np.linalg.norm(right)
    down -= right * (down @ right)
    down /= np.linalg.norm(down)
    frame = Rotation.from_rotvec(rng.normal(0.0, 0.1, 3)).as_matrix() @ np.stack(
        [right, down, -np.cross(right, down)], axis=1
    )
    slices, width, height = stage.x.shape
    affine = np.eye(4)
    affine[:3, :3] = frame * [stage.pixel, stage.pixel, stage.thickness]
    affine[:3, 3] = rng.normal([-20, 10, 10], 15.0) - affine[:3, :3] @ ((np.array([width, height, slices]) - 1) / 2)
    return affine


@dataclasses.dataclass(frozen=True)
class _Scene:
    """What ED and ES share: the tissues' brightness, the surroundings and the receiver coil.

    Attributes:
      tissue: brightness, blood of the LV at 1 or a little less.
      body: (Z, X, Y) the picture without the heart.
      texture: (Z, X, Y) factor about 1, of the tissue.
      coil: (1, X, Y) factor, the coil's sensitivity.
      gain: scanner units for a brightness of 1.
      noise: standard deviation, of a brightness of 1.
      blur: of the reconstruction, pixels.
    """

    tissue: dict[str, float]
    body: np.ndarray
    texture: np.ndarray
    coil: np.ndarray
    gain: float
    noise: float
    blur: float


_TISSUE = {
    "blood": Range(0.80, 1.00),
    "rv_blood": Range(0.72, 1.00),
    "myocardium": Range(0.22, 0.38),
    "fat": Range(0.55, 1.05),
    "lung": Range(0.04, 0.10),
    "liver": Range(0.32, 0.52),
    "muscle": Range(0.22, 0.36),
}


def _paint(picture: np.ndarray, layers: list[_Layer], pixel: float) -> np.ndarray:
    """Paints layers over a picture; a pixel on an edge takes its share of both sides."""
    for distance, value in layers:
        picture = picture + np.clip(0.5 - distance / pixel, 0.0, 1.0) * (value - picture)
    return picture


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """(Z, X, Y) noise, smooth in the plane, mean 0, standard deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), (0, sigma, sigma))
    return (noise - noise.mean()) / noise.std()


def _draw_scene(rng: np.random.Generator, stage: Stage) -> _Scene:
    """Draws the surroundings of the heart."""
    tissue = {name: span.draw(rng) for name, span in _TISSUE.items()}
    shape = stage.x.shape
    body = tissue["lung"] + 0.5 * np.clip(_smooth_noise(rng, shape, 1.5) - 1.6, 0, 1)  # with its vessels
    return _Scene(
        tissue=tissue,
        body=_paint(body, _surroundings(rng, stage, tissue), stage.pixel),
        texture=1 + 0.05 * _smooth_noise(rng, shape, 1.2) + 0.05 * _smooth_noise(rng, shape, 4.0),
        coil=_draw_coil(rng, stage),
        gain=float(rng.uniform(180, 700)),
        noise=float(rng.uniform(0.015, 0.05)),
        blur=float(rng.uniform(0.35, 0.7)),
    )


def _surroundings(rng: np.random.Generator, stage: Stage, tissue: dict[str, float]) -> list[_Layer]:
    """Chest wall, liver, spleen and aorta, from the backmost on."""
    x, y, z = stage.x, stage.y, stage.z
    chest = y + rng.uniform(62, 80) - 0.004 * (x + rng.uniform(-20, 20)) ** 2  # the chest wall is above the curve
    ribs = tissue["muscle"] + 0.05 * np.sin(x / rng.uniform(5, 9))
    diaphragm = rng.uniform(34, 52) - 0.25 * z + 0.006 * (x + 35) ** 2  # rises towards the apex
    spleen = np.hypot((x - rng.uniform(45, 60)) / 1.3, y - rng.uniform(50, 64)) - rng.uniform(14, 22) - 0.1 * z
    aorta = np.hypot(x - rng.uniform(28, 45), y - rng.uniform(42, 56)) - rng.uniform(8, 12)
    return [
        (chest - 14, ribs),
        (chest - 4, tissue["fat"]),
        (chest + rng.uniform(8, 16), 0.02),  # air
        (diaphragm - y, tissue["liver"]),
        (spleen, 0.8 * tissue["liver"]),
        (aorta - 2, tissue["muscle"]),
        (aorta, tissue["blood"]),
    ]


def _draw_coil(rng: np.random.Generator, stage: Stage) -> np.ndarray:
    """(1, X, Y) sensitivity of the receiver coil, the exponential of a quadratic; mostly brighter near the chest."""
    _, width, height = stage.x.shape
    u, v = np.meshgrid(np.linspace(-0.5, 0.5, width), np.linspace(-0.5, 0.5, height), indexing="ij")
    along, across, bowl = rng.normal([0.0, -0.5, 0.0], [0.35, 0.3, 0.5])
    return np.exp(along * u + across * v + bowl * (u * u + v * v)).astype(np.float32)[None]


def _image(rng: np.random.Generator, heart: Heart, phase: str, stage: Stage, scene: _Scene) -> np.ndarray:
    """(X, Y, Z) int16: the heart painted into the scene, blurred, with the coil's shading and Rician noise."""
    clean = np.zeros(stage.x.shape, np.float32)
    for part in _SUB_SLICES:
        moved = dataclasses.replace(stage, z=stage.z + np.float32(part * stage.thickness))
        layers = _heart_layers(contours(heart, phase, moved), scene.tissue)
        clean += _paint(scene.body, layers, stage.pixel) / len(_SUB_SLICES)
    clean = ndimage.gaussian_filter(clean * scene.texture * scene.coil, (0, scene.blur, scene.blur))
    noise = rng.standard_normal((2, *clean.shape), np.float32) * scene.noise
    return np.moveaxis(np.rint(np.hypot(clean + noise[0], noise[1]) * scene.gain).astype(np.int16), 0, 2)


def _heart_layers(outlines: Contours, tissue: dict[str, float]) -> list[_Layer]:
    """The heart and the fat around it, from the backmost on."""
    heart = np.minimum(outlines.epi, outlines.rv)
    return [
        (heart - 5.0, tissue["fat"]),
        (np.minimum(outlines.atria - 2.0, heart - 2.5), tissue["myocardium"]),  # thin walls of atria and RV
        (outlines.atria, 0.95 * tissue["blood"]),
        (outlines.rv, tissue["rv_blood"]),
        (outlines.epi, tissue["myocardium"]),
        (outlines.endo, tissue["blood"]),
        (np.maximum(outlines.papillary, outlines.endo), 1.1 * tissue["myocardium"]),
    ]


def _nifti(array: np.ndarray, affine: np.ndarray, turn: tuple[bool, bool, bool]) -> nib.Nifti1Image:
    """The image as stored: X and Y each flipped or not, then swapped or not; world coordinates stay where they were."""
    affine = affine.copy()
    for axis, flip in enumerate(turn[:2]):
        if flip:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    if turn[2]:
        array = np.swapaxes(array, 0, 1)
        affine[:, [0, 1]] = affine[:, [1, 0]]
    image = nib.Nifti1Image(np.ascontiguousarray(array), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    return image
