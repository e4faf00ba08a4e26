"""Energies, stress and pressure."""

from collections.abc import Mapping, Sequence
from numbers import Real

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import ConvergenceError, InputError
from mdsens.common.units import stress_unit
from mdsens.derivatives.references import ReferringObservable
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.observables.composition import reference_amounts, state_named
from mdsens.potentials.base import Potential, listed_energies
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.system import System, is_concrete

CELL_MISFIT = 1e-6
"""Share by which the cells of a saddle and its minimum may differ."""


def energy(system: System, potential: Potential) -> Float[Array, ""]:
    """Potential energy [eV]. At a minimum its derivative is the explicit one, ∂U/∂θ."""
    return potential.energy(system)


def stress(system: System, potential: Potential) -> Float[Array, " voigt"]:
    """Stress in Voigt order (xx, yy, zz, yz, xz, xy; in 2-D xx, yy, xy), positive in tension [GPa, in 2-D eV/Å²].

    Raises:
        InputError: there is no cell, or a potential that knows nothing of it.
    """
    return potential.stress(system)


def pressure(system: System, potential: Potential) -> Float[Array, ""]:
    """Pressure, minus a third of the trace of the stress [GPa]; in 2-D minus half of it [eV/Å²]."""
    return potential.pressure(system)


class enthalpy(eqx.Module):
    """`enthalpy(pressure)`: H = U + p V [eV].

    Where the cell is relaxed at this pressure H is at its minimum, and its derivative is the explicit one, ∂U/∂θ.

    Args:
        pressure: p [GPa, in 2-D eV/Å²].

    Raises:
        InputError: a pressure that is no number, or a system without a cell.
    """

    pressure: float = eqx.field(static=True)

    def __init__(self, pressure: float) -> None:
        if not (isinstance(pressure, Real) and np.isfinite(pressure)):
            raise InputError(f"enthalpy wants a pressure in GPa, not {pressure!r}.")
        self.pressure = float(pressure)

    def __call__(self, system: System, potential: Potential) -> Array:
        return potential.energy(system) + self.pressure / stress_unit(system.dim) * system.volume


class cohesive_energy(eqx.Module):
    """`cohesive_energy()`: energy per atom that separates a structure into isolated atoms [eV].

        E_coh = (Σ_i e(species of i) - U) / N

    Args:
        isolated: energies e of isolated atoms by species [eV]; by default the potential's energies of atoms without
            neighbours, with their derivatives.

    Raises:
        InputError: energies that are no numbers, a species without one, or a potential that is not local and so knows no
            atom without neighbours.
    """

    isolated: tuple[tuple[str, float], ...] | None = eqx.field(static=True)

    def __init__(self, isolated: Mapping[str, float] | None = None) -> None:
        if isolated is not None and not (
            isinstance(isolated, Mapping) and all(isinstance(e, Real) and np.isfinite(e) for e in isolated.values())
        ):
            raise InputError(f'isolated= wants energies in eV by species, {{"Si": -0.8}}, not {isolated!r}.')
        self.isolated = None if isolated is None else tuple((str(label), float(e)) for label, e in isolated.items())

    def __call__(self, system: System, potential: Potential) -> Array:
        return (self._separated(system, potential) - potential.energy(system)) / len(system)

    def _separated(self, system: System, potential: Potential) -> Array:
        if self.isolated is not None:
            known = dict(self.isolated)
            if missing := [label for label in system.labels if label not in known]:
                raise InputError(
                    f"cohesive_energy has no energy of an isolated atom {missing[0]!r}: add isolated[{missing[0]!r}]."
                )
            by_code = jnp.asarray([known[label] for label in system.labels], system.positions.dtype)
            return jnp.sum(by_code[system.species])
        listed = potential.prepared(system)
        if not isinstance(listed.neighbors, Neighbors):
            raise InputError(
                f"A {type(potential).__name__} says nothing of atoms without neighbours: give their energies, "
                "cohesive_energy(isolated={...})."
            )
        alone = eqx.tree_at(lambda s: s.neighbors, listed, listed.neighbors.without_pairs)
        return jnp.sum(listed_energies(potential, alone))


