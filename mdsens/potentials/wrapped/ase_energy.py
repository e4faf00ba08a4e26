"""`from_ase`: a calculator of ASE, whatever it computes with, as a potential with parameters."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.differences import central_difference
from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.potentials.base import Approximation
from mdsens.potentials.parameters import Entries
from mdsens.potentials.species import static
from mdsens.potentials.wrapped.base import WrappedEnergy
from mdsens.potentials.wrapped.finite_differences import Step, best_step, measure_noise
from mdsens.potentials.wrapped.host_energy import FORCE_TOLERANCE, BlackBox, Evaluation, State, Structure, energy
from mdsens.structures.neighbors.preparation import Preparation
from mdsens.structures.system import System, is_concrete

LONGEST_STEP = 0.128
"""Longest displacement that is tried as a step [Å]."""

NOISE_SPACING = 1e-4
"""Displacement so short that sixth differences over it are nothing but noise [Å]."""

LONGEST_SHARE = 0.032
"""Largest change of a parameter that is tried as a step, as a share of its value (of 1 where it is zero)."""

SINGLE_PRECISION_NOISE = 1e-7
"""Error of a derivative by noise [eV/Å²] above which energies may be of single precision."""

DEFAULT_SHARE = 1.0 / 64.0
"""Steps as a share of the longest, where nothing has been measured."""


@suggest_names
def from_ase(calculator: Any, parameters: dict[str, Any] | None = None) -> "ExternalEnergy":
    """Return a calculator of ASE (energy and forces; stress for cells that change) as a potential.

    `ms.from_ase(lambda epsilon, sigma: LennardJones(epsilon=epsilon, sigma=sigma, rc=8.5), {"epsilon": 0.01, "sigma": 3.4})`

    Energies and forces are the calculator's own. What derives from forces (products with the Hessian, ∂F/∂θ) and ∂U/∂θ are
    central differences of fourth order, whose steps are chosen at each state from the noise of the forces; a sensitivity's
    certificate says so, and its bound includes their estimated error. Derivatives of third order are refused.

    A calculator is made anew for each set of parameters and each kind of structure, and kept for the last few, so that none is
    ever changed. It is called from inside compiled programs, one call at a time, where JAX code would dead-lock: write a
    `Potential` around an energy that computes with JAX instead.

    Args:
        calculator: a function that makes one of the parameters by name, `calculator(**parameters)`; or a calculator, of whose
            class others are made with its `parameters`, changed where `parameters` says so.
        parameters: their values by name, numbers or arrays; floats and NumPy arrays are what `calculator` is given.

    Raises:
        InputError: something else than a calculator, one of mdsens's own, parameters that it does not take.
    """
    values = {} if parameters is None else parameters
    if not isinstance(values, dict) or any(not isinstance(name, str) for name in values):
        raise InputError(f'parameters are values by name, {{"epsilon": 1.0}}, not {parameters!r:.80}.')
    is_function = isinstance(calculator, type) or (callable(calculator) and not hasattr(calculator, "get_potential_energy"))
    make = calculator if is_function else _maker_like(calculator, values)
    potential = ExternalEnergy(values, None)  # type: ignore[arg-type]  # to see what its parameters are
    shapes = tuple((name, np.shape(value)) for name, value in potential.values.items())
    box = BlackBox(make, shapes, tuple(number for value in potential.values.values() for number in np.ravel(value).tolist()))
    box.calculator(box.values)
    return ExternalEnergy(values, box)


class ExternalEnergy(WrappedEnergy):
    """A calculator's energy as a potential, built by `from_ase`.

    There is one energy for the whole system (per-atom energies are equal shares).
    """

    box: BlackBox = static()

    def check(self, system: System) -> None:
        from ase.data import atomic_numbers

        if system.positions.dtype != jnp.float64 or self.dtype not in (None, jnp.float64):
            raise InputError("A wrapped calculator works in float64: bring system and potential back with .astype('float64').")
        if system.dim != 3:
            raise InputError("Calculators of ASE are three-dimensional, and this system is plane: use one of mdsens's own.")
        if unknown := [label for label in system.labels if label not in atomic_numbers]:
            raise InputError(f"A calculator of ASE knows elements, and {unknown[0]!r} is none: give symbols.")

    def find_neighbors(self, system: System, *, skin: float | None = None) -> "Steps":
        """Return the steps of differences, measured at the state [host]."""
        theta = np.asarray(self._theta()) if is_concrete(self) else np.array(self.box.values)
        state = State(np.asarray(system.positions), np.asarray(_cell(system)), theta, np.asarray(system.species))
        return measure_steps(self.box, self._structure(system), state)

    def prepared(self, system: System) -> System:
        # Energies, forces and stress take no differences.
        self.check(system)
        if not is_concrete(system.positions, system.cell):
            return super().prepared(system)
        steps = default_steps(np.array(self.box.values))
        return eqx.tree_at(lambda s: s.neighbors, system, steps, is_leaf=lambda leaf: leaf is None)

    def total(self, system: System) -> Float[Array, ""]:
        steps = self._steps(system)
        state = State(system.positions, _cell(system), self._theta(), system.species)
        return energy(self.box, self._structure(system), state, (steps.length, steps.lengths))

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        return jnp.full(len(system), self.total(system) / len(system))

    def approximation(self, system: System) -> Approximation:
        steps = self._steps(system)
        mixed = Entries(zip(self.values, self._split(steps.mixed_error), strict=True))
        words = (
            f"derivatives of forces by central differences over {float(steps.length):.1e} Å, "
            f"estimated error {float(steps.hessian_error):.1e} eV/Å² (noise of forces {float(steps.noise):.1e} eV/Å)"
        )
        return Approximation(words, float(steps.hessian_error), eqx.tree_at(lambda p: p.values, self, mixed))

    @staticmethod
    def _steps(system: System) -> "Steps":
        assert isinstance(system.neighbors, Steps)
        return system.neighbors

    def _structure(self, system: System) -> Structure:
        from ase.data import atomic_numbers

        return Structure(tuple(atomic_numbers[label] for label in system.labels), tuple(system.pbc))

    def _theta(self) -> Float[Array, " parameters"]:
        return jnp.concatenate([jnp.ravel(value) for value in self.values.values()] or [jnp.zeros(0)])

    def _split(self, flat: Any) -> list[np.ndarray]:
        ends = np.cumsum([np.size(value) for value in self.values.values()])[:-1]
        return [part.reshape(np.shape(v)) for part, v in zip(np.split(np.asarray(flat), ends), self.values.values(), strict=True)]


class Steps(Preparation):
    """Steps of differences, in place of a neighbour list, and how good these are.

    Attributes:
        length: step of displacements [Å].
        lengths: step of each parameter, in its unit.
        noise: noise of a component of a force [eV/Å].
        hessian_error: error of a product of the Hessian with a vector of unit length [eV/Å²].
        mixed_error: error of ∂F/∂θ, in the 2-norm over all atoms [eV/Å per unit of θ].
    """

    length: Float[Any, ""]
    lengths: Float[Any, " parameters"]
    noise: Float[Any, ""]
    hessian_error: Float[Any, ""]
    mixed_error: Float[Any, " parameters"]


def default_steps(theta: np.ndarray) -> Steps:
    """Return steps that suit most calculators in double precision."""
    unknown = np.full(theta.shape, np.nan)
    lengths = DEFAULT_SHARE * LONGEST_SHARE * _size(theta)
    return jax.tree.map(jnp.asarray, Steps(DEFAULT_SHARE * LONGEST_STEP, lengths, np.nan, np.nan, unknown))


def measure_steps(box: BlackBox, structure: Structure, state: State) -> Steps:
    """Return the steps that suit a calculator at a state [host].

    Raises:
        InputError: the calculator fails there, or its forces are not minus the gradient of its energy.
    """
    positions, theta = state.positions, state.theta
    u = np.random.default_rng(0).uniform(-1.0, 1.0, positions.shape)

    def at(t: float = 0.0, parameters: np.ndarray = theta) -> Evaluation:
        try:
            return box.evaluate(structure, state._replace(positions=positions + t * u, theta=parameters))
        except Exception as error:  # whatever a foreign program raises
            raise InputError(f"The calculator fails at this structure: {str(error).splitlines()[0]:.200}.") from error

    # By symmetry there may be no forces: then at least a rounding of an atom's energy over 1 Å.
    noise = max(measure_noise(lambda t: at(t).slope, NOISE_SPACING), np.finfo(float).eps * abs(at().energy) / len(positions))
    step = _step(lambda t: at(t).slope, LONGEST_STEP, noise)
    _check_conservative(at, u, step)
    lengths, errors = [], []
    for k, size in enumerate(_size(theta)):
        change = np.zeros_like(theta)
        change[k] = 1.0
        slope = lambda t, change=change: at(parameters=theta + t * change).slope  # noqa: E731
        own = _step(slope, LONGEST_SHARE * size, noise)
        lengths.append(own.length)
        errors.append(own.truncation + own.noise)
    # Truncation was seen along a direction of all atoms; noise is worst for a displacement of one.
    error = step.truncation / np.linalg.norm(u) + step.noise
    return jax.tree.map(jnp.asarray, Steps(step.length, np.array(lengths), noise, error, np.array(errors)))


def _step(slope: Callable[[float], np.ndarray], longest: float, noise: float) -> Step:
    step = best_step(slope, longest, noise)
    # Where no force changes, by symmetry, nothing was measured.
    return step if np.linalg.norm(step.derivative) > 1e2 * step.noise else step._replace(length=DEFAULT_SHARE * longest)


def _check_conservative(at: Callable[..., Evaluation], u: np.ndarray, step: Step) -> None:
    h, here = step.length, at().slope
    by_energy = float(central_difference(lambda t: np.asarray(at(t).energy), h))
    scale = np.linalg.norm(u) * (np.linalg.norm(here) + h * np.linalg.norm(step.derivative))
    rounding = 1e2 * np.finfo(np.float32 if step.noise > SINGLE_PRECISION_NOISE else float).eps * abs(at().energy) / h
    if abs(by_energy - np.vdot(here, u)) > FORCE_TOLERANCE * scale + rounding:
        raise InputError(
            f"The calculator's forces are not minus the gradient of its energy (along a random direction {np.vdot(here, u):.6g} "
            f"and {by_energy:.6g} eV/Å): an equilibrium of such forces has no energy, so it cannot be wrapped."
        )


def _size(theta: np.ndarray) -> np.ndarray:
    return np.where(theta == 0.0, 1.0, np.abs(theta))


def _cell(system: System) -> Array:
    return jnp.zeros((3, 3)) if system.cell is None else system.cell


def _maker_like(calculator: Any, values: Collection[str]) -> Callable[..., Any]:
    """Return a function that makes calculators like this one with other parameters."""
    known = getattr(calculator, "parameters", None)
    if not hasattr(calculator, "get_potential_energy") or not isinstance(known, dict):
        raise InputError(f"from_ase wants a calculator of ASE or a function that makes one, not {type(calculator).__name__}.")
    if missing := [name for name in values if name not in known]:
        raise InputError(
            f"{type(calculator).__name__} has no parameter {missing[0]!r} among its .parameters ({', '.join(known)}): give a "
            "function that makes a calculator of the parameters instead."
        )
    settings: Any = dict(known)
    if dataclasses.is_dataclass(calculator):
        settings = dataclasses.replace(calculator)  # type: ignore[type-var]
    return lambda **changed: type(calculator)(**{**settings, **changed})
