"""`Potential`: an energy model that is a pytree of its own parameters.

A subclass says what its atoms' energies are (`atom_energies`); energy, forces and stress follow from that one definition by
differentiation, and so does everything that `mdsens.mechanics` and `mdsens.derivatives` make of it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common import by_values
from mdsens.common.errors import InputError
from mdsens.common.suggestions import NameSuggester, get_attribute
from mdsens.common.text import module_text
from mdsens.common.units import stress_unit
from mdsens.common.voigt import to_voigt
from mdsens.potentials.checks import check_entries, check_static_lengths, warn_of_species
from mdsens.potentials.forms.stored_stiffness import LocalStiffness
from mdsens.potentials.methods import MissingMethod
from mdsens.potentials.parameters import as_parameter, as_tree, canonical_key
from mdsens.potentials.species import Atom
from mdsens.structures.neighbors.neighbor_list import SKIN
from mdsens.structures.neighbors.preparation import Preparation
from mdsens.structures.neighbors.search import find_neighbors
from mdsens.structures.neighbors.sums_over_neighbors import sum_over_atoms
from mdsens.structures.system import System, is_concrete

TRACED_RANGE_MARGIN = 1.1
"""Share by which a list is made longer when the range is known only from the values that a potential was built with."""


def constant_range(length: float) -> Float[Array, ""]:
    """Return a range that is the same for all parameters [Å]: an array of NumPy's, which is concrete in every trace."""
    return np.asarray(length)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True, eq=False)
class _BuiltRange:
    """The interaction range [Å] that a potential had when it was built; None while it is unknown.

    Inside `jit` the parameters have no values, but the host still needs a radius to list neighbours. All instances are
    equal, so that it never makes two potentials differ; the range of the traced values is held against the list there.
    """

    value: float | None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BuiltRange)

    def __hash__(self) -> int:
        return hash(_BuiltRange)


class Approximation(NamedTuple):
    """Error estimates of second derivatives that are not exact.

    Attributes:
        words: how the derivatives are made, and how good they are.
        hessian: error of a product of the Hessian with a vector of unit length, in the 2-norm [eV/Å²].
        mixed: potential-shaped, errors of ∂F/∂θ in the 2-norm over all atoms [eV/Å per unit of θ].
    """

    words: str
    hessian: float
    mixed: "Potential"


