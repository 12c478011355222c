"""Between a scan's native voxels and the model's square grid, both ways, and the table of slices a run works on.

The model sees slices of S x S pixels, rows running down and columns to the right. If the header's geometry is known,
rows run towards the patient's back and feet and columns to the patient's left (the radiological view), and pixels
are `spacing_mm` wide; if it is not, rows are Y and columns X as stored. All maps are separable and linear, held as
one small matrix per axis, so that the way back (for scores in native geometry) is exact about centres and scale.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jras_jax.data import NUM_CLASSES, Volume, axes
from jras_jax.data.frame import Frame, FrameRule, Located, Placement, frame_of, placement
from jras_jax.data.resampling import along_axes, resampling, sampled, sampling, winners, with_background

if TYPE_CHECKING:
    import scipy.sparse


class Grid(NamedTuple):
    """The model grid: side in pixels, their size in mm (0: native), what to do without spacing, percentiles.

    `ignore_spacing` treats every scan as one without spacing: for models trained on such scans alone, which know the
    heart at that scale only. With a `frame`, the grid is a crop in the frame of the heart, and `whole` is the grid of
    the whole slices in which the frame is looked for. With `neighbours`, an image is a stack of three slices, see
    `stacked`.
    """

    image_size: int
    spacing_mm: float
    unknown_spacing: str
    percentiles: tuple[float, float]
    ignore_spacing: bool = False
    frame: FrameRule | None = None
    whole_size: int = 64
    neighbours: bool = False

    @property
    def whole(self) -> Grid:
        """The grid of the locator, to which every slice is fitted whole."""
        return self._replace(
            image_size=self.whole_size, unknown_spacing="fit", ignore_spacing=True, frame=None, neighbours=False
        )


@dataclasses.dataclass(frozen=True)
class GridMap:
    """How one volume's slices are placed on the model grid.

    Attributes:
      shape: (X, Y, Z) of the native volume, its slices last.
      transpose, flip_rows, flip_cols: from (X, Y) to (rows, columns): transpose first, then flip.
      scale: model pixels per native pixel, along rows and columns.
      image_size: S.
      slice_axis: the axis of the volume as stored that runs through the slices; 2 unless the scan is stored otherwise.
        Below, X, Y and Z are its axes with the slices last.
      num_classes: of the volume's labels, the background among them.
    """

    shape: tuple[int, int, int]
    transpose: bool
    flip_rows: bool
    flip_cols: bool
    scale: tuple[float, float]
    image_size: int
    slice_axis: int = 2
    num_classes: int = NUM_CLASSES

    def oriented(self, volume: np.ndarray) -> np.ndarray:
        """(X, Y, Z, ...) as stored -> (rows, columns, Z, ...)."""
        out = np.moveaxis(volume, self.slice_axis, 2)
        out = np.swapaxes(out, 0, 1) if self.transpose else out
        out = out[::-1] if self.flip_rows else out
        return out[:, ::-1] if self.flip_cols else out

    def _native(self, volume: np.ndarray) -> np.ndarray:
        """(rows, columns, Z, ...) -> (X, Y, Z, ...) as stored."""
        out = volume[:, ::-1] if self.flip_cols else volume
        out = out[::-1] if self.flip_rows else out
        out = np.swapaxes(out, 0, 1) if self.transpose else out
        return np.moveaxis(out, 2, self.slice_axis)

    def _sizes(self) -> tuple[int, int]:
        x, y, _ = self.shape
        return (y, x) if self.transpose else (x, y)

    def on_scan(self, points: np.ndarray) -> np.ndarray:
        """Positions (..., 2) on the model grid -> on the oriented slice; rows and columns, in pixels."""
        return (points - (self.image_size - 1) / 2) / self.scale + (np.array(self._sizes()) - 1) / 2

    def on_model(self, points: np.ndarray) -> np.ndarray:
        """The way back of `on_scan`."""
        return (points - (np.array(self._sizes()) - 1) / 2) * self.scale + (self.image_size - 1) / 2

    def voxel(self, row: float, column: float) -> tuple[float, float]:
        """A position on the oriented slice -> indices along the volume's two in-plane axes, in their stored order."""
        rows, columns = self._sizes()
        row = rows - 1 - row if self.flip_rows else row
        column = columns - 1 - column if self.flip_cols else column
        return (column, row) if self.transpose else (row, column)

    def to_model(self, volume: np.ndarray) -> np.ndarray:
        """(X, Y, Z) or (X, Y, Z, C) of any real type -> (Z, S, S) or (Z, S, S, C) float32; 0 outside the scan."""
        (rows, cols), size = self._sizes(), self.image_size
        a = resampling(size, rows, self.scale[0])
        b = resampling(size, cols, self.scale[1])
        return along_axes(a, b, np.moveaxis(self.oriented(volume), 2, 0))

    def labels_to_model(self, mask: np.ndarray) -> np.ndarray:
        """(X, Y, Z) labels -> (Z, S, S) uint8: the class with the largest share of the pixel."""
        return winners(with_background(self.to_model(_onehot(mask, self.num_classes)[..., 1:])))[0]

    def probabilities_to_native(self, probabilities: np.ndarray) -> np.ndarray:
        """(Z, S, S, C) class probabilities -> (X, Y, Z, C) float32; background outside the model grid."""
        return np.ascontiguousarray(self._native(np.moveaxis(self._resampled_back(probabilities), 0, 2)))

    def to_native(self, probabilities: np.ndarray) -> np.ndarray:
        """(Z, S, S, C) class probabilities -> (X, Y, Z) uint8 labels; background outside the model grid."""
        labels, _ = winners(self._resampled_back(probabilities))
        return np.ascontiguousarray(self._native(np.moveaxis(labels, 0, 2)))

    def _resampled_back(self, probabilities: np.ndarray) -> np.ndarray:
        """(Z, S, S, C) -> (Z, rows, columns, C) at the native resolution; each class is contiguous in memory."""
        rows, cols = self._sizes()
        a = resampling(rows, self.image_size, 1 / self.scale[0])
        b = resampling(cols, self.image_size, 1 / self.scale[1])
        depth, classes = len(probabilities), probabilities.shape[-1]
        native = np.empty((classes, depth, rows, cols), np.float32)
        # What the grid does not cover has no probability at all: the rest belongs to the background.
        native[0] = 1.0
        for label in range(1, classes):
            native[label] = along_axes(a, b, probabilities[..., label])
            native[0] -= native[label]
        return np.moveaxis(native, 0, -1)


