"""Names of the axes and units of a task's numbers."""

from collections.abc import Mapping
from typing import Any

import h5py

from mdsens.files.hdf5_labels import name_axes, name_unit, name_units
from mdsens.studies.results.record import Record


def name_numbers(group: h5py.Group, record: Record, observables: Mapping[str, Any]) -> None:
    """Name the axes and units of all numbers of a task."""
    for path in record.arrays:
        axes = record.axes(path)
        labels = {axis: record.labels(axis) for axis in axes}
        # Structures have axes of their own: their numbers of atoms differ.
        name_axes(group[path], axes, group[path].parent if path.startswith("structures/") else group, labels)
        name_unit(group[path], record.unit(path, observables))
        name_units(group[path], record.units_by_parameter(path, observables))
