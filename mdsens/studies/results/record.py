"""Results of tasks: numbers by path and plain values, and the names of the numbers' axes and units."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mdsens.common.units import derivative_unit
from mdsens.equilibrium.relaxation import Equilibrium

STATES = "structures"
"""Group of the relaxed structures."""

OBSERVABLE_GROUPS = ("values", "std", "sampling/mean", "sampling/std", "sampling/std_error")
PARAMETER_GROUPS = ("derivatives", "shares")
"""Groups of arrays by observable; those of the second kind have one more axis, for the parameters."""

AXES = {
    "parameters": ("parameter",),
    "start": ("parameter",),
    "std": ("parameter",),
    "found": ("target",),
    "wanted": ("target",),
    "sigma": ("target",),
    "singular_values": ("direction",),
    "directions": ("direction", "parameter"),
    "history": ("step",),
    "covariance": ("number", "number_2"),
    "t": ("point",),
    "lowest": ("point",),
    "speed": ("point",),
}

STRESS, SOFTNESS, VOLUME = ("GPa", "eV Angstrom-2"), ("GPa-1", "Angstrom2 eV-1"), ("Angstrom3", "Angstrom2")
UNITS = {
    **dict.fromkeys(("energy", "enthalpy", "cohesive_energy", "defect_formation_energy", "barrier"), ("eV", "eV")),
    **dict.fromkeys(("harmonic_free_energy", "dipole_tensor"), ("eV", "eV")),
    **dict.fromkeys(("entropy", "heat_capacity"), ("eV K-1", "eV K-1")),
    **dict.fromkeys(("stress", "pressure", "elastic_constants", "bulk_modulus", "shear_modulus", "young_modulus"), STRESS),
    "elastic_stability": STRESS,
    **dict.fromkeys(("compliance", "linear_compressibility"), SOFTNESS),
    **dict.fromkeys(("volume", "formation_volume"), VOLUME),
    "distances": ("Angstrom", "Angstrom"),
    **dict.fromkeys(("angles", "dihedrals"), ("degrees", "degrees")),
    "phonon_frequencies": ("THz", "THz"),
    "phonon_dos": ("THz-1", "THz-1"),
}
"""Units of the catalogue's observables, in 3-D and in 2-D; others are pure numbers or have several units."""

SHEET_UNITS = {
    **dict.fromkeys(("elastic_constants", "bulk_modulus", "shear_modulus", "young_modulus", "elastic_stability"), "N m-1"),
    **dict.fromkeys(("compliance", "linear_compressibility"), "m N-1"),
}
"""Units of a sheet's observables in 3-D."""


def unit_of_observable(
    kind: str, dim: int, components: Sequence[Any] | None = None, *, sheet: bool = False
) -> str | list[str] | None:
    """Return the unit of one of the catalogue's observables or of some of its components: one, a list, or None if unknown."""
    if sheet and kind in SHEET_UNITS:
        return SHEET_UNITS[kind]
    if kind != "lattice_constants":
        return UNITS.get(kind, (None, None))[dim == 2]
    each = ["Angstrom"] * dim + ["degrees"] * (3 if dim == 3 else 1)
    chosen = range(len(each)) if components is None else [int(np.ravel(index)[0]) for index in components]
    units = [each[k] for k in chosen if k < len(each)]
    return units[0] if len(set(units)) == 1 else units