@dataclasses.dataclass(frozen=True)
class FrameMap(GridMap):
    """How one volume's slices lie on a grid in the frame of the heart.

    Attributes:
      placement: of the grid on the oriented slice.
    """

    placement: Placement = dataclasses.field(kw_only=True)

    def to_model(self, volume: np.ndarray) -> np.ndarray:
        """See `GridMap`."""
        size = (self.image_size, self.image_size)
        return sampled(self._way_to_model, np.moveaxis(self.oriented(volume), 2, 0), size)

    @functools.cached_property
    def _way_to_model(self) -> scipy.sparse.csr_array:
        """Kept, as images and masks take the same way."""
        return self._way((self.image_size, self.image_size), self._sizes(), self.placement)

    def _resampled_back(self, probabilities: np.ndarray) -> np.ndarray:
        way = self._way(self._sizes(), (self.image_size, self.image_size), self.placement.inverse())
        return with_background(sampled(way, probabilities[..., 1:], self._sizes()))

    def _way(self, out: tuple[int, int], source: tuple[int, int], place: Placement) -> scipy.sparse.csr_array:
        shift = self.placement.centre if place is not self.placement else np.full(2, place.middle)
        points = lambda at: (at - shift) @ place.matrix.T + place.centre  # noqa: E731
        return sampling(out, source, points=points, step=float(np.linalg.norm(place.matrix, axis=0).max()))


