"""`Sum`: potentials added up."""

import collections
import functools
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mdsens.common.errors import InputError
from mdsens.potentials.base import Approximation, Potential, is_local, listed_energies, total_energy
from mdsens.potentials.forms.stored_stiffness import SumStiffness
from mdsens.structures.neighbors.neighbor_list import SKIN, Neighbors
from mdsens.structures.system import System

SHORTER = 0.9
"""Share of the longest range below which a term has a list of its own."""

EQUAL = 1e-3
"""Share up to which two skins are one."""


class Sum(Potential):
    """U = Σ_k U_k, made by `+`: `ms.ZBL(...) + ms.EAM.from_file(...)`.

    Args:
        terms: potentials of any kind and range, wrapped energies too. Sums among them are taken apart.

    Parameters are those of the terms: `potential.terms[0].epsilon`, and by the name of the term's class,
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
        """The longest of the terms whose pairs are listed by distance, which given bonds are not; without such, of the others."""
        ends = [term for term in self.terms if not _is_endless(term)]
        ends = [term for term in ends if is_local(term)] or ends
        if not ends:
            return np.asarray(np.inf)  # type: ignore[return-value]  # a constant of every trace
        return _stacked([term.range for term in ends]).max()

    @property
    def ranges(self) -> Float[Array, "*terms"]:
        """Those of the terms; without bound where no term is of listed pairs."""
        listed = [term.range for term in self.terms if is_local(term)]
        return _stacked(listed) if listed else np.asarray(np.inf)  # type: ignore[return-value]  # a constant of every trace

    @property
    def smoothness(self) -> float:
        return min(term.smoothness for term in self.terms)

    def parts(self) -> tuple[Potential, ...]:
        return tuple(part for term in self.terms for part in term.parts())

    def approximation(self, system: System) -> Approximation | None:
        each = [(term, term.approximation(at)) for term, at in self.placed(system)]
        known = [found for _, found in each if found is not None]
        if not known:
            return None
        mixed = tuple(jax.tree.map(jnp.zeros_like, term) if found is None else found.mixed for term, found in each)
        words = "; ".join(found.words for found in known)
        return Approximation(words, sum(found.hessian for found in known), eqx.tree_at(lambda s: s.terms, self, mixed))

    def check(self, system: System) -> None:
        for term in self.terms:
            term.check(system)

    def find_neighbors(self, system: System, *, skin: float | None = None) -> Any:
        # Lists of others have room of their own; only where that was too little is it the one that is asked for.
        more = skin if skin is not None and skin > (1.0 + EQUAL) * SKIN * self._host_range() else None
        others = tuple(None if is_local(term) else term.find_neighbors(system, skin=more) for term in self.terms)
        listed = [term for term in self.terms if is_local(term)]
        if not listed:
            return TermLists(None, others)
        by_distance = not all(_is_endless(term) for term in listed)
        finder = super().find_neighbors if by_distance else listed[0].find_neighbors
        whole = finder(system, skin=skin)
        # Many-body energies grow with the square of their neighbours, so those of short range get a list of their own.
        shares = [self._shares(term) if by_distance else term is listed[0] for term in listed]
        room = SKIN * self._host_range() if by_distance and skin is None else skin
        own = [None if share else term.find_neighbors(system, skin=room) for term, share in zip(listed, shares, strict=True)]
        whole = whole.with_shorter(tuple(own))
        return whole if len(listed) == len(self.terms) else TermLists(whole, others)

    def _shares(self, term: Potential) -> bool:
        """Whether a term of listed pairs uses the longest list."""
        return len(term.parts()) == 1 and SHORTER * self._host_range() <= term._host_range() < np.inf

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
        """Each term with the system and the list that it wants."""
        lists = system.neighbors
        whole, own = (lists.shared, lists.own) if isinstance(lists, TermLists) else (lists, (None,) * len(self.terms))
        shorter = iter(whole.shorter if whole is not None else ())
        chosen = [next(shorter) or whole if one is None else one for one in own]
        return [(term, _listing(system, one)) for term, one in zip(self.terms, chosen, strict=True)]

    @property
    def names(self) -> tuple[str, ...]:
        """What the terms are called in paths."""
        kinds = [type(parts[0]).__name__ if len(parts := term.parts()) == 1 else "Sum" for term in self.terms]
        counts, names = collections.Counter(kinds), []
        seen: collections.Counter[str] = collections.Counter()
        for kind in kinds:
            seen[kind] += 1
            names.append(f"{kind}{seen[kind]}" if counts[kind] > 1 else kind)
        return tuple(names)

    def parameters(self) -> dict[str, Any]:
        """Those of the terms, `"LennardJones.epsilon"`."""
        named = zip(self.names, self.terms, strict=True)
        return {f"{name}.{key}": value for name, term in named for key, value in term.parameters().items()}

    def path_name(self, path: Any) -> str:
        _, place, *rest = path
        return f"{self.names[place.idx]}.{self.terms[place.idx].path_name(rest)}"

    def unit_of(self, name: str) -> str | None:
        term, _, rest = name.partition(".")
        return self.terms[self.names.index(term)].unit_of(rest)

    def stored_settings(self) -> dict[str, Any]:
        named = zip(self.names, self.terms, strict=True)
        return {"terms": [{"name": name, "class": type(term).__name__, "static": term.stored_settings()} for name, term in named]}

    @property
    def stored_constants(self) -> dict[str, np.ndarray]:
        named = zip(self.names, self.terms, strict=True)
        return {f"{name}.{path}": value for name, term in named for path, value in term.stored_constants.items()}

    @classmethod
    def from_stored(cls, values: dict[str, Any], settings: dict[str, Any], known: dict[str, type[Potential]]) -> Potential:
        terms = [known[term["class"]].from_stored(values[term["name"]], term["static"], known) for term in settings["terms"]]
        return cls(tuple(terms))


class TermLists(eqx.Module):
    """One list for the terms whose energies are of listed pairs, and what the others want.

    Attributes:
        shared: with the shorter ones of some of them; None without such terms.
        own: the others', None for terms that share.
    """

    shared: Neighbors | None
    own: tuple[Any, ...]

    @property
    def hides_cell(self) -> bool:
        """Whether one of the terms knows nothing of the cell."""
        return any(getattr(one, "hides_cell", False) for one in self.own)

    def slack(self, interaction_range: Any, stretch: Any = 1.0) -> Float[Array, ""]:
        """What all lists reach beyond their ranges, if lengths were stretched: the least."""
        left = [one.slack(_reach(one), stretch) for one in self.own if one is not None]
        return jnp.min(jnp.stack(left if self.shared is None else [*left, self.shared.slack(interaction_range, stretch)]))

    def is_stale(self, positions: Array, interaction_range: Any) -> Bool[Array, ""]:
        stale = [one.is_stale(positions, _reach(one)) for one in self.own if one is not None]
        return jnp.any(jnp.stack(stale if self.shared is None else [*stale, self.shared.is_stale(positions, interaction_range)]))

    def reaches(self, interaction_range: Any) -> Bool[Array, ""]:
        return jnp.asarray(True) if self.shared is None else self.shared.reaches(interaction_range)


def _reach(neighbors: Any) -> Any:
    return neighbors.radius - neighbors.skin if isinstance(neighbors, Neighbors) else jnp.inf


def _stacked(ranges: list[Any]) -> Any:
    """In NumPy where all are constants of every trace."""
    constant = all(isinstance(reach, np.ndarray) for reach in ranges)
    return np.stack(ranges) if constant else jnp.stack([jnp.asarray(reach) for reach in ranges])


def _is_endless(term: Potential) -> bool:
    """Whether a term's list is not of the pairs within a distance."""
    return isinstance(reach := term.range, np.ndarray) and bool(np.isinf(reach))


def _listing(system: System, neighbors: Any) -> System:
    return eqx.tree_at(lambda s: s.neighbors, system, neighbors, is_leaf=lambda leaf: leaf is None)


def shared(system: System) -> System:
    """The system with the list of pairs, where it has other lists too."""
    return _listing(system, system.neighbors.shared) if isinstance(system.neighbors, TermLists) else system


Potential.add = Sum