class Potential(NameSuggester, eqx.Module):
    """The base class of all energy models. Array fields are parameters; fields declared with `mdsens.static` are not.

    Numbers become float64 arrays. A parameter that depends on the species is a dict keyed by the label (`"A"`), the unordered
    pair (`"A-B"`, either order) or the ordered triplet (`"Si-C-C"`). `ms.LennardJones(epsilon=0.01, sigma=3.4, cutoff=8.5)`
    is one, and `potential.energy(system)` its energy.

    Raises:
        InputError: a field that is neither numbers nor static, keys that do not fit together.
    """

    units: ClassVar[dict[str, str]] = {}
    """Units of the parameters by name, for files; "" for pure numbers, absent where unknown."""

    copying: ClassVar[str] = (
        "ms.studies.with_values(potential, {{'{name}': 2.0}}) is a copy with another value of a parameter, "
        "dataclasses.replace(potential, {name}=...) of anything else"
    )

    keyed: ClassVar[bool] = True
    """Whether dicts among the parameters are keyed by species; else they are trees of the user's, kept as they are."""

    local: ClassVar[bool] = True
    """Whether each atom's energy is a function of the vectors to its listed neighbours alone; a matrix can be assembled then."""

    stiffness_form: ClassVar[Any] = None
    """The class of what `local_stiffness` returns, where that is always the same one."""

    add: ClassVar[Callable[[tuple["Potential", ...]], "Potential"]]
    """The class that `+` makes: `Sum`, which imports this module and sets it."""

    built_range: _BuiltRange = eqx.field(static=True, init=False, repr=False)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a parameter: a derivative has those of the potential that it belongs to."""

    def __repr__(self) -> str:
        return module_text(self)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            raise InputError(
                f"{cls.__name__} has an __init__ of its own: declare its parameters as fields (kappa: float) instead, from which "
                "it is made, and other ways to build it as class methods."
            )
        # A subclass with other atoms' energies does not inherit shortcuts that were made for the old ones.
        if "atom_energies" in cls.__dict__:
            for name in ("total", "local_stiffness"):
                if name not in cls.__dict__:
                    setattr(cls, name, getattr(Potential, name))

    def __post_init__(self) -> None:
        if type(self).range is Potential.range:
            check_static_lengths(self)
        for field in dataclasses.fields(self):
            if not field.metadata.get("static", False):
                convert = as_parameter if self.keyed else as_tree
                value = convert(getattr(self, field.name), f"{type(self).__name__}.{field.name}")
                object.__setattr__(self, field.name, value)
            elif isinstance(value := get_attribute(self, field.name), np.generic):
                object.__setattr__(self, field.name, value.item())
        object.__setattr__(self, "built_range", _BuiltRange(None))
        if is_concrete(self):
            object.__setattr__(self, "built_range", _BuiltRange(float(self.range)))

    # For subclasses to define.

    @property
    def range(self) -> Float[Array, ""]:
        """The distance beyond which two atoms do not see each other [Å]; by default the field `cutoff`."""
        if not hasattr(self, "cutoff"):
            raise InputError(f"{type(self).__name__} says nothing of its range: give it a field cutoff = mdsens.static(...).")
        return constant_range(float(self.cutoff))

    @property
    def ranges(self) -> Float[Array, "*terms"]:
        """The ranges that the neighbour list must cover [Å]: one number, or one for each term of a sum."""
        return self.range

    @property
    def smoothness(self) -> float:
        """The number of derivatives of the energy that are continuous everywhere; -1 where nothing is known."""
        return -1

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        """Return each atom's share of the energy [eV], from `system.neighbors`; pure JAX."""
        raise MissingMethod(self, "atom_energies(system)", "which PairPotential, SitePotential and EmbeddedPotential have")

    def total(self, system: System) -> Float[Array, ""]:
        """Return the sum of `atom_energies` [eV]; for subclasses that have a faster way to it."""
        return sum_over_atoms(self.atom_energies(system), system.neighbors)

    def local_stiffness(self, system: System) -> LocalStiffness:
        """Return ∂²E_i/∂d_ik ∂d_il as a `LocalStiffness`, from `system.neighbors`, where energies have such a form."""
        raise NotImplementedError

    def approximation(self, system: System) -> Approximation | None:
        """Return the errors of second derivatives at a system with its list; None where they are exact to rounding [host]."""
        return None

    def check(self, system: System) -> None:
        """Refuse a system that this potential has no parameters for.

        Raises:
            InputError: naming the species or pair that is missing.
        """
        if not isinstance(system, System):
            raise InputError(f"A mdsens.System is wanted, not {type(system).__name__}: System.from_ase(atoms) makes one.")
        pairs = {canonical_key(f"{a}-{b}") for a in system.labels for b in system.labels} - {
            *get_attribute(self, "no_interaction", ())
        }
        for name, parameter in self.parameters().items():
            if not self.keyed or not isinstance(parameter, dict):
                continue
            if not parameter:
                raise InputError(f"{type(self).__name__}.{name} is an empty dict: give at least one entry.")
            needed = {1: set(system.labels), 2: pairs}.get(next(iter(parameter)).count("-") + 1, set())
            check_entries(self, name, needed, system.labels)
        if self.dtype is not None and self.dtype != system.positions.dtype:
            raise InputError(
                f"The potential is {self.dtype} and the system {system.positions.dtype}: "
                "bring both to one precision with .astype(...)."
            )
        warn_of_species(self, system.labels)

    def pair(self, parameter: Any, i: Atom, j: Atom) -> Array:
        """Return a parameter's value for a pair of atoms: it is one number for all, or a dict by unordered pairs of labels."""
        if not isinstance(parameter, dict):
            if jnp.ndim(parameter):
                raise InputError(f"{self._name_of(parameter)} is an array: a pair's parameter is one number or a dict by pairs.")
            return parameter
        rows = [[self._pair_entry(parameter, canonical_key(f"{a}-{b}")) for b in i.labels] for a in i.labels]
        return rows[0][0] if len(rows) == 1 else jnp.stack([jnp.stack(row) for row in rows])[i.code, j.code]

    def triplet(self, parameter: Any, i: Atom, j: Atom, k: Atom) -> Array:
        """Return a parameter's value for a centre i with j and k: it is one number for all, or a dict by ordered triplets.

        With `k is j` only the entries "i-j-j" are needed.
        """
        if not isinstance(parameter, dict):
            if jnp.ndim(parameter):
                raise InputError(
                    f"{self._name_of(parameter)} is an array: a parameter of a triplet is one number or a dict by triplets."
                )
            return parameter
        ends = [(b, b) for b in i.labels] if k is j else [(b, c) for b in i.labels for c in i.labels]
        table = jnp.stack([self._entry(parameter, f"{a}-{b}-{c}") for a in i.labels for b, c in ends])
        if len(i.labels) == 1:
            return table[0]
        codes = (i.code, j.code) if k is j else (i.code, j.code, k.code)
        return table.reshape((len(i.labels),) * len(codes))[codes]

    def one(self, parameter: Any, i: Atom) -> Array:
        """Return a parameter's value for one atom: it is one number for all, a dict by label, or one value per atom, `(N,)`."""
        if isinstance(parameter, dict):
            return jnp.stack([self._entry(parameter, label) for label in i.labels])[i.code]
        if parameter.ndim == 0:
            return parameter
        if parameter.shape[0] != i.n_atoms:
            raise InputError(f"{self._name_of(parameter)} has {parameter.shape[0]} values for {i.n_atoms} atoms.")
        return parameter[i.index]

    def _pair_entry(self, parameter: dict[str, Any], key: str) -> Any:
        return self._entry(parameter, key)

    def _entry(self, parameter: dict[str, Any], key: str) -> Any:
        if key not in parameter:
            raise InputError(f"{self._name_of(parameter)} has no entry {key!r}; it has {', '.join(map(repr, parameter))}.")
        return parameter[key]

    def _name_of(self, parameter: Any) -> str:
        names = [name for name, value in self.parameters().items() if value is parameter]
        return f"{type(self).__name__}.{names[0] if names else '<parameter>'}"

    # For potentials made of others to define.

    def parts(self) -> "tuple[Potential, ...]":
        """Return the potentials whose energies add up to this one's; by default itself alone."""
        return (self,)

    def path_name(self, path: Sequence[Any]) -> str:
        """Return the name of a leaf from its path in the tree."""
        keys = [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path]
        # A container that only holds a wrapped energy's parameters is no part of their name.
        return ".".join(key for key in keys if key != "values") or ".".join(keys)

    def unit_of(self, name: str) -> str | None:
        """Return the unit of a parameter by its name or path: "" for pure numbers, None where unknown."""
        return self.units.get(name.split(".")[0])

    def stored_settings(self) -> dict[str, Any]:
        """Return what a file must keep beside the parameters' values to build the potential again."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.metadata.get("static", False) and field.init
        }

    @property
    def stored_constants(self) -> dict[str, np.ndarray]:
        """Values by path that a file must keep and that are no parameters."""
        return {}

    @classmethod
    def from_stored(cls, values: dict[str, Any], settings: dict[str, Any], known: "dict[str, type[Potential]]") -> "Potential":
        """Build the potential from what a file kept.

        Args:
            values: parameters and constants, nested by the parts of their paths.
            known: classes by name, for the potentials that this one is made of.
        """
        return cls(**values, **{name: _as_tuples(value) for name, value in settings.items()})

    def check_strain(self, system: System) -> None:
        """Raise InputError where a cell has no volume, or does not strain with this potential."""
        volume = system.volume
        if is_concrete(volume) and float(volume) == 0.0:
            raise InputError("The cell has a vector of length zero and so no volume: stress and pressure need one.")

    # Derived from the above.

    def __add__(self, other: "Potential") -> "Potential":
        """Return the `Sum` of both, whose energy is the sum of theirs."""
        return Potential.add((self, other)) if isinstance(other, Potential) else NotImplemented

    def parameters(self) -> dict[str, Any]:
        """Return the parameters by name, as they are in this tree (leaves may be numbers, derivatives or None)."""
        return {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if not field.metadata.get("static", False)
        }

    @property
    def dtype(self) -> Any:
        """The precision of the parameters; None without any."""
        leaves = jax.tree.leaves(self)
        return jnp.result_type(*leaves) if leaves else None

    def astype(self, dtype: Any) -> "Potential":
        """Return the potential in another precision, `potential.astype("float32")` say."""
        inside = lambda node: isinstance(node, Potential) and node is not self  # noqa: E731
        return jax.tree.map(lambda part: part.astype(dtype), self, is_leaf=inside)

    def find_neighbors(self, system: System, *, skin: float | None = None) -> Preparation:
        """Return the padded neighbour list of a concrete system [host]; `skin` defaults to a tenth of the range.

        Raises:
            InputError: positions that are not finite or coincide, a range that cannot be known.
        """
        if not is_concrete(system.positions, system.cell):
            raise InputError(
                "The positions are traced by JAX and the system carries no neighbour list: "
                "attach one outside, system = system.with_neighbors(potential)."
            )
        reach = self._host_range()
        return find_neighbors(
            system.positions, system.cell, system.pbc, radius=reach, skin=SKIN * reach if skin is None else skin
        )

    def _host_range(self) -> float:
        # The range follows from static fields alone for some potentials, and then tracers do not hide it.
        value = self.range
        if is_concrete(value):
            return float(value)
        if self.built_range.value is None:
            raise InputError(
                f"The range of this {type(self).__name__} depends on traced parameters: build it outside the "
                "transformed function, or attach a list to the system, system.with_neighbors(potential)."
            )
        return TRACED_RANGE_MARGIN * self.built_range.value

    def prepared(self, system: System) -> System:
        """Return the system, checked, with a neighbour list that is right for this potential."""
        self.check(system)
        if not is_concrete(system.positions, system.cell):
            if system.neighbors is None:
                self.find_neighbors(system)  # says what is missing
            return system
        return system.with_neighbors(self)

    def energy(self, system: System) -> Float[Array, ""]:
        """Return the potential energy [eV]."""
        if (known := _known_values(self, system)) is not None:
            return known.energy(self, system)  # type: ignore[no-any-return]
        return _energy(self, self.prepared(system))

    def energies(self, system: System) -> Float[Array, " atoms"]:
        """Return each atom's share of the energy [eV]."""
        return _energies(self, self.prepared(system))

    def forces(self, system: System) -> Float[Array, "atoms dim"]:
        """Return the forces [eV/Å], on frozen atoms too."""
        if (known := _known_values(self, system)) is not None:
            return known.forces(self, system)  # type: ignore[no-any-return]
        return _forces(self, self.prepared(system))

    def stress(self, system: System) -> Float[Array, " voigt"]:
        """Return the stress in Voigt order (xx, yy, zz, yz, xz, xy; in 2-D xx, yy, xy), positive in tension [GPa, in 2-D eV/Å²].

        Raises:
            InputError: the system has no cell, or the cell no volume.
        """
        self.check_strain(system)
        if (known := _known_values(self, system)) is not None:
            return known.stress(self, system)  # type: ignore[no-any-return]
        return _stress(self, self.prepared(system))

    def pressure(self, system: System) -> Float[Array, ""]:
        """Return minus the mean of the normal stresses [GPa, in 2-D eV/Å²]; raises as `stress` does."""
        self.check_strain(system)
        if (known := _known_values(self, system)) is not None:
            return -jnp.mean(known.stress(self, system)[: system.dim])
        return _pressure(self, self.prepared(system))