def grid_map(volume: Volume, grid: Grid, slice_axis: int = 2) -> GridMap:
    """The map of one volume onto the model grid; `slice_axis` is the axis that runs through its slices."""
    order = axes.slices_last(slice_axis)
    x, y, z = (volume.image.shape[axis] for axis in order)
    turned = orientation(volume.affine[:, [*order, 3]]) if volume.spacing_known else (True, False, False)
    if volume.spacing_known and not grid.ignore_spacing:
        spacing = volume.spacing[order][[1, 0]] if turned[0] else volume.spacing[order][:2]
        down, across = (float(s) / grid.spacing_mm if grid.spacing_mm else 1.0 for s in spacing)
        scale = (down, across)
    else:
        factor = grid.image_size / max(x, y) if grid.unknown_spacing == "fit" else 1.0
        scale = (factor, factor)
    return GridMap(
        (x, y, z),
        *turned,
        scale=scale,
        image_size=grid.image_size,
        slice_axis=slice_axis,
        num_classes=volume.description.num_classes,
    )


def orientation(affine: np.ndarray) -> tuple[bool, bool, bool]:
    """(transpose, flip rows, flip columns) that bring the in-plane axes nearest to the radiological view.

    Only the two in-plane axes are looked at: short-axis stacks are oblique, so that the nearest whole-volume
    orientation (`nibabel.as_closest_canonical`) may call another axis the slice axis.
    """
    left = np.array([-1.0, 0.0, 0.0])
    back_and_feet = np.array([0.0, -1.0, -1.0]) / np.sqrt(2)
    axes = [affine[:3, i] / max(np.linalg.norm(affine[:3, i]), 1e-12) for i in (0, 1)]
    best, choice = -np.inf, (True, False, False)
    for transpose in (True, False):
        rows, cols = (axes[1], axes[0]) if transpose else (axes[0], axes[1])
        for flip_rows in (False, True):
            for flip_cols in (False, True):
                down, right = (-rows if flip_rows else rows), (-cols if flip_cols else cols)
                score = down @ back_and_feet + right @ left
                if score > best + 1e-9:
                    best, choice = score, (transpose, flip_rows, flip_cols)
    return choice


