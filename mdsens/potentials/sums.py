"""`Sum`: a potential whose energy is the sum of others'."""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mdsens.common.errors import InputError
from mdsens.potentials.base import Approximation, Potential, constant_range, is_local, listed_energies, total_energy
from mdsens.potentials.forms.stored_stiffness import SumStiffness
from mdsens.structures.neighbors.neighbor_list import SKIN, Neighbors
from mdsens.structures.neighbors.preparation import Preparation
from mdsens.structures.system import System

OWN_LIST_SHARE = 0.9
"""Share of the longest range below which a term has a list of its own."""

SKIN_TOLERANCE = 1e-3
"""Share up to which two skins are one."""


class Sum(Potential):
    """The energy U = Σ_k U_k, made by `+`: `ms.ZBL(...) + ms.EAM.from_file(...)`.

    Args:
        terms: potentials of any kind and range, wrapped energies too. Sums among them are taken apart.

    Its parameters are those of the terms: `potential.terms[0].epsilon`, and by the name of the term's class,
    `wrt=["LennardJones.epsilon"]`; terms of one class are numbered, `"LennardJones1"`, `"LennardJones2"`. It is as smooth as
    its roughest term.
    """

    terms: tuple[Potential, ...]

    def __post_init__(self) -> None:
        terms = tuple(self.terms) if isinstance(self.terms, list | tuple) else (self.terms,)
        if not terms or not all(isinstance(term, Potential) for term in terms):
            raise InputError("Sum wants a tuple of potentials: ms.ZBL(...) + ms.EAM.from_file(...).")
        flat = (part for term in terms for part in (term.terms if isinstance(term, Sum) else (term,)))
        object.__setattr__(self, "terms", tuple(flat))
        super().__post_init__()

    @property
    def range(self) -> Float[Array, ""]:
        """The longest range of the terms whose pairs are listed by distance (bonds are not), else of all others."""
        ends = [term for term in self.terms if not _is_endless(term)]
        ends = [term for term in ends if is_local(term)] or ends
        return _stacked([term.range for term in ends]).max() if ends else constant_range(np.inf)

    @property
    def ranges(self) -> Float[Array, "*terms"]:
        """The ranges of the terms of listed pairs; infinite where there is none."""
        listed = [term.range for term in self.terms if is_local(term)]
        return _stacked(listed) if listed else constant_range(np.inf)

    @property
    def smoothness(self) -> float:
        return min(term.smoothness for term in self.terms)

    def parts(self) -> tuple[Potential, ...]:
        return tuple(part for term in self.terms for part in term.parts())

    def approximation(self, system: System) -> Approximation | None:
        each = [(term, term.approximation(at)) for term, at in self.placed(system)]
        known = [errors for _, errors in each if errors is not None]
        if not known:
            return None
        mixed = tuple(jax.tree.map(jnp.zeros_like, term) if errors is None else errors.mixed for term, errors in each)
        words = "; ".join(errors.words for errors in known)
        return Approximation(words, sum(errors.hessian for errors in known), eqx.tree_at(lambda s: s.terms, self, mixed))

    def check(self, system: System) -> None:
        for term in self.terms:
            term.check(system)

    def find_neighbors(self, system: System, *, skin: float | None = None) -> Preparation:
        # Terms with a list of another kind choose its room themselves, unless more than the usual is asked for.
        more = skin if skin is not None and skin > (1.0 + SKIN_TOLERANCE) * SKIN * self._host_range() else None
        others = tuple(None if is_local(term) else term.find_neighbors(system, skin=more) for term in self.terms)
        listed = [term for term in self.terms if is_local(term)]
        if not listed:
            return TermLists(None, others)
        by_distance = not all(_is_endless(term) for term in listed)
        finder = super().find_neighbors if by_distance else listed[0].find_neighbors
        whole = finder(system, skin=skin)
        assert isinstance(whole, Neighbors)
        # Many-body energies grow with the square of their neighbours, so those of short range get a list of their own.
        shares = [self._shares(term) if by_distance else term is listed[0] for term in listed]
        room = SKIN * self._host_range() if by_distance and skin is None else skin
        own: Any = [None if share else term.find_neighbors(system, skin=room) for term, share in zip(listed, shares, strict=True)]
        whole = whole.with_shorter(tuple(own))
        return whole if len(listed) == len(self.terms) else TermLists(whole, others)

    def _shares(self, term: Potential) -> bool:
        """Return whether a term of listed pairs uses the longest list."""
        return len(term.parts()) == 1 and OWN_LIST_SHARE * self._host_range() <= term._host_range() < np.inf

    def prepared(self, system: System) -> System:
        for term in self.terms:
            if not is_local(term):
                term.prepared(system)  # may refuse what its check cannot see
        return super().prepared(system)

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        return functools.reduce(operator.add, (listed_energies(term, at) for term, at in self.placed(system)))

    def total(self, system: System) -> Float[Array, ""]:
        return functools.reduce(operator.add, (total_energy(term, at) for term, at in self.placed(system)))

    def local_stiffness(self, system: System) -> SumStiffness:
        return SumStiffness(tuple(term.local_stiffness(at) for term, at in self.placed(system)))

    def check_strain(self, system: System) -> None:
        for term in self.terms:
            term.check_strain(system)

    def placed(self, system: System) -> list[tuple[Potential, System]]:
        """Return each term with the system and the list that it was prepared."""
        lists: Any = system.neighbors
        whole, own = (lists.shared, lists.own) if isinstance(lists, TermLists) else (lists, (None,) * len(self.terms))
        shorter = iter(whole.shorter if whole is not None else ())
        chosen = [next(shorter) or whole if other is None else other for other in own]
        return [(term, _with_list(system, neighbors)) for term, neighbors in zip(self.terms, chosen, strict=True)]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the terms in paths."""
        kinds = [type(parts[0]).__name__ if len(parts := term.parts()) == 1 else "Sum" for term in self.terms]
        return tuple(f"{kind}{kinds[: k + 1].count(kind)}" if kinds.count(kind) > 1 else kind for k, kind in enumerate(kinds))

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the terms by name, `"LennardJones.epsilon"`."""
        return {f"{name}.{key}": value for name, term in self._named_terms() for key, value in term.parameters().items()}

    def _named_terms(self) -> Iterable[tuple[str, Potential]]:
        return zip(self.names, self.terms, strict=True)

    def path_name(self, path: Sequence[Any]) -> str:
        _, place, *rest = path
        return f"{self.names[place.idx]}.{self.terms[place.idx].path_name(rest)}"

    def unit_of(self, name: str) -> str | None:
        term, _, rest = name.partition(".")
        return self.terms[self.names.index(term)].unit_of(rest)

    def stored_settings(self) -> dict[str, Any]:
        return {
            "terms": [
                {"name": name, "class": type(term).__name__, "static": term.stored_settings()}
                for name, term in self._named_terms()
            ]
        }

    @property
    def stored_constants(self) -> dict[str, np.ndarray]:
        return {f"{name}.{path}": value for name, term in self._named_terms() for path, value in term.stored_constants.items()}

    @classmethod
    def from_stored(cls, values: dict[str, Any], settings: dict[str, Any], known: dict[str, type[Potential]]) -> Potential:
        terms = [known[term["class"]].from_stored(values[term["name"]], term["static"], known) for term in settings["terms"]]
        return cls(tuple(terms))