def _known_values(potential: Potential, system: System) -> by_values.Energies | None:
    """Return what gives derivatives of a traced state from values, where observables are asked for these."""
    if is_concrete(system.positions, system.cell, potential) or not gives_stiffness(potential):
        return None
    known = by_values.known_values()
    return None if known is None else known.energies


def total_energy(potential: Potential, system: System) -> Float[Array, ""]:
    """Return the energy from `system.neighbors` as it is, NaN where the list is too short. Pure JAX."""
    factor = soundness(potential, system)
    return factor * potential.total(system.with_positions(factor * system.positions))


def sound_stiffness(potential: Potential, system: System) -> LocalStiffness:
    """Return `potential.local_stiffness` from `system.neighbors` as it is; NaN where the list is too short. Pure JAX."""
    factor = soundness(potential, system)
    stiffness = potential.local_stiffness(system.with_positions(factor * system.positions))
    # On both sides of the masks, as for energies.
    return jax.tree.map(lambda leaf: factor * leaf, stiffness)


def with_built_range(tree: Potential, values: Potential) -> Potential:
    """Return a copy of a tree of a potential's shape that takes the range of `values` for the one that it was built with."""
    copy = jax.tree.map(lambda leaf: leaf, tree)
    object.__setattr__(copy, "built_range", _BuiltRange(float(values.range)))
    return copy


