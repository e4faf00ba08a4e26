"""Names of axes and units in an HDF5 file: dimension scales, as netCDF has them, so that xarray opens each group."""

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from mdsens.files.hdf5_attributes import REFERENCE, ROOM


def name_axes(
    dataset: h5py.Dataset, axes: Sequence[str], home: h5py.Group, labels: Mapping[str, Sequence[Any] | None] | None = None
) -> None:
    """Give the first axes of a dataset, as far as they have none, names.

    Args:
        home: a group above it, where that lies what stands along an axis; it is made if need be.
        labels: what stands there, by axis; by default numbers.
    """
    for k, (axis, size) in enumerate(zip(axes, dataset.shape, strict=False)):
        if not len(dataset.dims[k]):
            dataset.dims[k].attach_scale(_scale(home, axis, size, labels or {}))


def name_others(file: h5py.File) -> None:
    """Number the axes of all that have no names yet; what stands along them lies in the group at the top."""
    found = []
    file.visititems(lambda path, item: found.append(path) if isinstance(item, h5py.Dataset) else None)
    for path in found:
        dataset, (top, *rest) = file[path], path.split("/")
        if dataset.shape and not dataset.is_scale:
            name_axes(dataset, [f"{'_'.join(rest)}_{k}" for k in range(dataset.ndim)], file[top])


def _scale(home: Any, axis: str, size: Any, labels: Any) -> Any:
    """What stands along an axis. Axes of one name and several lengths are told apart by these."""
    scale = home.get(axis)
    if scale is not None and scale.shape != (size,):
        axis = f"{axis}_{size}"
        scale = home.get(axis)
    if scale is None:
        given = labels.get(axis)
        scale = home.create_dataset(axis, data=list(given) if given is not None and len(given) == size else np.arange(size))
    if not scale.is_scale:
        scale.make_scale(axis)
    return scale


def name_unit(dataset: h5py.Dataset, unit: str | None) -> None:
    """H5MD's name of the attribute is `unit`, that of netCDF `units`."""
    if unit is not None:
        dataset.attrs.update({"unit": unit, "units": unit})


def name_units(dataset: h5py.Dataset, units: Sequence[str] | None) -> None:
    """Of numbers that have one for each parameter, where an attribute has room for them."""
    if units and len(units) * REFERENCE <= ROOM:
        dataset.attrs["units_by_parameter"] = list(units)
