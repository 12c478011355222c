"""Folders of one's own data: what is read of them, what is refused, and how `jras check` says it."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest

import tfds_builders
from jras_jax.commands.cli import main
from jras_jax.data import prepared
from jras_jax.data.description import read_description
from jras_jax.errors import UserError
from tests.own_folders import LABELS, case, facts, nnunet, pictures, write_picture, write_volume
from tfds_builders.folder import Builder, survey


def volumes(folder, tmp_path, split="train"):
    built = tfds_builders.build("folder", folder, tmp_path / "cache", say=lambda line: None)
    return prepared.load_volumes(built, split, prepared.describe(built, "folder"))


def edit(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_nnunets_layout_is_read_with_its_channels_names_and_values(tmp_path):
    folder = nnunet(tmp_path / "Dataset007_Shapes", cases=2, tests=1)
    image, mask = case(np.random.default_rng(0), 2)
    first, _ = volumes(folder, tmp_path)
    assert first.case == first.patient == "shape_000" and not first.phase and first.spacing_known
    assert first.image.shape == (*mask.shape, 2) and np.allclose(first.image, image)
    assert np.array_equal(first.mask, np.array([0, 0, 1, 0, 0, 2])[mask])
    own = first.description
    assert own.structure_values == {"disc": 2, "square": 5} and own.channels == ("T1", "T2") and own.dimensions == 3
    assert [v.case for v in volumes(folder, tmp_path, "test")] == ["shape_002"]


@pytest.mark.parametrize(("suffix", "colour"), [(".png", False), (".tif", False), (".png", True)])
def test_pairs_of_pictures_are_slices_without_spacing(tmp_path, suffix, colour):
    folder = pictures(tmp_path / "lesions", cases=2, suffix=suffix, colour=colour)
    (first, _) = volumes(folder, tmp_path)
    stored = np.asarray(PIL.Image.open(folder / f"lesion 0{suffix}"), np.float32)
    assert first.description.dimensions == 2 and not first.spacing_known and first.case == "lesion 0"
    assert np.array_equal(first.image[:, :, 0], np.swapaxes(stored, 0, 1))
    assert first.image.shape == ((24, 20, 1, 3) if colour else (24, 20, 1))
    assert set(np.unique(first.mask)) == {0, 1, 2}


def test_folders_of_images_and_masks_and_of_train_and_test(tmp_path):
    made = pictures(tmp_path / "made", cases=3)
    folder = tmp_path / "parted"
    for number, split in enumerate(("train", "train", "test")):
        for kind, name in (("images", f"lesion {number}"), ("masks", f"lesion {number}_gt")):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(made / f"{name}.png", folder / split / kind / f"lesion {number}.png")
    shutil.copy(made / "dataset.json", folder)
    found, faults = survey(folder)
    assert not faults
    assert {split: [c.name for c in own] for split, own in found.cases.items()} == {
        "train": ["lesion 0", "lesion 1"],
        "test": ["lesion 2"],
    }


def test_patients_csv_keeps_the_cases_of_a_patient_together(tmp_path):
    folder = nnunet(tmp_path / "own", cases=3, channels=1)
    rows = ["case,patient,group", "shape_000,anna,a", "shape_001,anna,a", "shape_002,ben,b"]
    (folder / "patients.csv").write_text("\n".join(rows))
    assert [(v.case, v.patient, v.group) for v in volumes(folder, tmp_path)] == [
        ("shape_000", "anna", "a"),
        ("shape_001", "anna", "a"),
        ("shape_002", "ben", "b"),
    ]
    (folder / "patients.csv").write_text("\n".join(rows[:-1]))
    with pytest.raises(UserError, match=r"patients\.csv: has no row for case shape_002"):
        Builder.inventory(folder)


def test_the_description_lies_beside_the_records(tmp_path):
    folder = nnunet(tmp_path / "own", cases=1)
    built = tfds_builders.build("folder", folder, tmp_path / "cache", say=lambda line: None)
    assert read_description(built / "dataset.json", "").to_json() == Builder.describe(folder).to_json()
    other = shutil.copytree(folder, tmp_path / "elsewhere" / "own")
    assert tfds_builders.home("folder", other, tmp_path) != tfds_builders.home("folder", folder, tmp_path)


def test_a_name_of_four_digits_is_a_case_unless_it_is_a_channel(tmp_path):
    folder = tmp_path / "own"
    facts(folder)
    image, mask = case(np.random.default_rng(0))
    write_volume(folder / "imagesTr" / "scan_0012.nii.gz", image[..., 0])
    write_volume(folder / "labelsTr" / "scan_0012.nii.gz", mask)
    found, faults = survey(folder)
    assert not faults and [c.name for c in found.cases["train"]] == ["scan_0012"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, '"whole" is a region .* not supported: give each value'),
        ({"labels": {"background": 0, "x": 1, "ignore": 2}}, '"ignore" is not supported'),
        ({"labels": {"background": 0, "x": 1, "y": 1}}, "two labels have one value"),
        ({"labels": {"x": 0}}, 'write "background": 0'),
        ({"labels": {"background": 0}}, "names no structure"),
        ({"labels": 3}, 'has no "labels"'),
        ({"channel_names": {"1": "T1"}}, 'number the channels from "0"'),
        ({"labels": {"background": 0, "a:b": 1}}, "holds ':'"),
    ],
)
def test_a_dataset_json_that_cannot_be_followed_is_named(tmp_path, change, message):
    folder = nnunet(tmp_path / "own", cases=1)
    edit(folder, **change)
    with pytest.raises(UserError, match=rf"dataset\.json: .*{message}"):
        Builder.describe(folder)


def test_labels_of_version_1_have_the_values_as_keys(tmp_path):
    folder = nnunet(tmp_path / "own", cases=1)
    edit(folder, labels={"0": "background", "5": "square", "2": "disc"})
    assert Builder.describe(folder).structure_values == {"disc": 2, "square": 5}


def test_without_dataset_json_the_message_says_what_to_write(tmp_path):
    folder = pictures(tmp_path / "lesions", cases=2)
    (folder / "dataset.json").unlink()
    with pytest.raises(UserError, match=r'"NAME1": 2, "NAME2": 5'):
        Builder.describe(folder)
    (tmp_path / "lesions" / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    with pytest.raises(UserError, match="holds the data sets lesions; give the folder of one"):
        Builder.describe(tmp_path)


def spoil(folder):
    """Four faults, of which three show without reading a voxel."""
    (folder / "imagesTr" / "shape_001_0001.nii.gz").unlink()
    (folder / "labelsTr" / "shape_002.nii.gz").unlink()
    _, mask = case(np.random.default_rng(1))
    write_volume(folder / "labelsTr" / "lost.nii.gz", mask)
    write_volume(folder / "labelsTr" / "shape_003.nii.gz", np.where(mask == 2, 7, mask).astype(np.uint8))


def test_check_names_every_fault_in_one_go_and_draws_a_picture(tmp_path, capsys):
    folder = nnunet(tmp_path / "own", cases=5)
    picture = tmp_path / "seen.png"
    assert main(["check", str(folder), f"--picture={picture}"]) == 0
    said = capsys.readouterr().out
    assert "no fault" in said and "jras train --config=configs/folder.py" in said and "5 of 5" in said
    pixels = np.asarray(PIL.Image.open(picture).convert("RGB"))
    assert (pixels == (0x56, 0xB4, 0xE9)).all(-1).any() and (pixels == (0xF0, 0xE4, 0x42)).all(-1).any()
    spoil(folder)
    assert main(["check", str(folder), f"--picture={picture}"]) == 1
    said = capsys.readouterr().out
    assert "4 faults" in said
    for part in (
        "case shape_001 lacks the channel shape_001_0001",
        "shape_002_0000.nii.gz: has no mask; put it into",
        "lost.nii.gz: has no image; put it into",
        "shape_003.nii.gz: a mask may hold only the labels [0, 2, 5], it holds [7] too",
    ):
        assert part in said, said
    with pytest.raises(UserError, match=r"2 more: jras check .*own lists them all"):
        Builder.inventory(folder)


def test_check_reads_pictures_and_refuses_what_is_no_mask(tmp_path, capsys):
    folder = pictures(tmp_path / "lesions", cases=4)
    write_picture(folder / "lesion 1_gt.png", np.zeros((10, 20), np.uint8))
    write_picture(folder / "lesion 2_gt.png", np.random.default_rng(0).integers(0, 9, (24, 20, 3)).astype(np.uint8))
    (folder / "lesion 3.png").write_bytes(b"no image")
    assert main(["check", str(folder), f"--picture={tmp_path / 'x.png'}"]) == 1
    said = capsys.readouterr().out
    assert "it has 10 x 20 pixels, but its image 24 x 20" in said
    assert "this one has colours" in said and "lesion 3.png: cannot be read as an image" in said


def test_check_of_no_folder_is_a_fault(tmp_path, capsys):
    assert main(["check", str(tmp_path / "absent")]) == 1
    assert "there is no such folder" in capsys.readouterr().out
