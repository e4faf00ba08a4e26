"""SNAP's energy of atoms from the vectors to their neighbours, atoms last, and its derivatives.

LAMMPS's bispectrum component of the levels j1, j2, j, products of matrices u with Clebsch-Gordan coefficients, is an integral

    B_{j1 j2 j} = (j + 1) ⟨F_j1 F_j2 F_j⟩,  F_j(q) = U_j(q_0) + Σ_k w_k f(r_k) U_j(q·p_k)

over the unit sphere in four dimensions, p_k being where the neighbour k lies on it and U_j a Chebyshev polynomial: F_j is the
function whose coefficients in the matrices u are those of LAMMPS. A quadrature takes it exactly, with few operations.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from mdsens.potentials.learned.hypersphere import Sphere, sphere, triple_integrals
from mdsens.structures.neighbors.sums_over_neighbors import fence


class Surroundings(NamedTuple):
    """What is known of atoms and their neighbours beside the vectors between them.

    Attributes:
        inside: which places hold a neighbour.
        cutoff: of each pair [Å].
        channel: in which of the functions F a neighbour counts, and the atom itself.
        middle, half_width: of the switch at short distances [Å].
    """

    inside: Bool[Array, "capacity atoms"]
    cutoff: Float[Array, "capacity atoms"]
    channel: Int[Array, "capacity atoms"]
    own: Int[Array, " atoms"]
    middle: Float[Array, "capacity atoms"]
    half_width: Float[Array, "capacity atoms"]

    @property
    def alive(self) -> Array:
        """A number that is not negative, which compilers do not know."""
        return self.own[0]


@dataclasses.dataclass(frozen=True)
class Bispectrum:
    """Settings by LAMMPS's names; `channels` is the number of elements that are told apart."""

    twojmax: int
    rfac0: float
    rmin0: float
    switchflag: bool
    bzeroflag: bool
    quadraticflag: bool
    bnormflag: bool
    wselfallflag: bool
    switchinnerflag: bool
    channels: int

    @property
    def triples(self) -> list[tuple[int, int, int]]:
        """j1, j2, j of the components, in LAMMPS's order."""
        top = self.twojmax
        return [
            (j1, j2, j)
            for j1 in range(top + 1)
            for j2 in range(j1 + 1)
            for j in range(j1 - j2, min(top, j1 + j2) + 1, 2)
            if j >= j1
        ]

    @property
    def components(self) -> list[tuple[int, int, int]]:
        """Of each component the three functions of which it is made, as places in a list by channel and level."""
        channels = itertools.product(range(self.channels), repeat=3)
        n = self.twojmax + 1
        return [(n * a + j1, n * b + j2, n * c + j) for a, b, c in channels for j1, j2, j in self.triples]

    @property
    def factors(self) -> np.ndarray:
        """1, or j + 1, of each component."""
        return np.tile([1.0 if self.bnormflag else j + 1.0 for _, _, j in self.triples], self.channels**3)

    @property
    def n_coefficients(self) -> int:
        n = len(self.components)
        return 1 + n + (n * (n + 1) // 2 if self.quadraticflag else 0)

    def density(self, near: Surroundings, d: Array, weight: Array) -> Float[Array, "channels_harmonics atoms"]:
        """Coefficients in harmonics of the functions F, channel after channel."""
        rule = self._sphere(d)
        samples = self._samples(near, d, weight)
        parts = [m @ x for sums in samples for m, x in zip(rule.from_samples, sums, strict=True)]
        return jnp.concatenate(parts) + self._own(near, rule.north)

    def _own(self, near: Surroundings, north: np.ndarray) -> Array:
        """What the atom itself adds."""
        counted = np.arange(self.channels)[:, None] == near.own
        if self.wselfallflag or self.channels == 1:
            counted = jnp.ones_like(counted)
        return (counted[:, None] * north[:, None]).reshape(-1, counted.shape[-1])

    def _samples(self, near: Surroundings, d: Array, weight: Array) -> list[list[Array]]:
        """Of each channel the values of Σ_k w_k f(r_k) U_j(q·p_k) for each level j, `(samples, atoms)`."""
        factor, levels = self._of_neighbors(near, d, weight)
        counts = [near.channel == c for c in range(self.channels)] if self.channels > 1 else [True]
        return [[jnp.sum(jnp.where(counted, factor, 0.0) * u, axis=1) for u in levels] for counted in counts]

    def _of_neighbors(self, near: Surroundings, d: Array, weight: Array) -> tuple[Array, list[Array]]:
        """`(w f(r), [U_j(q·p) of each level at the samples q, (samples, capacity, atoms)])`."""
        # Lest sines be computed again at each sample.
        factor, p = fence(self._on_sphere(near, d, weight), near)
        return factor, self._chebyshev(self._at_samples(p))

    def _at_samples(self, p: Any) -> Array:
        """q·p, written out, since a product of matrices this thin is slow."""
        return sum(q[:, None, None] * x for q, x in zip(self._sphere(p).samples.T, p, strict=True))

    def _chebyshev(self, x: Array) -> list[Array]:
        levels = [jnp.ones_like(x), 2.0 * x]
        for _ in range(self.twojmax - 1):
            levels.append(2.0 * x * levels[-1] - levels[-2])
        return levels[: self.twojmax + 1]

    def _on_sphere(self, near: Surroundings, d: Array, weight: Array) -> tuple[Array, Array]:
        """`(w f(r), p)`, p being `(4, capacity, atoms)`."""
        r = jnp.sqrt(jnp.sum(d * d, axis=1))
        share = (r - self.rmin0) / (near.cutoff - self.rmin0)
        theta = self.rfac0 * np.pi * share
        p = jnp.concatenate([jnp.cos(theta)[None], jnp.swapaxes(d, 0, 1) * (jnp.sin(theta) / r)])
        inside = near.inside & (r < near.cutoff)
        factor = jnp.where(inside, weight, 0.0)
        if self.switchflag:
            falling = inside & (share > 0.0)
            factor = factor * jnp.where(falling, 0.5 + 0.5 * jnp.cos(np.pi * jnp.where(falling, share, 0.0)), 1.0)
        if self.switchinnerflag:
            phase = jnp.clip((r - near.middle) / near.half_width, -1.0, 1.0)
            factor = factor * (0.5 + 0.5 * jnp.sin(0.5 * np.pi * phase))
        return factor, p

    def functions(self, density: Array) -> list[Float[Array, "points atoms"]]:
        """F at the points of the quadrature, by channel and level."""
        return [values.T @ density[place] for place, values in self._levels(density)]

    def _sphere(self, values: Any) -> Sphere:
        """Tables in the precision of some values."""
        return sphere(self.twojmax, values.dtype.name)

    def _levels(self, density: Array) -> Iterator[Any]:
        """`(slice of the density, values of its harmonics at the points)`, by channel and level."""
        rule = self._sphere(density)
        n = len(rule.level)
        ends = np.cumsum((np.arange(self.twojmax + 1) + 1) ** 2)
        for c, j in itertools.product(range(self.channels), range(self.twojmax + 1)):
            place = slice(ends[j] - (j + 1) ** 2, ends[j])
            yield slice(place.start + c * n, place.stop + c * n), rule.values[place]

    def components_of(self, near: Surroundings, density: Array) -> Float[Array, "components atoms"]:
        """B of each atom."""
        F, weight = self.functions(density), self._sphere(density).weight[:, None]
        # Products of two serve several.
        pairs = {pair: weight * F[pair[0]] * F[pair[1]] for pair in {triple[:2] for triple in self.components}}
        B = jnp.stack([jnp.sum(pairs[u, v] * F[w], axis=0) for u, v, w in self.components])
        factors: Any = self.factors[:, None].astype(density.dtype)
        B = factors * B
        if not self.bzeroflag:
            return B
        zero = factors
        if self.channels > 1 and not self.wselfallflag:
            n = len(self.triples)
            channel = np.repeat(np.array(list(itertools.product(range(self.channels), repeat=3))), n, axis=0)
            zero = zero * jnp.all(channel[:, :, None] == near.own, axis=1)
        return B - zero

    def energies(self, near: Surroundings, d: Array, weight: Array, coefficients: Array) -> Float[Array, " atoms"]:
        B = self.components_of(near, self.density(near, d, weight))
        return coefficients[0] + jnp.sum(self._slope(B, coefficients, 0.5) * B, axis=0)

    def _slope(self, B: Array, coefficients: Array, share: Any = 1.0) -> Array:
        """Derivatives of the energy in the components, or with `share` = 1/2 the factors of B in the energy."""
        n = len(self.components)
        linear = coefficients[1 : n + 1]
        return linear + share * jnp.sum(self._square(coefficients) * B, axis=1) if self.quadraticflag else linear

    def _square(self, coefficients: Array) -> Float[Array, "components components atoms"]:
        """Second derivatives of the energy in the components."""
        n = len(self.components)
        place = np.zeros((n, n), int)
        place[np.triu_indices(n)] = np.arange(n + 1, self.n_coefficients)
        return coefficients[np.maximum(place, place.T)]

    def slopes(self, near: Surroundings, d: Array, weight: Array, coefficients: Array) -> Float[Array, "capacity dim atoms"]:
        """∂E/∂d."""
        return jax.grad(lambda d: jnp.sum(self.energies(near, d, weight, coefficients)))(d)

    def _moved(self, near: Surroundings, d: Array, weight: Array) -> Float[Array, "atoms capacity_dim channels_harmonics"]:
        """∂ρ/∂d."""
        rule = self._sphere(d)

        def levels(d: Array) -> list[Array]:
            factor, u = self._of_neighbors(near, d, weight)
            return [factor * x for x in u]

        unit = jnp.broadcast_to(jnp.eye(3, dtype=d.dtype)[:, None, :, None], (3, *d.shape))
        moved = jax.vmap(lambda direction: jax.jvp(levels, (d,), (direction,))[1])(unit)
        # (dim, harmonics, capacity, atoms)
        moved = jnp.concatenate([jnp.tensordot(x, m, (1, 1)) for m, x in zip(rule.from_samples, moved, strict=True)], axis=-1)
        moved = jnp.moveaxis(moved, -1, 1)
        counted = [near.channel == c for c in range(self.channels)] if self.channels > 1 else [True]
        moved = jnp.concatenate([jnp.where(some, moved, 0.0) for some in counted], axis=1)
        atoms, capacity = d.shape[2], d.shape[0]
        return jnp.transpose(moved, (3, 2, 0, 1)).reshape(atoms, 3 * capacity, -1)

    def _component_slopes(self, density: Array) -> Float[Array, "components channels_harmonics atoms"]:
        """∂B/∂ρ."""
        F, weight = self.functions(density), self._sphere(density).weight[:, None]
        slopes = []
        for u, (_, values) in enumerate(self._levels(density)):
            # Of each component the other two functions, wherever this one stands.
            others = [
                (k, tuple(sorted(triple[:at] + triple[at + 1 :])))
                for k, triple in enumerate(self.components)
                for at in range(3)
                if triple[at] == u
            ]
            pairs = sorted({pair for _, pair in others})
            products = jnp.stack([weight * F[v] * F[w] for v, w in pairs])
            share = np.zeros((len(self.components), len(pairs)), density.dtype)
            for k, pair in others:
                share[k, pairs.index(pair)] += self.factors[k]
            slopes.append(jnp.tensordot(share, jnp.tensordot(values, products, (1, 1)), (1, 1)))
        return jnp.concatenate(slopes, axis=1)

    def _curvature_in_density(self, density: Array, slope: Any) -> Float[Array, "channels_harmonics channels_harmonics atoms"]:
        """Σ_k slope_k ∂²B_k/∂ρ∂ρ, from the integrals of three harmonics."""
        table, n = triple_integrals(self.twojmax), self.twojmax + 1
        level, integral = self._sphere(density).level, table.integral.astype(density.dtype)
        both = [(a, b) for a in range(n) for b in range(a + 1)]
        third = np.zeros((len(self.components), *(self.channels * n,) * 3), density.dtype)
        for k, triple in enumerate(self.components):
            for u, v, w in itertools.permutations(triple):
                third[k, u, v, w] += self.factors[k]
        rho = density.reshape(self.channels, 1, len(level), -1)
        lower = {}
        for c1, c2 in itertools.product(range(self.channels), repeat=2):
            some = np.stack([third[:, c1 * n + a, c2 * n + b].reshape(-1, self.channels, n) for a, b in both])
            weights = jnp.einsum("pkcj,kn->cpjn", some, slope)
            fields = jnp.sum(weights[:, :, level] * rho, axis=0).reshape(-1, rho.shape[-1])
            pair = [both.index((a, b)) for a, b in zip(level[table.first], level[table.second], strict=True)]
            place = np.array(pair) * len(level) + table.third
            # Pairs with as many integrals together.
            ends = np.flatnonzero(np.diff(table.count, prepend=0, append=0))
            found = [
                sum(m[start:end, None] * fields[at[start:end]] for m, at in zip(integral[:n_terms], place[:n_terms], strict=True))
                for start, end, n_terms in zip(ends[:-1], ends[1:], table.count[ends[:-1]], strict=True)
            ]
            lower[c1, c2] = jnp.concatenate([*found, jnp.zeros_like(fields[:1])])[table.place]
        below = np.tri(len(level), dtype=bool)[:, :, None]
        rows = [
            [lower[c, e] if c == e else jnp.where(below, lower[c, e], lower[e, c]) for e in range(self.channels)]
            for c in range(self.channels)
        ]
        return jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows])

    def _curvatures(self, near: Surroundings, d: Array, weight: Array, coefficients: Array) -> tuple[Any, ...]:
        """`(∂ρ/∂d, ∂²E/∂ρ∂ρ, what the curvature of each neighbour's own place on the sphere adds)`: ∂²E/∂d∂d in factors."""
        density = self.density(near, d, weight)
        B, pull = jax.vjp(lambda rho: self.components_of(near, rho), density)
        slope = self._slope(B, coefficients)
        curvature = self._curvature_in_density(density, slope)
        if self.quadraticflag:
            G = self._component_slopes(density)
            curvature = curvature + jnp.einsum("kan,kln,lbn->abn", G, self._square(coefficients), G)
        return self._moved(near, d, weight), curvature, self._curvature_of_neighbors(near, d, weight, *pull(slope))

    def stiffness(
        self, near: Surroundings, d: Array, weight: Array, coefficients: Array
    ) -> Float[Array, "capacity dim capacity dim atoms"]:
        """∂²E/∂d∂d."""
        moved, curvature, own = self._curvatures(near, d, weight, coefficients)
        capacity, dim, atoms = d.shape
        whole = jnp.einsum("nxa,abn,nyb->nxy", moved, curvature, moved).reshape(atoms, capacity, dim, capacity, dim)
        places = np.arange(capacity)
        return jnp.moveaxis(whole, 0, -1).at[places, :, places].add(jnp.transpose(own, (1, 0, 2, 3)))

    def moved_slopes(
        self, near: Surroundings, d: Array, weight: Array, coefficients: Array, change: Array
    ) -> Float[Array, "capacity dim atoms"]:
        """What a change of d changes in ∂E/∂d: the product with the stiffness, which is not multiplied out."""
        moved, curvature, own = self._curvatures(near, d, weight, coefficients)
        capacity, dim, atoms = d.shape
        by_density = jnp.einsum("nxa,nx->na", moved, jnp.moveaxis(change, -1, 0).reshape(atoms, -1))
        image = jnp.einsum("nxa,na->nx", moved, jnp.einsum("abn,na->nb", curvature, by_density))
        return jnp.moveaxis(image.reshape(atoms, capacity, dim), 0, -1) + jnp.einsum("bkan,kbn->kan", own, change)

    def _curvature_of_neighbors(
        self, near: Surroundings, d: Array, weight: Array, by_density: Any
    ) -> Float[Array, "dim capacity dim atoms"]:
        """Σ_a ∂E/∂ρ_a ∂²ρ_a/∂d∂d of each neighbour: a factor times a function of its place p, taken to second order there."""
        _, p = fence(self._on_sphere(near, d, weight), near)
        x, samples = self._at_samples(p), self._sphere(d).samples
        matrices = self._sphere(d).from_samples * self.channels
        fields = [m.T @ by_density[place] for m, (place, _) in zip(matrices, self._levels(d), strict=True)]
        expansions = []
        for c in range(self.channels):
            of_channel = fields[c * (self.twojmax + 1) : (c + 1) * (self.twojmax + 1)]

            def kernel(x: Array, of_channel: Any = of_channel) -> Array:
                return sum(field[:, None] * u for field, u in zip(of_channel, self._chebyshev(x), strict=True))

            slope = lambda x, kernel=kernel: jax.jvp(kernel, (x,), (jnp.ones_like(x),))  # noqa: E731
            (value, first), (_, second) = jax.jvp(slope, (x,), (jnp.ones_like(x),))
            powers = [np.ones_like(samples[:, 0]), samples, samples[:, :, None] * samples[:, None, :]]
            terms = zip(powers, (value, first, second), strict=True)
            expansions.append([jnp.tensordot(power, term, (0, 0)) for power, term in terms])
        value, first, second = expansions[0]
        for c, others in enumerate(expansions[1:], start=1):
            value, first, second = (
                jnp.where(near.channel == c, b, a) for a, b in zip((value, first, second), others, strict=True)
            )

        def energy(d: Array) -> Array:
            factor, moved = self._on_sphere(near, d, weight)
            moved = moved - p
            curved = 0.5 * jnp.sum(second * moved, axis=1)
            return jnp.sum(factor * (value + jnp.sum(moved * (first + curved), axis=0)))

        unit = jnp.broadcast_to(jnp.eye(3, dtype=d.dtype)[:, None, :, None], (3, *d.shape))
        return jax.vmap(lambda direction: jax.jvp(jax.grad(energy), (d,), (direction,))[1])(unit)

    def coefficient_slopes(
        self, near: Surroundings, d: Array, weight: Array, coefficients: Array, change: Array
    ) -> Float[Array, "capacity dim atoms"]:
        """What a change of the coefficients changes in ∂E/∂d; linear in it, with all else computed once."""
        density = self.density(near, d, weight)
        by_density = self._component_slopes(density)
        by_vector = jnp.einsum("kan,nxa->nkx", by_density, self._moved(near, d, weight))
        B = self.components_of(near, density) if self.quadraticflag else by_density[:, 0]
        slope = self._slope(B, change)
        capacity, dim, atoms = d.shape
        return jnp.moveaxis(jnp.einsum("nkx,kn->nx", by_vector, slope).reshape(atoms, capacity, dim), 0, -1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def energies(form: Bispectrum, near: Surroundings, d: Array, weight: Array, coefficients: Array) -> Float[Array, " atoms"]:
    """Of each atom, from vectors to its neighbours `(capacity, 3, atoms)` [Å], their weights, and coefficients by atom.

    Derivatives are those of `slopes`, and theirs are matrices: many directions cost hardly more than one.
    """
    return form.energies(near, d, weight, coefficients)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def slopes(
    form: Bispectrum, near: Surroundings, d: Array, weight: Array, coefficients: Array
) -> Float[Array, "capacity dim atoms"]:
    """∂E/∂d."""
    return form.slopes(near, d, weight, coefficients)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def work(
    form: Bispectrum, near: Surroundings, d: Array, weight: Array, coefficients: Array, moved: Any
) -> Float[Array, " atoms"]:
    """The change of each atom's energy along a change of d, to first order.

    Its derivatives go through the energy, which for a single direction costs less than those of `slopes`.
    """
    return jnp.sum(slopes(form, near, d, weight, coefficients) * moved, axis=(0, 1))


@functools.partial(energies.defjvp, symbolic_zeros=True)
def _(form: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
    near, d, *parameters = primals
    _, moved, *changes = tangents
    value = energies(form, *primals)
    change: Any = 0.0
    if not _is_zero(moved):
        change = change + work(form, *primals, moved)
    if moving := [k for k, step in enumerate(changes) if not _is_zero(step)]:
        change = change + _along(lambda *p: form.energies(near, d, *p), parameters, changes, moving)
    return value, change


@functools.partial(work.defjvp, symbolic_zeros=True)
def _(form: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
    near, *numbers, moved = primals
    _, *changes, bent = tangents
    value = work(form, *primals)
    change: Any = 0.0
    if not _is_zero(bent):
        change = change + work(form, near, *numbers, bent)
    if moving := [k for k, step in enumerate(changes) if not _is_zero(step)]:
        along = lambda d, *p: jax.jvp(lambda d: form.energies(near, d, *p), (d,), (moved,))[1]  # noqa: E731
        change = change + _along(along, numbers, changes, moving)
    return value, change


@functools.partial(slopes.defjvp, symbolic_zeros=True)
def _(form: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
    near, d, weight, coefficients = primals
    _, moved, by_weight, by_coefficients = tangents
    value, change = slopes(form, *primals), 0.0
    if not _is_zero(moved):
        change = change + form.moved_slopes(*primals, moved)
    if not _is_zero(by_coefficients):
        change = change + form.coefficient_slopes(*primals, by_coefficients)
    if not _is_zero(by_weight):
        change = change + _along(lambda w: form.slopes(near, d, w, coefficients), [weight], [by_weight], [0])
    return value, change


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _along(function: Callable[..., Any], values: Any, changes: Any, moving: Any) -> Any:
    """The change of a function with those arguments that move."""

    def of_moving(*some: Any) -> Any:
        return function(*[some[moving.index(k)] if k in moving else value for k, value in enumerate(values)])

    return jax.jvp(of_moving, [values[k] for k in moving], [changes[k] for k in moving])[1]