class formation_energy(ReferringObservable):
    """`formation_energy(*references)`: energy of a structure above that of as many atoms of relaxed references [eV].

        E_f = E - Σ_r x_r E_r,    Σ_r x_r n_r = n for every species,

    For a vacancy with the perfect crystal as the reference it is E - (N / N_ref) E_ref; for a compound and its elements
    the heat of formation; for a defect that changes the composition, references that fix the chemical potentials.
    C. Freysoldt et al., Rev. Mod. Phys. 86, 253 (2014), section II.

    References are at their own equilibrium: for every other potential, in a study too, they are relaxed again under their own
    conditions (cell, pressure, constraints). Inside `jit` that cannot be done, and another potential than theirs gives NaN:
    name the states instead, `defect_formation_energy`.

    Args:
        references: equilibria, at most as many as there are species.

    Raises:
        InputError: references that cannot have the structure's composition, or can in several ways.
        ConvergenceError: a reference that is no equilibrium.

    Example:
        ms.value_and_gradient(ms.observables.formation_energy(crystal), vacancy)
    """

    references: tuple[Equilibrium, ...]

    def __init__(self, *references: Equilibrium) -> None:
        if not references or not all(isinstance(reference, Equilibrium) for reference in references):
            raise InputError("formation_energy wants one or more references, each an Equilibrium that relax returned.")
        if bad := [reference for reference in references if not reference.converged]:
            raise ConvergenceError(f"A reference of a formation energy is no equilibrium: {bad[0].status.value}.")
        self.references = references

    def beside(self, system: System, references: Sequence[System], potential: Potential) -> Array:
        return _energy_above(system, references, potential, "formation_energy")


def defect_formation_energy(states: Mapping[str, System], potential: Potential) -> Float[Array, ""]:
    """Energy of the state "defect" above as many atoms of the other states, which are its references [eV].

    With {"defect": ..., "bulk": ...} of one species it is E_d - (N_d / N_b) E_b; see `formation_energy`.

    Raises:
        InputError: no state "defect", or as `formation_energy`.
    """
    defect = state_named(states, "defect", "defect_formation_energy")
    references = other_states(states, "defect", "defect_formation_energy")
    return _energy_above(defect, references, potential, "defect_formation_energy")


def barrier(states: Mapping[str, System], potential: Potential) -> Float[Array, ""]:
    """Energy of the state "saddle" above the state "minimum" [eV].

    Raises:
        InputError: a state is missing, the two have not the same atoms or cell, or the saddle is the lower one.
    """
    saddle, minimum = (state_named(states, state, "barrier") for state in ("saddle", "minimum"))
    atoms = (saddle.labels, len(saddle)) == (minimum.labels, len(minimum))
    alike = jnp.all(saddle.species == minimum.species) if atoms else False
    if is_concrete(alike) and not alike:
        raise InputError(
            f"barrier compares {len(saddle)} atoms of {', '.join(saddle.labels)} at the saddle with {len(minimum)} of "
            f"{', '.join(minimum.labels)} at the minimum: they must be the same atoms, in the same order."
        )
    boxed = (saddle.pbc, saddle.cell is None) == (minimum.pbc, minimum.cell is None)
    boxes = jax.lax.stop_gradient([jnp.zeros(()) if s.cell is None else s.cell for s in (saddle, minimum)])
    same = jnp.max(jnp.abs(boxes[0] - boxes[1])) <= CELL_MISFIT * jnp.max(jnp.abs(boxes[0])) if boxed else False
    if is_concrete(same) and not same:
        raise InputError("barrier compares a saddle and a minimum in different cells: relax both in the same fixed cell.")
    height = potential.energy(saddle) - potential.energy(minimum)
    if is_concrete(height) and height < 0.0:
        raise InputError(
            f"The state 'saddle' lies {-float(height):.3g} eV below the state 'minimum', so the two are exchanged or do not "
            "belong together: give {'saddle': ..., 'minimum': ...}."
        )
    return jnp.where(alike & same, height, jnp.nan)


barrier.state_index = {"saddle": 1, "minimum": 0}  # type: ignore[attr-defined]  # negative curvatures, for derivatives


def other_states(states: Mapping[str, System], state: str, name: str) -> list[System]:
    """Return the states beside one of them; raise InputError where there are none."""
    others = [system for key, system in states.items() if key != state]
    if not others:
        raise InputError(f'{name} wants a reference beside the state {state!r}: {{"{state}": ..., "bulk": ...}}.')
    return others


def _energy_above(system: System, references: Sequence[System], potential: Potential, name: str) -> Array:
    amounts = reference_amounts(system, references, name)
    return potential.energy(system) - amounts @ jnp.stack([potential.energy(reference) for reference in references])