def to_uint8(image: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """(X, Y, Z[, C]) intensities -> uint8, the two percentiles of each channel mapped to 0 and 255, clipped."""
    if image.ndim == 4:
        return np.stack([to_uint8(image[..., c], percentiles) for c in range(image.shape[3])], -1)
    low, high = np.percentile(image, percentiles)
    scaled = (image - low) / max(float(high - low), 1e-6)
    return np.round(255.0 * np.clip(scaled, 0.0, 1.0)).astype(np.uint8)


def stacked(images: np.ndarray) -> np.ndarray:
    """Slices (Z, S, S) of a volume -> (Z, S, S, 3): the one before, the slice itself, the one after.

    The first and the last stand for the neighbour that they lack.
    """
    before, after = (np.clip(np.arange(len(images)) + step, 0, len(images) - 1) for step in (-1, 1))
    return np.stack([images[before], images, images[after]], -1)


def grey(images: np.ndarray, axes: int, channels: int) -> np.ndarray:
    """What is shown of images uint8 of `axes` axes, or one more: (..., S, S).

    Of a data set of several `channels` it is their mean, of stacks (`stacked`) the slice in the middle.
    """
    if images.ndim == axes:
        return images
    return images[..., 1] if channels == 1 else np.rint(images.mean(-1)).astype(np.uint8)


class VolumeSlices(NamedTuple):
    """A volume on the model grid.

    Attributes:
      images: (Z, S, S[, C]) uint8, C of several channels or 3 of `stacked`. masks: (Z, S, S) uint8 or None.
      mapping: between the two grids.
      located: where its frame is; None if the model sees whole slices.
      scan: (X, Y, Z) uint8, the volume as stored, of which a crop may still be cut; None where none will be.
    """

    images: np.ndarray
    masks: np.ndarray | None
    mapping: GridMap
    located: Located | None = None
    scan: np.ndarray | None = None

    @property
    def wholes(self) -> np.ndarray:
        """The slices by which a scan is recognised: they do not depend on a frame that was found."""
        return self.images if self.located is None else self.located.wholes


def volume_slices(volume: Volume, grid: Grid, slice_axis: int = 2) -> VolumeSlices:
    """Brings the slices of one volume, and their masks if it has any, to the model grid.

    In the frame of the heart this is for labelled volumes: the frame is that of the mask.
    """
    if grid.frame is None:
        return _on_grid(volume, grid, grid_map(volume, grid, slice_axis))
    whole = whole_slices(volume, grid, slice_axis)
    frame = true_frame(volume, grid, slice_axis) if volume.mask is not None else None
    return framed_slices(volume, grid, whole=whole, frame=frame)


def whole_slices(volume: Volume, grid: Grid, slice_axis: int = 2) -> VolumeSlices:
    """The slices of a volume on `grid.whole`, as the locator sees them: without their masks, which it is not shown."""
    scan = to_uint8(volume.image, grid.percentiles)
    mapping = grid_map(volume, grid.whole, slice_axis)
    return _on_grid(dataclasses.replace(volume, mask=None), grid.whole, mapping, scan)._replace(scan=scan)


def framed_slices(volume: Volume, grid: Grid, whole: VolumeSlices, frame: Frame | None) -> VolumeSlices:
    """The slices of a volume in a frame; without one on the grid of whole slices, `grid` without its frame.

    `whole` is the volume on `grid.whole`.
    """
    assert grid.frame is not None
    axis = whole.mapping.slice_axis
    mapping = grid_map(volume, grid._replace(frame=None), axis)
    corners = np.zeros((0, 2))
    if frame is not None:
        place = placement(frame, pixel_sizes(volume, grid, mapping), image_size=grid.image_size, rule=grid.frame)
        fields = {f.name: getattr(mapping, f.name) for f in dataclasses.fields(mapping)}
        mapping = FrameMap(**fields, placement=place)
        corners = whole.mapping.on_model(place.corners())
    return _on_grid(volume, grid, mapping, whole.scan)._replace(located=Located(frame, whole.images, corners))


def _on_grid(volume: Volume, grid: Grid, mapping: GridMap, scan: np.ndarray | None = None) -> VolumeSlices:
    images = mapping.to_model(to_uint8(volume.image, grid.percentiles) if scan is None else scan)
    images = np.clip(np.round(images), 0, 255).astype(np.uint8)
    masks = mapping.labels_to_model(volume.mask) if volume.mask is not None else None
    return VolumeSlices(stacked(images) if grid.neighbours else images, masks, mapping)


def pixel_sizes(volume: Volume, grid: Grid, mapping: GridMap) -> tuple[float, float]:
    """Height and width of an oriented slice's pixels in mm; (1, 1) if the spacing is unknown or ignored."""
    if not volume.spacing_known or grid.ignore_spacing:
        return (1.0, 1.0)
    x, y = (float(volume.spacing[axis]) for axis in axes.slices_last(mapping.slice_axis)[:2])
    return (y, x) if mapping.transpose else (x, y)


def true_frame(volume: Volume, grid: Grid, slice_axis: int = 2) -> Frame | None:
    """The frame of a labelled volume; None if its mask does not have the structures that make it."""
    assert grid.frame is not None and volume.mask is not None
    mapping = grid_map(volume, grid._replace(frame=None), slice_axis)
    return native_frame(volume, grid, mapping, labels=volume.mask)


def native_frame(volume: Volume, grid: Grid, mapping: GridMap, *, labels: np.ndarray) -> Frame | None:
    """The frame that labels (X, Y, Z), as stored, make; None if there is none."""
    assert grid.frame is not None
    shares = np.moveaxis(mapping.oriented(_onehot(labels, mapping.num_classes)), 2, 0)
    return frame_of(shares, pixel_sizes(volume, grid, mapping), grid.frame)


def located_frame(volume: Volume, grid: Grid, whole: GridMap, probabilities: np.ndarray) -> Frame | None:
    """The frame that the locator's probabilities (Z, L, L, C) on `grid.whole` make; None if there is none."""
    assert grid.frame is not None
    sizes = pixel_sizes(volume, grid, whole)
    steps = (sizes[0] / whole.scale[0], sizes[1] / whole.scale[1])
    frame = frame_of(probabilities, steps, grid.frame)
    if frame is None:
        return None
    row, column = whole.on_scan(np.zeros(2)) * sizes
    return frame._replace(row=frame.row + float(row), column=frame.column + float(column))


def _onehot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels (...) -> (..., C) float32, each class contiguous in memory."""
    return np.moveaxis(np.stack([labels == label for label in range(num_classes)]).astype(np.float32), 0, -1)
