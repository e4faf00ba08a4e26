"""Names of axes and units in an HDF5 file: dimension scales, as netCDF has them, so that xarray opens each group."""

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from mdsens.files.hdf5_attributes import REFERENCE, ROOM

Labels = Mapping[str, Sequence[Any] | None]


def name_axes(dataset: h5py.Dataset, axes: Sequence[str], home: h5py.Group, labels: Labels | None = None) -> None:
    """Name the first axes of a dataset, as far as they have no names.

    Args:
        home: a group above the dataset, in which the labels along an axis lie; they are written if need be.
        labels: the labels along an axis, by its name; numbers by default.
    """
    for k, (axis, size) in enumerate(zip(axes, dataset.shape, strict=False)):
        if not len(dataset.dims[k]):
            dataset.dims[k].attach_scale(_scale(home, axis, size, labels or {}))


def name_others(file: h5py.File) -> None:
    """Number the axes of all datasets that have no names yet; the numbers lie in the group at the top."""
    paths: list[str] = []
    file.visititems(lambda path, item: paths.append(path) if isinstance(item, h5py.Dataset) else None)
    for path in paths:
        dataset, (top, *rest) = file[path], path.split("/")
        if dataset.shape and not dataset.is_scale:
            name_axes(dataset, [f"{'_'.join(rest)}_{k}" for k in range(dataset.ndim)], file[top])


def _scale(home: h5py.Group, axis: str, size: int, labels: Labels) -> h5py.Dataset:
    """The labels along an axis. Axes of one name and several lengths are told apart by these."""
    scale = home.get(axis)
    if scale is not None and scale.shape != (size,):
        axis = f"{axis}_{size}"
        scale = home.get(axis)
    if scale is None:
        values = labels.get(axis)
        scale = home.create_dataset(axis, data=np.arange(size) if values is None or len(values) != size else list(values))
    if not scale.is_scale:
        scale.make_scale(axis)
    return scale


def name_unit(dataset: h5py.Dataset, unit: str | None) -> None:
    """Give a dataset its unit, if it has one, in the attribute `unit` of H5MD and in `units` of netCDF."""
    if unit is not None:
        dataset.attrs.update({"unit": unit, "units": unit})


def name_units(dataset: h5py.Dataset, units: Sequence[str] | None) -> None:
    """Give a dataset that has numbers for each parameter their units, where an attribute has room for them."""
    if units and len(units) * REFERENCE <= ROOM:
        dataset.attrs["units_by_parameter"] = list(units)
