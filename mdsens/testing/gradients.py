"""A check of the examples' sensitivities, in four settings, against differences of structures relaxed again."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from mdsens.common.errors import MdsensError
from mdsens.derivatives.sensitivities import sensitivity
from mdsens.derivatives.verification import TOLERANCE, check_sensitivity
from mdsens.equilibrium.relaxation import relax
from mdsens.potentials import (
    Coulomb,
    EmbeddedPotential,
    Ewald,
    HarmonicBonds,
    PairPotential,
    SitePotential,
    SoftSphere,
    WeeksChandlerAndersen,
    Yukawa,
)
from mdsens.potentials.base import Potential
from mdsens.structures.system import System
from mdsens.testing.contract import smallest_distance
from mdsens.testing.examples import EXAMPLES

CLUSTER, BONDED_CLUSTER = 8, 5
"""Number of atoms in a cluster, and in one that angles hold together: larger ones cut out of a crystal have loose ends."""

STEPS = (1e-4, 1e-5)
"""Relative steps of parameters: a shorter one where a pair crosses a jump of a third derivative, or a basin is left."""


@dataclasses.dataclass(frozen=True)
class Gradients:
    """The parameter of an example with the largest error in a setting, of `values` ones; `note` says why there is none."""

    error: float
    parameter: str
    values: int
    note: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether the error is within the tolerance, or the setting makes no sense."""
        return self.note.startswith("no ") or self.error <= TOLERANCE

    def __str__(self) -> str:
        return self.note[:26] if self.note else f"{self.error:.0e} {self.parameter[:20]}"


def check_gradients(name: str, setting: str) -> Gradients:
    """Relax an example in one of the `SETTINGS`, differentiate, and compare every parameter with differences of relaxations."""
    potential, example = EXAMPLES[name]()
    system = SETTINGS[setting](potential, example)
    if system is None:
        return Gradients(np.nan, "", 0, "no such structure")
    if isinstance(potential, HarmonicBonds) and setting in ("cluster", "2-D"):
        # Second neighbours too, without which a cluster of bonds has loose ends.
        potential = HarmonicBonds.at_rest(system, cutoff=1.6 * smallest_distance(system), k=potential.k)
    try:
        eq = relax(system, potential, fmax=1e-12)
        derivatives = sensitivity(eq)
    except MdsensError as error:
        return Gradients(np.nan, "", 0, f"failed: {error}")
    if not any(np.abs(leaf).max(initial=0.0) > 1e-9 for leaf in jax.tree.leaves(derivatives.scaled().positions)):
        return Gradients(np.nan, "", 0, "nothing moves")
    for step in STEPS:
        try:
            checks = list(check_sensitivity(eq, derivatives, step=step))
        except MdsensError as error:
            return Gradients(np.nan, "", 0, f"failed: {error}")
        if all(check.error <= TOLERANCE for check in checks):
            break
    # Where nothing moves to first order, symmetry makes a step look as if it left the basin.
    if bad := [check for check in checks if check.note and not check.error <= TOLERANCE]:
        return Gradients(np.nan, "", len(checks), f"{bad[0].parameter}: {bad[0].note}")
    worst = max(checks, key=lambda check: check.error)
    return Gradients(worst.error, worst.parameter, len(checks))


def _frozen(potential: Potential, system: System) -> System:
    """Return the system with every fourth atom frozen, somewhat out of its place."""
    frozen = np.arange(len(system)) % 4 == 0
    shifts = 0.03 * smallest_distance(system) * np.random.default_rng(3).normal(size=system.positions.shape)
    return _rebuilt(system, np.asarray(system.positions) + shifts * frozen[:, None], frozen=frozen)


def _cluster(potential: Potential, system: System) -> System | None:
    """Return the atoms nearest to the second one without a cell, shaken, lest symmetry lead to a saddle point."""
    x = np.asarray(system.positions)
    if system.cell is not None:
        d = (x - x[1]) @ np.linalg.inv(system.cell)
        x = x[1] + (d - np.round(d)) @ np.asarray(system.cell)
    bonded = any(isinstance(part, SitePotential) for part in potential.parts())
    size = BONDED_CLUSTER if bonded else CLUSTER
    near = np.argsort(np.linalg.norm(x - x[1], axis=1), kind="stable")[:size]
    symbols = [system.symbols[k] for k in near]
    shifts = 0.03 * smallest_distance(system) * np.random.default_rng(4).normal(size=(size, system.dim))
    return System(x[near] + shifts, species=symbols) if _holds_a_cluster(potential) else None


def _plane(potential: Potential, system: System) -> System | None:
    """Return a triangular lattice with a vacancy, for ions a square one, at the crystal's nearest distance.

    There is none where angles make the bonds.
    """
    parts = (PairPotential, EmbeddedPotential)
    if not all(isinstance(part, parts) for part in potential.parts()):
        return None
    if system.dim == 2:
        return system
    a, rows = 0.98 * smallest_distance(system), 4
    if any(isinstance(part, Coulomb) for part in potential.parts()):
        i, j = np.divmod(np.arange(rows**2), rows)
        frozen = np.arange(rows**2) < 2
        points = a * np.stack([i, j], axis=1) + 0.1 * a * (np.arange(rows**2) == 0)[:, None]
        labels = np.array(system.labels)[(i + j) % 2]
        return System(points, cell=a * rows * np.eye(2), pbc=True, species=list(labels), frozen=frozen)
    points = np.array([[i + 0.5 * (j % 2), j * np.sqrt(0.75)] for j in range(rows) for i in range(rows)])
    cell = np.diag([rows, rows * np.sqrt(0.75)]) * a
    labels = [system.labels[k % len(system.labels)] for k in range(len(points) - 1)]
    return System(a * points[1:], cell=cell, pbc=True, species=labels)


SETTINGS: dict[str, Callable[[Potential, System], System | None]] = {
    "fixed cell": lambda _, system: system,
    "frozen atoms": _frozen,
    "cluster": _cluster,
    "2-D": _plane,
}
"""Functions of `(potential, system of the example)` that return the system in a setting, None where that makes no sense."""


def _holds_a_cluster(potential: Potential) -> bool:
    repels = isinstance(potential, SoftSphere | WeeksChandlerAndersen | Yukawa)
    return not repels and not any(isinstance(part, Ewald) for part in potential.parts())


def _rebuilt(system: System, positions: Array, **fields: Any) -> System:
    return System(positions, cell=system.cell, pbc=system.pbc, species=system.symbols, **fields)
