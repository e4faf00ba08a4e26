"""`Calculator`: a potential as a calculator of ASE, for its optimisers, filters, dynamics and chains of images."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators import calculator as ase_calculator
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.common.units import EV_PER_CUBIC_ANGSTROM
from mdsens.potentials.base import Potential, listed_energies
from mdsens.structures.system import System

REBUILD_AFTER = {"numbers", "cell", "pbc"}
"""Changes of the atoms after which nothing of the last neighbour list can be used again."""


class Calculator(ase_calculator.Calculator):
    """A potential as a calculator of ASE: `atoms.calc = ms.Calculator(potential)`.

    Energy [eV], per-atom energies [eV], forces [eV/Å] and stress [eV/Å³, ASE's unit; xx, yy, zz, yz, xz, xy]: what
    `potential.energy` and its sisters say of `System.from_ase(atoms)`. The neighbour list lasts as long as no atom moved more
    than half of its skin and the cell stayed; code is compiled once for a number of atoms, whichever atoms ask. Constraints
    are ASE's to apply.

    Args:
        potential: any potential, with its parameters as they are now.
        skin: of the neighbour list [Å]; by default a tenth of the potential's range.

    Raises:
        InputError: no potential; in a calculation, atoms that the potential has no parameters for, or a stress that it cannot
            give.
        PropertyNotImplementedError: a stress without a periodic cell (ASE's own error).
    """

    atoms: Any
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012 (ASE's form)

    def __init__(self, potential: Potential, *, skin: float | None = None) -> None:
        if not isinstance(potential, Potential):
            raise InputError(
                f"Calculator wants a potential, such as StillingerWeber.silicon(), not a {type(potential).__name__}."
            )
        super().__init__()
        self.potential = potential
        self.skin = skin
        self._system: System | None = None

    def calculate(
        self,
        atoms: Any = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = ase_calculator.all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self._system = system = self._listed(system_changes)
        if "energy" not in self.results:
            energy, energies, forces = _evaluate(self.potential, system)
            self.results["energy"] = self.results["free_energy"] = float(energy)
            self.results["energies"] = np.asarray(energies, dtype=float)
            self.results["forces"] = np.asarray(forces, dtype=float)
        if "stress" in properties:
            if not (self.atoms.pbc.any() and self.atoms.cell.rank == 3):
                raise ase_calculator.PropertyNotImplementedError("Stress needs a periodic cell with a volume.")
            self.results["stress"] = np.asarray(self.potential.stress(system), dtype=float) / EV_PER_CUBIC_ANGSTROM

    def _listed(self, changes: Sequence[str]) -> System:
        """Return the atoms as a system whose neighbour list is complete: the last list where it still is."""
        known, self._system = self._system, None
        if known is not None and known.neighbors is not None and not REBUILD_AFTER & set(changes):
            moved = known.with_positions(jnp.asarray(self.atoms.positions, known.positions.dtype))
            if not known.neighbors.is_stale(moved.positions, self.potential.ranges):
                return moved
        atoms = self.atoms.copy()
        atoms.set_constraint()
        system = System.from_ase(atoms)
        if self.potential.dtype not in (None, system.positions.dtype):
            system = system.astype(self.potential.dtype)
        self.potential.check(system)
        return system.with_neighbors(self.potential, skin=self.skin)


@eqx.filter_jit
def _evaluate(potential: Potential, system: System) -> tuple[Array, Array, Array]:
    """Return `(energy, energies, forces)` from the system's list as it is."""

    def energy(positions: Array) -> tuple[Array, Array]:
        energies = listed_energies(potential, system.with_positions(positions))
        return jnp.sum(energies), energies

    (total, energies), slope = jax.value_and_grad(energy, has_aux=True)(system.positions)
    return total, energies, -slope
