"""The phantom: layout, truth of its geometry, shapes of the groups, and that a seed fixes it."""

import hashlib

import numpy as np
import pytest
from scipy import ndimage

from jras_jax.data import nifti, phantom

TRAIN, TEST = 10, 5


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    return folder, phantom.write_acdc(folder, train_patients=TRAIN, test_patients=TEST, seed=3)


def info_of(folder):
    return dict(line.split(": ") for line in (folder / "Info.cfg").read_text().splitlines())


def volumes_of(folder):
    """{phase: (scan, mask)} of a patient's folder."""
    info = info_of(folder)
    stems = {phase: folder / f"{folder.name}_frame{int(info[phase]):02d}" for phase in ("ED", "ES")}
    return {
        phase: (nifti.read_scan(f"{stem}.nii.gz"), nifti.read_labels(f"{stem}_gt.nii.gz", allowed=range(4)))
        for phase, stem in stems.items()
    }


def digest(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_layout_is_acdcs(written):
    folder, patients = written
    assert sorted(p.name for p in folder.iterdir()) == ["testing", "training"]
    assert [p.patient for p in patients[:TRAIN]] == [f"patient{n:03d}" for n in range(1, TRAIN + 1)]
    assert [p.patient for p in patients[TRAIN:]] == [f"patient{n:03d}" for n in range(101, 101 + TEST)]
    for p in patients:
        info = info_of(folder / p.split / p.patient)
        assert list(info) == ["ED", "ES", "Group", "Height", "NbFrame", "Weight"]
        assert info["Group"] == p.group
        assert 1 <= int(info["ED"]) < int(info["ES"]) <= int(info["NbFrame"])
        assert len(list((folder / p.split / p.patient).iterdir())) == 5
    for split in ("training", "testing"):
        assert {p.group for p in patients if p.split == split} == {"NOR", "DCM", "HCM", "MINF", "RV"}


def test_equal_seeds_give_equal_bytes_and_patients_do_not_depend_on_their_number(written, tmp_path):
    folder, _ = written
    phantom.write_acdc(tmp_path / "again", train_patients=2, test_patients=1, seed=3)
    phantom.write_acdc(tmp_path / "other", train_patients=2, test_patients=1, seed=4)
    first, again, other = digest(folder), digest(tmp_path / "again"), digest(tmp_path / "other")
    assert again.items() <= first.items()
    assert not set(other.values()) & set(again.values())


def ejection_fraction(patient, structure):
    """Share of the volume at ED that is gone at ES."""
    return 1 - patient.volumes[f"{structure}/ES"] / patient.volumes[f"{structure}/ED"]


def test_groups_have_their_shapes(written):
    _, patients = written
    mean = {
        (group, what): np.mean([get(p) for p in patients if p.group == group])
        for group in ("NOR", "DCM", "HCM", "MINF", "RV")
        for what, get in {
            "LV EF": lambda p: ejection_fraction(p, "LV"),
            "RV EF": lambda p: ejection_fraction(p, "RV"),
            "LV": lambda p: p.volumes["LV/ED"],
            "RV": lambda p: p.volumes["RV/ED"],
            "MYO": lambda p: p.volumes["MYO/ED"],
        }.items()
    }
    for p in patients:
        assert p.volumes["LV/ES"] < p.volumes["LV/ED"] and p.volumes["RV/ES"] < p.volumes["RV/ED"]
        assert abs(p.volumes["MYO/ES"] / p.volumes["MYO/ED"] - 1) < 0.25  # muscle does not vanish
    assert mean["DCM", "LV EF"] < 0.40 < 0.50 < mean["NOR", "LV EF"]
    assert mean["MINF", "LV EF"] < 0.5
    assert mean["DCM", "LV"] > 1.5 * mean["NOR", "LV"]
    assert mean["HCM", "MYO"] > 1.4 * mean["NOR", "MYO"]
    assert mean["RV", "RV"] > 1.5 * mean["NOR", "RV"] and mean["RV", "RV EF"] < 0.45 < mean["NOR", "RV EF"]


def test_an_infarct_stays_still_where_the_rest_moves(written):
    folder, patients = written

    def motion(patient):
        """Least and most inward motion of the LV's border over directions, as a share of its radius, mid-ventricle."""
        both = volumes_of(folder / patient.split / patient.patient)
        ed, es = (both[phase][1].array for phase in ("ED", "ES"))
        z = np.flatnonzero((ed == 3).any((0, 1)) & (es == 3).any((0, 1)))
        z = z[len(z) * 2 // 3]
        epi = np.argwhere(ed[..., z] >= 2).mean(0)
        radii = []
        for mask in (ed, es):
            at = np.argwhere(mask[..., z] == 3) - epi
            angle, rho = np.arctan2(at[:, 1], at[:, 0]), np.hypot(*at.T)
            sector = ((angle + np.pi) / (2 * np.pi) * 8).astype(int) % 8
            radii.append(np.array([rho[sector == k].max(initial=0) for k in range(8)]))
        share = 1 - radii[1] / np.maximum(radii[0], 1)
        return share.min(), share.max()

    infarcts = [motion(p) for p in patients if p.group == "MINF"]
    healthy = [motion(p) for p in patients if p.group == "NOR"]
    assert max(least for least, _ in infarcts) < 0.15 and min(most for _, most in infarcts) > 0.2
    assert min(least for least, _ in healthy) > 0.15


def test_anatomy_in_every_scan(written):
    folder, patients = written
    for p in patients:
        both = volumes_of(folder / p.split / p.patient)
        for scan, labels in both.values():
            assert scan.array.shape == labels.array.shape
            np.testing.assert_array_equal(scan.affine, labels.affine)
            mask = labels.array
            assert set(np.unique(mask)) == {0, 1, 2, 3}
            assert min(mask.shape[:2]) >= 80 and max(mask.shape[:2]) <= 112
            assert (scan.array >= 0).all()
            has = {k: np.flatnonzero((mask == k).any((0, 1))) for k in (1, 2, 3)}
            assert has[1].max() < has[3].max() <= has[2].max()  # base first; RV, LV, myocardium end in this order
            area = (mask == 3).sum((0, 1))
            assert area.argmax() < (has[3].min() + has[3].max()) / 2  # tapers towards the apex
            cavity = mask == 3
            rim = ndimage.binary_dilation(cavity, np.ones((3, 3, 1))) & ~cavity
            assert (mask[rim] == 2).all()  # the cavity is inside the myocardium
            bright = {k: np.median(scan.array[mask == k]) for k in (1, 2, 3)}
            assert bright[2] < 0.75 * min(bright[1], bright[3])  # blood is brighter than muscle
        spacing = both["ED"][0].spacing
        assert 1.3 <= spacing[0] == spacing[1] <= 1.8 and 5 <= spacing[2] <= 10
        assert both["ED"][0].spacing_known


def test_recorded_volumes_are_those_of_the_files(written):
    folder, patients = written
    p = patients[4]
    for phase, (scan, labels) in volumes_of(folder / p.split / p.patient).items():
        ml = float(np.prod(scan.spacing)) / 1000
        for structure, label in (("RV", 1), ("MYO", 2), ("LV", 3)):
            assert p.volumes[f"{structure}/{phase}"] == pytest.approx((labels.array == label).sum() * ml, rel=1e-4)


def test_world_coordinates_are_truthful_under_flips_and_transposes(written):
    """However a file is stored, the RV is to the patient's right of the LV, the apex to the left and feet."""
    folder, patients = written
    stored = set()
    for p in patients:
        scan, labels = volumes_of(folder / p.split / p.patient)["ED"]
        np.testing.assert_allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), scan.spacing, rtol=1e-5)
        axes = scan.affine[:3, :3] / scan.spacing
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
        stored.add(tuple(np.sign(scan.affine[[0, 1], :2].round(1)).ravel()))

        def centre(voxels, affine=scan.affine):
            return affine[:3, :3] @ voxels.mean(0) + affine[:3, 3]

        lv, rv = (np.argwhere(labels.array == k) for k in (3, 1))
        assert centre(rv)[0] > centre(lv)[0] + 10  # RAS+: x grows towards the right
        ends = [centre(lv[lv[:, 2] == z]) for z in (lv[:, 2].min(), lv[:, 2].max())]
        apex = ends[1] - ends[0]
        assert apex[0] < 0 and apex[1] > 0 and apex[2] < 0
    assert len(stored) > 3