class TermLists(Preparation):
    """The neighbour list of the terms whose energies are of listed pairs, and what was prepared for each of the others.

    Attributes:
        shared: the list, with the shorter ones that some of the terms have; None without such terms.
        own: for each term what it alone uses, None for one that uses `shared`.
    """

    shared: Neighbors | None
    own: tuple[Preparation | None, ...]

    @property
    def hides_cell(self) -> bool:
        return any(other.hides_cell for other in self.own if other is not None)

    def slack(self, interaction_range: Any, stretch: Any = 1.0) -> Float[Array, ""]:
        left = [other.slack(_reach(other), stretch) for other in self.own if other is not None]
        return jnp.min(jnp.stack(left if self.shared is None else [*left, self.shared.slack(interaction_range, stretch)]))

    def is_stale(self, positions: Float[Array, "atoms dim"], interaction_range: Any) -> Bool[Array, ""]:
        stale = [other.is_stale(positions, _reach(other)) for other in self.own if other is not None]
        return jnp.any(jnp.stack(stale if self.shared is None else [*stale, self.shared.is_stale(positions, interaction_range)]))

    def reaches(self, interaction_range: Any) -> Bool[Array, ""]:
        return jnp.asarray(True) if self.shared is None else self.shared.reaches(interaction_range)


def _reach(neighbors: Preparation) -> Any:
    return neighbors.radius - neighbors.skin if isinstance(neighbors, Neighbors) else jnp.inf


def _stacked(ranges: list[Any]) -> Any:
    """Return ranges as one array, of NumPy's where all are constants of every trace."""
    constant = all(isinstance(reach, np.ndarray) for reach in ranges)
    return np.stack(ranges) if constant else jnp.stack([jnp.asarray(reach) for reach in ranges])


def _is_endless(term: Potential) -> bool:
    """Return whether a term's list is not of the pairs within a distance."""
    return isinstance(reach := term.range, np.ndarray) and bool(np.isinf(reach))


def _with_list(system: System, neighbors: Preparation | None) -> System:
    return eqx.tree_at(lambda s: s.neighbors, system, neighbors, is_leaf=lambda leaf: leaf is None)


def with_pair_list(system: System) -> System:
    """Return the system without what was prepared for terms that need more than the list of pairs."""
    return _with_list(system, system.neighbors.shared) if isinstance(system.neighbors, TermLists) else system


Potential.add = Sum