def gives_stiffness(potential: Potential) -> bool:
    """Return whether a potential has `local_stiffness`, the second derivatives of its atoms' energies."""
    return all(type(part).local_stiffness is not Potential.local_stiffness for part in potential.parts())


def is_local(potential: Potential) -> bool:
    """Return whether, in all parts, each atom's energy is a function of the vectors to its listed neighbours alone."""
    return all(part.local for part in potential.parts())


def listed_energies(potential: Potential, system: System) -> Float[Array, " atoms"]:
    """Return each atom's share of the energy from `system.neighbors` as it is; NaN where the list is too short. Pure JAX."""
    # The factor stands on both sides of the masks inside, which would otherwise hide it from the energy (if it stood before
    # them) or from the forces (if behind).
    factor = soundness(potential, system)
    return factor * potential.atom_energies(system.with_positions(factor * system.positions))


def soundness(potential: Potential, system: System) -> Float[Array, ""]:
    """Return 1, or NaN where parameters have outgrown the list or positions are not finite."""
    assert system.neighbors is not None
    sound = system.neighbors.reaches(jax.lax.stop_gradient(potential.ranges))
    sound = sound & jnp.all(jnp.isfinite(jax.lax.stop_gradient(system.positions)))
    return jnp.where(sound, 1.0, jnp.nan).astype(system.positions.dtype)


