"""Relaxed structures of a study as H5MD trajectories: a frame for each structure of each task.

Structures with the same atoms are in one group, `/particles/trajectory`; several groups are called after their first
structures. H5MD's readers know three dimensions only: 2-D structures lie in the plane z = 0 of a layer 1 Å thick.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from mdsens.common.errors import MdsensError
from mdsens.files.hdf5_attributes import set_attribute
from mdsens.files.hdf5_labels import name_axes, name_unit
from mdsens.structures.system import System
from mdsens.studies.input import recipes
from mdsens.studies.results.record import STATES, Outcome

TRAJECTORY = "trajectory"
"""The group in which MDAnalysis looks for the number of atoms."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """A relaxed structure.

    Attributes:
        task: number of its task in the study.
        structure: its name.
        outcome: the outcome of its task.
        system: atoms and cell.
    """

    task: int
    structure: str
    outcome: Outcome
    system: System


def frames(outcomes: Sequence[Outcome]) -> Iterator[Frame]:
    """Yield all relaxed structures in the order of the tasks; those of an older file whose origin is gone are left out."""
    for k, outcome in enumerate(outcomes):
        arrays = outcome.record.arrays
        for name in outcome.record.facts.get("states", {}):
            path = f"{STATES}/{name}"
            try:
                symbols, pbc = _species(outcome, name)
            except MdsensError:
                continue
            yield Frame(
                k, name, outcome, System(arrays[f"{path}/positions"], cell=arrays.get(f"{path}/cell"), pbc=pbc, species=symbols)
            )


def _species(outcome: Outcome, name: str) -> tuple[list[str], Sequence[bool]]:
    """Return the symbols of the atoms and the periodicity; raises InputError where an older file's origin is gone."""
    state = outcome.record.facts["states"][name]
    if "labels" in state:
        return [state["labels"][code] for code in outcome.record.arrays[f"{STATES}/{name}/species"]], state["pbc"]
    system = recipes.structure_of(outcome.input["structures"][name])
    return system.symbols, system.pbc


def write_particles(file: h5py.File, outcomes: Sequence[Outcome]) -> None:
    """Write the group `/particles`."""
    groups: dict[tuple[Any, ...], list[Frame]] = {}
    for frame in frames(outcomes):
        system = frame.system
        key = (system.dim, system.pbc, system.labels, np.asarray(system.species).tobytes(), system.cell is None)
        groups.setdefault(key, []).append(frame)
    particles = file.create_group("particles")
    for members in groups.values():
        first = members[0].structure
        name = TRAJECTORY if len(groups) == 1 else first if first not in particles else f"{first}_{len(particles)}"
        _write_group(particles.create_group(name), members)


def _write_group(group: h5py.Group, members: Sequence[Frame]) -> None:
    system = members[0].system
    n, dim = system.positions.shape
    count = len(members)
    positions, edges = np.zeros((count, n, 3)), np.tile(np.eye(3), (count, 1, 1))
    for k, member in enumerate(members):
        positions[k, :, :dim] = member.system.positions
        if system.cell is not None:
            edges[k, :dim, :dim] = member.system.cell
    step = group.create_dataset("step", data=np.arange(count))
    time = group.create_dataset("time", data=np.arange(count, dtype=float))
    name_unit(time, "ps")
    name_axes(time, ("step",), group)
    for name, values in (("task", [member.task for member in members]), ("structure", [member.structure for member in members])):
        name_axes(group.create_dataset(name, data=values), ("step",), group)
    species = group.create_dataset("species", data=np.asarray(system.species))
    set_attribute(species, "labels", list(system.labels))
    name_axes(species, ("atom",), group)
    box = group.create_group("box")
    box.attrs["dimension"] = 3
    box.attrs["boundary"] = ["periodic" if flag else "none" for flag in (*system.pbc, False)[:3]]
    elements = [(group, "position", positions, ("step", "atom", "space"))]
    if system.cell is not None:
        elements.append((box, "edges", edges, ("step", "vector", "space")))
    for home, name, places, axes in elements:
        element = home.create_group(name)
        value = element.create_dataset("value", data=places, fletcher32=True, chunks=(1, *places.shape[1:]))
        # All elements share these two, as H5MD has it.
        element["step"], element["time"] = step, time
        name_axes(value, axes, group, {"space": "xyz"})
        name_unit(value, "Angstrom")
