"""Many scans at once: the same files as one by one, batches across volumes, one program, bounded memory, order."""

import gc
import shutil
import threading
import time
import weakref

import nibabel as nib
import numpy as np
import pytest

from jras_jax.errors import UserError
from jras_jax.inference import pipeline
from jras_jax.inference.scans import segment_file, tasks
from jras_jax.inference.trained_run import open_run

LPS = np.diag([-2.5, -2.5, 8.0, 1.0])
DEPTHS = (4, 3, 5, 1, 9, 2)  # batches of 8 slices: most hold several scans, and one scan is split


def save(path, shape, seed):
    """A noisy disc."""
    x, y = np.mgrid[: shape[0], : shape[1]]
    disc = np.hypot(x - shape[0] / 2, y - shape[1] / 2) < 8
    noise = np.random.default_rng(seed).integers(0, 60, shape)
    image = nib.Nifti1Image((80 + 120 * disc.reshape(*shape[:2], *(1,) * (len(shape) - 2)) + noise).astype("i2"), LPS)
    image.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


@pytest.fixture(scope="module")
def scans(trained_run, tiny, tmp_path_factory):
    """A folder of scans of several shapes, a cine and a patient of the gallery among them."""
    folder = tmp_path_factory.mktemp("scans")
    for number, depth in enumerate(DEPTHS):
        save(folder / f"s{number}.nii.gz", (30 + number, 34, depth), number)
    save(folder / "sub" / "cine.nii.gz", (32, 32, 3, 2), 9)
    patient = open_run(trained_run).splits["train"][0]
    shutil.copy(next((tiny.data_dir / "scans").rglob(f"{patient}_frame01.nii.gz")), folder / "anonymous.nii.gz")
    return folder


def opened(trained_run, tiny, *overrides):
    run = open_run(trained_run, overrides)
    return run, run.train_gallery(tiny.data(run))


def written(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("overrides", [(), ("--config.retrieval.strategy=random",)], ids=["top_k", "random"])
def test_the_files_are_those_of_one_scan_after_the_other(trained_run, tiny, scans, tmp_path, overrides):
    run, gallery = opened(trained_run, tiny, *overrides)
    segmenter = run.segmenter(gallery.arrays)
    for task in tasks(scans, tmp_path / "single"):
        segment_file(run, task, gallery=gallery, segmenter=segmenter)
    told, noted = [], []
    faults = pipeline.segment_files(
        run,
        tasks(scans, tmp_path / "many"),
        gallery=gallery,
        segmenter=segmenter,
        tell=lambda *x: told.append(x),
        note=noted.append,
    )
    assert faults == [] and len(told) == len(DEPTHS) + 2 and all(fault == "" for _, _, fault in told)
    assert [number for number, _, _ in told] == list(range(1, len(told) + 1))
    assert written(tmp_path / "many") == written(tmp_path / "single")
    assert len(noted) == 1 and "anonymous.nii.gz: is a scan of the gallery's" in noted[0]
    program = segmenter.program
    assert (program._cache_size() if segmenter.draws else len(program.programs)) == 1


def test_batches_are_full_across_volumes(trained_run, tiny, scans, tmp_path, monkeypatch):
    run, gallery = opened(trained_run, tiny)
    segmenter = run.segmenter(gallery.arrays)
    sizes = []
    started = type(segmenter).started
    monkeypatch.setattr(
        type(segmenter),
        "started",
        lambda self, images, *rest: sizes.append(len(images)) or started(self, images, *rest),
    )
    pipeline.segment_files(run, tasks(scans, tmp_path), gallery=gallery, segmenter=segmenter)
    assert set(sizes[:-1]) == {segmenter.batch_size} and 0 < sizes[-1] <= segmenter.batch_size


def test_reading_waits_for_writing(trained_run, tiny, scans, tmp_path, monkeypatch):
    """With no memory to spare, a scan is written before the next but `AHEAD` is read."""
    run, gallery = opened(trained_run, tiny)
    alive, most, lock = weakref.WeakValueDictionary(), [], threading.Lock()
    read, write = pipeline.open_scan, pipeline.write_results

    def slow(*arguments, **named):
        time.sleep(0.05)
        return write(*arguments, **named)

    def counted(*arguments, **named):
        scan = read(*arguments, **named)
        with lock:
            alive[len(most)] = scan.scan.array
            gc.collect()
            most.append(len(alive))
        return scan

    monkeypatch.setattr(pipeline, "open_scan", counted)
    monkeypatch.setattr(pipeline, "write_results", slow)
    monkeypatch.setattr(pipeline, "AHEAD", 1)
    monkeypatch.setattr(pipeline, "MEMORY", 0)
    assert pipeline.segment_files(run, tasks(scans, tmp_path), gallery) == []
    assert len(most) == len(DEPTHS) + 2 and max(most) <= 3


def test_a_full_disk_stops_and_leaves_no_thread(trained_run, tiny, scans, tmp_path, monkeypatch):
    run, gallery = opened(trained_run, tiny)

    def full(*arguments, **named):
        raise UserError("no space") from OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "write_results", full)
    with pytest.raises(UserError, match="no space"):
        pipeline.segment_files(run, tasks(scans, tmp_path), gallery)
    assert not [t for t in threading.enumerate() if t.name.startswith(("reader", "writer"))]