def freshness(potential: Potential, system: System) -> Float[Array, ""]:
    """Return 1, or NaN where the list went stale: inside a trace nothing else checks it."""
    assert system.neighbors is not None
    stale = system.neighbors.is_stale(*jax.lax.stop_gradient((system.positions, potential.ranges)))
    return jnp.where(stale, jnp.nan, 1.0).astype(system.positions.dtype)


@eqx.filter_jit
def _energy(potential: Potential, system: System) -> Array:
    return jnp.sum(_energies(potential, system))


@eqx.filter_jit
def _energies(potential: Potential, system: System) -> Array:
    fresh = freshness(potential, system)
    return fresh * listed_energies(potential, system.with_positions(fresh * system.positions))


@eqx.filter_jit
def _forces(potential: Potential, system: System) -> Array:
    return -jax.grad(lambda x: total_energy(potential, system.with_positions(x)))(freshness(potential, system) * system.positions)


@eqx.filter_jit
def _stress(potential: Potential, system: System) -> Array:
    def strained(strain: Array) -> Array:
        return total_energy(potential, system.deformed(jnp.eye(system.dim) + 0.5 * (strain + strain.T)))

    dim = system.dim
    slope = jax.grad(strained)(jnp.zeros((dim, dim), system.positions.dtype))
    return to_voigt(slope / system.volume) * stress_unit(dim)


@eqx.filter_jit
def _pressure(potential: Potential, system: System) -> Array:
    def stretched(stretch: Array) -> Array:
        return total_energy(potential, system.deformed(stretch * jnp.eye(system.dim)))

    unity = jnp.ones((), system.positions.dtype)
    return -jax.jvp(stretched, (unity,), (unity,))[1] / (system.dim * system.volume) * stress_unit(system.dim)


def parameter_paths(potential: Potential) -> list[str]:
    """Return the names of a potential's parameters: `"sigma"`, or `"epsilon.A-B"` where they depend on the species."""
    return [potential.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(potential)]


def _as_tuples(value: Any) -> Any:
    """Return the lists of a file as the tuples that static fields are."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