@dataclasses.dataclass(frozen=True)
class Record:
    """The result of a task.

    Attributes:
        arrays: numbers by path, `"values/pressure"`.
        facts: plain values.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]

    @property
    def dim(self) -> int:
        """The dimension of its structures; 3 where there are none."""
        return next((value.shape[-1] for path, value in self.arrays.items() if path.endswith("/positions")), 3)

    def axes(self, path: str) -> tuple[str, ...]:
        """Return the names of the axes of a path's numbers."""
        group, _, name = path.rpartition("/")
        rank = np.ndim(self.arrays[path])
        if path in AXES:
            return AXES[path][:rank]
        if group.startswith(f"{STATES}/"):
            return {"positions": ("atom", "space"), "cell": ("vector", "space"), "species": ("atom",)}[name]
        first = ("point",) if group == "values" and "t" in self.arrays else ()
        last = ("parameter",) if group in PARAMETER_GROUPS else ()
        return (*first, *(f"{name}_{k}" for k in range(rank - len(first) - len(last))), *last)

    def labels(self, axis: str) -> Sequence[str] | None:
        """Return the names of the entries along an axis, where they have names."""
        names = {"parameter": "names", "target": "labels", "number": "numbers", "number_2": "numbers"}
        return "xyz"[: self.dim] if axis == "space" else self.facts.get(names.get(axis, ""))

    def unit(self, path: str, observables: Mapping[str, Any]) -> str | None:
        """Return the unit of a path's numbers, where it is a single one and known; `observables` are the recipes."""
        group, _, name = path.rpartition("/")
        if group.startswith(f"{STATES}/"):
            return None if name == "species" else "Angstrom"
        if group in OBSERVABLE_GROUPS:
            unit = self._unit_of_observable(name, observables)
            return unit if isinstance(unit, str) else None
        return {"lowest": "eV Angstrom-2", "speed": "Angstrom"}.get(path)

    def units_by_parameter(self, path: str, observables: Mapping[str, Any]) -> list[str] | None:
        """Return the units of parameters or derivatives, one for each parameter; None for other numbers, and if unknown."""
        units = [self.units_of_parameters().get(name) for name in self.facts.get("names", ())]
        group, _, name = path.rpartition("/")
        if group == "derivatives":
            unit = self._unit_of_observable(name, observables)
            units = [derivative_unit(unit, one) for one in units] if isinstance(unit, str) else []
        elif path not in ("parameters", "start", "std"):
            return None
        known = [unit for unit in units if unit is not None]
        return known if known and len(known) == len(units) else None

    def unit_of_number(self, label: str, observables: Mapping[str, Any]) -> str | None:
        """Return the unit of one number of an observable, `"lattice_constants[3]"`."""
        name, _, index = label.removesuffix("]").partition("[")
        unit = self._unit_of_observable(name, observables)
        return unit[int(index or 0)] if isinstance(unit, list) else unit

    def units_of_parameters(self) -> dict[str, str | None]:
        """Return the units of parameters by name; those of older files are unknown."""
        return self.facts.get("units", {}).get("parameters", {})

    def _unit_of_observable(self, name: str, observables: Mapping[str, Any]) -> str | list[str] | None:
        known = self.facts.get("units", {}).get("observables", {})
        if name in known or name not in observables:
            return known.get(name)
        recipe = observables[name]
        return unit_of_observable(recipe.get("name", name), self.dim, recipe.get("components"))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A task that was done, or failed."""

    name: str
    label: str
    input: dict[str, Any]
    record: Record
    reason: str
    provenance: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Whether it failed."""
        return bool(self.reason)


@dataclasses.dataclass(frozen=True)
class Collected:
    """The content of a collected file."""

    kind: str
    toml: str
    outcomes: tuple[Outcome, ...]


def merge(first: Record, second: Record) -> Record:
    """Join two records; the second goes before the first."""
    return Record(first.arrays | second.arrays, first.facts | second.facts)


def with_structures(record: Record, states: Mapping[str, Equilibrium]) -> Record:
    """Add relaxed structures, and how they were relaxed, to a record."""
    arrays, facts = {}, {}
    for name, eq in states.items():
        arrays[f"{STATES}/{name}/positions"] = np.asarray(eq.system.positions)
        arrays[f"{STATES}/{name}/species"] = np.asarray(eq.system.species)
        if eq.system.cell is not None:
            arrays[f"{STATES}/{name}/cell"] = np.asarray(eq.system.cell)
        facts[name] = {
            "energy": eq.energy,
            "fmax": eq.fmax,
            "steps": eq.steps,
            "lowest_curvature": None if eq.spectrum is None else eq.spectrum.lowest,
            "labels": list(eq.system.labels),
            "pbc": list(eq.system.pbc),
        }
    return merge(record, Record(arrays, {"states": facts}))


def add_prefix(group: str, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Put the name of a group before names: numbers by path."""
    return {f"{group}/{name}": np.asarray(value) for name, value in values.items()}


def entries(name: str, shape: tuple[int, ...]) -> list[str]:
    """Return the names of an observable's numbers: `"pressure"` of a single one, `"C[3,3]"` of several."""
    if math.prod(shape) == 1:
        return [name]
    return [name + (f"[{','.join(map(str, index))}]" if index else "") for index in np.ndindex(shape)]
