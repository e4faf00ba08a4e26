"""SNAP's energies of atoms from the vectors to their neighbours, atoms last, and their derivatives.

LAMMPS's bispectrum component of the levels j1, j2, j, products of matrices u with Clebsch-Gordan coefficients, is an integral

    B_{j1 j2 j} = (j + 1) ⟨F_j1 F_j2 F_j⟩,  F_j(q) = U_j(q_0) + Σ_k w_k f(r_k) U_j(q·p_k)

over the unit sphere in four dimensions, p_k being where the neighbour k lies on it and U_j a Chebyshev polynomial: F_j is the
function whose coefficients in the matrices u are those of LAMMPS. A quadrature takes it exactly, with few operations.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from mdsens.potentials.forms.neighbor_vectors import with_derivatives
from mdsens.potentials.learned.hypersphere import Sphere, sphere, triple_integrals
from mdsens.structures.neighbors.sums_over_neighbors import fence


class Surroundings(NamedTuple):
    """Data of atoms and their neighbours beside the vectors between them.

    Attributes:
        inside: which places hold a neighbour.
        cutoff: cutoff of each pair [Å].
        channel, own: in which of the functions F a neighbour counts, and the atom itself.
        middle, half_width: where the switch at short distances is, and how wide [Å].
    """

    inside: Bool[Array, "capacity atoms"]
    cutoff: Float[Array, "capacity atoms"]
    channel: Int[Array, "capacity atoms"]
    own: Int[Array, " atoms"]
    middle: Float[Array, "capacity atoms"]
    half_width: Float[Array, "capacity atoms"]

    @property
    def alive(self) -> Array:
        """A number of which compilers do not know that it is never negative."""
        return self.own[0]


class Sites(NamedTuple):
    """The numbers that the energies of atoms are made of.

    Attributes:
        d: vectors to the neighbours `(capacity, 3, atoms)` [Å].
        weight: weights of the neighbours `(capacity, atoms)`.
        coefficients: `(coefficients, atoms)` [eV].
    """

    near: Surroundings
    d: Array
    weight: Array
    coefficients: Array


@dataclasses.dataclass(frozen=True)
class Bispectrum:
    """Settings by LAMMPS's names, and the energies that they define; `channels` is how many elements are told apart."""

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
        """The levels j1, j2, j of the components, in LAMMPS's order."""
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
        """The three functions of which each component is made, as places in a list by channel and level."""
        channels = itertools.product(range(self.channels), repeat=3)
        n = self.twojmax + 1
        return [(n * a + j1, n * b + j2, n * c + j) for a, b, c in channels for j1, j2, j in self.triples]

    @property
    def factors(self) -> np.ndarray:
        """The factor of each component, 1 or j + 1."""
        return np.tile([1.0 if self.bnormflag else j + 1.0 for _, _, j in self.triples], self.channels**3)

    @property
    def n_coefficients(self) -> int:
        """The number of coefficients of an element."""
        n = len(self.components)
        return 1 + n + (n * (n + 1) // 2 if self.quadraticflag else 0)

    def density(self, sites: Sites) -> Float[Array, "channels_harmonics atoms"]:
        """Return the coefficients in harmonics of the functions F, channel after channel."""
        rule = self._sphere(sites.d)
        samples = self._samples(sites)
        parts = [m @ x for sums in samples for m, x in zip(rule.from_samples, sums, strict=True)]
        return jnp.concatenate(parts) + self._self_density(sites.near, rule.north)

    def _self_density(self, near: Surroundings, north: np.ndarray) -> Array:
        """Return what the atom itself adds to the density."""
        counted = np.arange(self.channels)[:, None] == near.own
        if self.wselfallflag or self.channels == 1:
            counted = jnp.ones_like(counted)
        return (counted[:, None] * north[:, None]).reshape(-1, counted.shape[-1])

    def _samples(self, sites: Sites) -> list[list[Array]]:
        """Return for each channel Σ_k w_k f(r_k) U_j(q·p_k) of each level j, `(samples, atoms)`."""
        factor, levels = self._neighbor_terms(sites)
        counts = [sites.near.channel == c for c in range(self.channels)] if self.channels > 1 else [True]
        return [[jnp.sum(jnp.where(counted, factor, 0.0) * u, axis=1) for u in levels] for counted in counts]

    def _neighbor_terms(self, sites: Sites) -> tuple[Array, list[Array]]:
        """Return `(w f(r), [U_j(q·p) of each level at the samples q, (samples, capacity, atoms)])`."""
        # Lest sines be computed again at each sample.
        factor, p = fence(self._on_sphere(sites), sites.near)
        return factor, self._chebyshev(self._products_with_samples(p))

    def _products_with_samples(self, p: Any) -> Array:
        """Return q·p, written out, since a product of matrices this thin is slow."""
        return sum(q[:, None, None] * x for q, x in zip(self._sphere(p).samples.T, p, strict=True))

    def _chebyshev(self, x: Array) -> list[Array]:
        levels = [jnp.ones_like(x), 2.0 * x]
        for _ in range(self.twojmax - 1):
            levels.append(2.0 * x * levels[-1] - levels[-2])
        return levels[: self.twojmax + 1]

    def _on_sphere(self, sites: Sites) -> tuple[Array, Array]:
        """Return `(w f(r), p)`, p being `(4, capacity, atoms)`."""
        near, d, weight, _ = sites
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
        """Return F at the points of the quadrature, by channel and level."""
        return [values.T @ density[place] for place, values in self._levels(density)]

    def _sphere(self, values: Any) -> Sphere:
        """Return the tables in the precision of some values."""
        return sphere(self.twojmax, values.dtype.name)

    def _levels(self, density: Array) -> Iterator[Any]:
        """Yield `(slice of the density, values of its harmonics at the points)` by channel and level."""
        rule = self._sphere(density)
        n = len(rule.level)
        ends = np.cumsum((np.arange(self.twojmax + 1) + 1) ** 2)
        for c, j in itertools.product(range(self.channels), range(self.twojmax + 1)):
            place = slice(ends[j] - (j + 1) ** 2, ends[j])
            yield slice(place.start + c * n, place.stop + c * n), rule.values[place]

    def component_values(self, near: Surroundings, density: Array) -> Float[Array, "components atoms"]:
        """Return the components B of each atom."""
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

    def energies(self, sites: Sites) -> Float[Array, " atoms"]:
        """Return E of each atom [eV]."""
        B = self.component_values(sites.near, self.density(sites))
        return sites.coefficients[0] + jnp.sum(self._energy_slope(B, sites.coefficients, 0.5) * B, axis=0)

    def _energy_slope(self, B: Array, coefficients: Array, share: Any = 1.0) -> Array:
        """Return the derivatives of the energy in the components, or with `share` = 1/2 the factors of B in the energy."""
        n = len(self.components)
        linear = coefficients[1 : n + 1]
        return linear + share * jnp.sum(self._energy_curvature(coefficients) * B, axis=1) if self.quadraticflag else linear

    def _energy_curvature(self, coefficients: Array) -> Float[Array, "components components atoms"]:
        """Return the second derivatives of the energy in the components."""
        n = len(self.components)
        place = np.zeros((n, n), int)
        place[np.triu_indices(n)] = np.arange(n + 1, self.n_coefficients)
        return coefficients[np.maximum(place, place.T)]

    def slopes(self, sites: Sites) -> Float[Array, "capacity dim atoms"]:
        """Return ∂E/∂d."""
        return jax.grad(lambda d: jnp.sum(self.energies(sites._replace(d=d))))(sites.d)

    def _density_slopes(self, sites: Sites) -> Float[Array, "atoms capacity_dim harmonics"]:
        """Return ∂ρ/∂d, harmonics channel after channel."""
        near, d, *_ = sites
        rule = self._sphere(d)

        def levels(d: Array) -> list[Array]:
            factor, u = self._neighbor_terms(sites._replace(d=d))
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
        """Return ∂B/∂ρ."""
        F, weight = self.functions(density), self._sphere(density).weight[:, None]
        slopes = []
        for u, (_, values) in enumerate(self._levels(density)):
            # The other two functions of each component, wherever this one stands.
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

    def _density_curvature(self, density: Array, slope: Any) -> Float[Array, "channels_harmonics channels_harmonics atoms"]:
        """Return Σ_k slope_k ∂²B_k/∂ρ∂ρ, from the integrals of three harmonics."""
        table, n = triple_integrals(self.twojmax), self.twojmax + 1
        level, integral = self._sphere(density).level, table.integral.astype(density.dtype)
        pairs = [(a, b) for a in range(n) for b in range(a + 1)]
        third = np.zeros((len(self.components), *(self.channels * n,) * 3), density.dtype)
        for k, triple in enumerate(self.components):
            for u, v, w in itertools.permutations(triple):
                third[k, u, v, w] += self.factors[k]
        rho = density.reshape(self.channels, 1, len(level), -1)
        lower = {}
        for c1, c2 in itertools.product(range(self.channels), repeat=2):
            some = np.stack([third[:, c1 * n + a, c2 * n + b].reshape(-1, self.channels, n) for a, b in pairs])
            weights = jnp.einsum("pkcj,kn->cpjn", some, slope)
            fields = jnp.sum(weights[:, :, level] * rho, axis=0).reshape(-1, rho.shape[-1])
            pair = [pairs.index((a, b)) for a, b in zip(level[table.first], level[table.second], strict=True)]
            place = np.array(pair) * len(level) + table.third
            # Pairs with the same number of integrals together.
            ends = np.flatnonzero(np.diff(table.count, prepend=0, append=0))
            sums = [
                sum(m[start:end, None] * fields[at[start:end]] for m, at in zip(integral[:n_terms], place[:n_terms], strict=True))
                for start, end, n_terms in zip(ends[:-1], ends[1:], table.count[ends[:-1]], strict=True)
            ]
            lower[c1, c2] = jnp.concatenate([*sums, jnp.zeros_like(fields[:1])])[table.place]
        below = np.tri(len(level), dtype=bool)[:, :, None]
        rows = [
            [lower[c, e] if c == e else jnp.where(below, lower[c, e], lower[e, c]) for e in range(self.channels)]
            for c in range(self.channels)
        ]
        return jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows])

    def _curvatures(self, sites: Sites) -> tuple[Any, ...]:
        """Return ∂²E/∂d∂d in factors: `(∂ρ/∂d, ∂²E/∂ρ∂ρ, what the curvature of each neighbour's place on the sphere adds)`."""
        density = self.density(sites)
        B, pull = jax.vjp(lambda rho: self.component_values(sites.near, rho), density)
        slope = self._energy_slope(B, sites.coefficients)
        curvature = self._density_curvature(density, slope)
        if self.quadraticflag:
            G = self._component_slopes(density)
            curvature = curvature + jnp.einsum("kan,kln,lbn->abn", G, self._energy_curvature(sites.coefficients), G)
        return self._density_slopes(sites), curvature, self._neighbor_curvature(sites, *pull(slope))

    def stiffness(self, sites: Sites) -> Float[Array, "capacity dim capacity dim atoms"]:
        """Return ∂²E/∂d∂d."""
        moved, curvature, own = self._curvatures(sites)
        capacity, dim, atoms = sites.d.shape
        whole = jnp.einsum("nxa,abn,nyb->nxy", moved, curvature, moved).reshape(atoms, capacity, dim, capacity, dim)
        places = np.arange(capacity)
        return jnp.moveaxis(whole, 0, -1).at[places, :, places].add(jnp.transpose(own, (1, 0, 2, 3)))

    def stiffness_product(self, sites: Sites, change: Array) -> Float[Array, "capacity dim atoms"]:
        """Return the stiffness times a change of d, without multiplying the stiffness out."""
        moved, curvature, own = self._curvatures(sites)
        capacity, dim, atoms = sites.d.shape
        by_density = jnp.einsum("nxa,nx->na", moved, jnp.moveaxis(change, -1, 0).reshape(atoms, -1))
        image = jnp.einsum("nxa,na->nx", moved, jnp.einsum("abn,na->nb", curvature, by_density))
        return jnp.moveaxis(image.reshape(atoms, capacity, dim), 0, -1) + jnp.einsum("bkan,kbn->kan", own, change)

    def _neighbor_curvature(self, sites: Sites, by_density: Any) -> Float[Array, "dim capacity dim atoms"]:
        """Return Σ_a ∂E/∂ρ_a ∂²ρ_a/∂d∂d of each neighbour.

        Its energy is a factor times a function of its place p, taken to second order there.
        """
        near, d, *_ = sites
        _, p = fence(self._on_sphere(sites), near)
        x, samples = self._products_with_samples(p), self._sphere(d).samples
        matrices = self._sphere(d).from_samples * self.channels
        fields = [m.T @ by_density[place] for m, (place, _) in zip(matrices, self._levels(d), strict=True)]
        expansions = []
        for c in range(self.channels):
            of_channel = fields[c * (self.twojmax + 1) : (c + 1) * (self.twojmax + 1)]

            def kernel(x: Array, of_channel: Any = of_channel) -> Array:
                return sum(field[:, None] * u for field, u in zip(of_channel, self._chebyshev(x), strict=True))

            powers = [np.ones_like(samples[:, 0]), samples, samples[:, :, None] * samples[:, None, :]]
            terms = zip(powers, with_derivatives(kernel)(x), strict=True)
            expansions.append([jnp.tensordot(power, term, (0, 0)) for power, term in terms])
        value, first, second = expansions[0]
        for c, others in enumerate(expansions[1:], start=1):
            value, first, second = (
                jnp.where(near.channel == c, b, a) for a, b in zip((value, first, second), others, strict=True)
            )

        def energy(d: Array) -> Array:
            factor, moved = self._on_sphere(sites._replace(d=d))
            moved = moved - p
            curved = 0.5 * jnp.sum(second * moved, axis=1)
            return jnp.sum(factor * (value + jnp.sum(moved * (first + curved), axis=0)))

        unit = jnp.broadcast_to(jnp.eye(3, dtype=d.dtype)[:, None, :, None], (3, *d.shape))
        return jax.vmap(lambda direction: jax.jvp(jax.grad(energy), (d,), (direction,))[1])(unit)

    def coefficient_slopes(self, sites: Sites, change: Array) -> Float[Array, "capacity dim atoms"]:
        """Return the change of ∂E/∂d by a change of the coefficients; linear in it, with all else computed once."""
        density = self.density(sites)
        by_density = self._component_slopes(density)
        by_vector = jnp.einsum("kan,nxa->nkx", by_density, self._density_slopes(sites))
        B = self.component_values(sites.near, density) if self.quadraticflag else by_density[:, 0]
        slope = self._energy_slope(B, change)
        capacity, dim, atoms = sites.d.shape
        return jnp.moveaxis(jnp.einsum("nkx,kn->nx", by_vector, slope).reshape(atoms, capacity, dim), 0, -1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def energies(form: Bispectrum, sites: Sites) -> Float[Array, " atoms"]:
    """Return E of each atom [eV].

    It is differentiated by `slopes`, and these by matrices: many directions cost hardly more than one.
    """
    return form.energies(sites)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def slopes(form: Bispectrum, sites: Sites) -> Float[Array, "capacity dim atoms"]:
    """Return ∂E/∂d."""
    return form.slopes(sites)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def work(form: Bispectrum, sites: Sites, moved: Array) -> Float[Array, " atoms"]:
    """Return the change of each atom's energy along a change of d, to first order.

    Its derivatives go through the energy, which for a single direction costs less than those of `slopes`.
    """
    return jnp.sum(slopes(form, sites) * moved, axis=(0, 1))


@functools.partial(energies.defjvp, symbolic_zeros=True)
def _energies_jvp(form: Bispectrum, primals: Any, tangents: Any) -> tuple[Any, Any]:
    ((near, d, *parameters),), ((_, moved, *changes),) = primals, tangents
    value = energies(form, *primals)
    change: Any = 0.0
    if not _is_zero(moved):
        change = change + work(form, *primals, moved)
    if moving := [k for k, step in enumerate(changes) if not _is_zero(step)]:
        change = change + _partial_jvp(lambda *p: form.energies(Sites(near, d, *p)), parameters, changes, moving)
    return value, change


@functools.partial(work.defjvp, symbolic_zeros=True)
def _work_jvp(form: Bispectrum, primals: Any, tangents: Any) -> tuple[Any, Any]:
    sites, moved = primals
    (_, *changes), bent = tangents
    value = work(form, *primals)
    change: Any = 0.0
    if not _is_zero(bent):
        change = change + work(form, sites, bent)
    if moving := [k for k, step in enumerate(changes) if not _is_zero(step)]:
        along = lambda d, *p: jax.jvp(lambda d: form.energies(Sites(sites.near, d, *p)), (d,), (moved,))[1]  # noqa: E731
        change = change + _partial_jvp(along, sites[1:], changes, moving)
    return value, change


@functools.partial(slopes.defjvp, symbolic_zeros=True)
def _slopes_jvp(form: Bispectrum, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (sites,), ((_, moved, by_weight, by_coefficients),) = primals, tangents
    value = slopes(form, sites)
    change: Any = 0.0
    if not _is_zero(moved):
        change = change + form.stiffness_product(sites, moved)
    if not _is_zero(by_coefficients):
        change = change + form.coefficient_slopes(sites, by_coefficients)
    if not _is_zero(by_weight):
        change = change + jax.jvp(lambda w: form.slopes(sites._replace(weight=w)), (sites.weight,), (by_weight,))[1]
    return value, change


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _partial_jvp(function: Callable[..., Any], values: Sequence[Any], changes: Sequence[Any], moving: list[int]) -> Any:
    """Return the change of a function with those arguments that move."""

    def of_moving(*some: Any) -> Any:
        return function(*[some[moving.index(k)] if k in moving else value for k, value in enumerate(values)])

    return jax.jvp(of_moving, [values[k] for k in moving], [changes[k] for k in moving])[1]
