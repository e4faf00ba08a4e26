"""Names of axes and units in an HDF5 file: dimension scales, as netCDF has them, so that xarray opens each group."""

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from mdsens.studies.findings import Record


def name_axes(dataset: h5py.Dataset, axes: Sequence[str], home: h5py.Group, labels: Mapping[str, Sequence] | None = None):
    """Give a dataset's axes their names; what stands along them lies in `home`, a group above it, and is made if need be."""
    for k, (axis, size) in enumerate(zip(axes, dataset.shape, strict=True)):
        dataset.dims[k].attach_scale(_scale(home, axis, size, labels or {}))


def _scale(home, axis, size, labels):
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


def name_all(group: h5py.Group, record: Record, observables: Mapping[str, Any]) -> None:
    """Name the axes and units of all that a unit of work found."""
    for path in record.arrays:
        axes = record.axes(path)
        labels = {axis: found for axis in axes if (found := record.labels(axis)) is not None}
        # Atoms of several structures are not of one number.
        name_axes(group[path], axes, group[path].parent if path.startswith("structures/") else group, labels)
        name_unit(group[path], record.unit(path, observables))
