"""One tangent ∂x*/∂θ of the packing of Blondel et al. 2021: what jaxopt, lineax and mdsens need for it, in one process.

    python scripts/bench/implicit_vs_jaxopt.py [-n 128 4096] [--seconds 20]

All differentiate the same condition F, the forces of mdsens's soft spheres on the equilibrium's list of neighbours, at the
same state, and are asked for a relative residual of 1e-10; the residual that they reach is recomputed. jaxopt's best is its CG on
F linearised once, which a user of its `linear_solve` writes in three lines. One more row has jaxopt on jax-md's own energy, as
the paper ran it. lineax's solves are those of optimistix's `ImplicitAdjoint`. mdsens
linearises F like the others, or stores the stiffness of each pair, or has the factors of the Hessian too that an equilibrium
keeps from the look at its curvatures, as `ms.sensitivity` does it. What those factors cost `relax` is printed below the table.

Below each table stand the ratios of our public call, `ms.jvp`, and of our fastest solve to jaxopt's best and to its default.
Exit 1 if the fastest solve is less than 20 times faster than jaxopt's default at N = 128, or 300 times at N = 4096. Needs the
extra `bench`.
"""

import argparse
import functools
import importlib.metadata
import os
import platform
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxopt import implicit_diff, linear_solve

import mdsens as ms
from mdsens.implicit import CG, root_jvp
from mdsens.mechanics.forces import gradient
from mdsens.mechanics.hessian import hessian_at
from mdsens.mechanics.hessian_operator import hessian_operator
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.null_space import known_null_space
from mdsens.structures.packing import random_packing

FLOORS = {128: 20.0, 4096: 300.0}
RTOL = 1e-10
REPETITIONS = 200
"""Of each, at most; fewer where they take too long."""

SMALL = 512
"""Particles up to which all pairs and dense matrices take part."""

DIAMETERS = {"A": 1.0, "B": 0.6}
THETA, ONE = jnp.asarray(DIAMETERS["B"]), jnp.asarray(1.0)
JAXOPT = "jaxopt solve_normal_cg (its default)"
OURS = "mdsens root_jvp, the equilibrium's factors"
PUBLIC = "mdsens ms.jvp(eq, direction)"


def condition(eq, function=gradient):
    """F(x, θ), the gradient of the energy, with θ the diameter of the small spheres; or another function of the same."""
    reference = eq.reference
    return lambda x, theta: function(x, Landscape(reference, eqx.tree_at(lambda p: p.diameter["B"], eq.potential, theta)))


def factorised(eq):
    """The operator of `ms.sensitivity`."""
    hessian = eq.hessian
    return lambda x, theta: hessian.product_at(x, eqx.tree_at(lambda p: p.diameter["B"], eq.potential, theta))


def jaxmd_condition(eq):
    """The same made of jax-md's parts: all pairs, nearest images."""
    from jax_md import energy, space

    displacement, _ = space.periodic(eq.system.cell[0, 0])

    def total(x, theta):
        mixed = 0.5 * (1.0 + theta)
        sigma = jnp.array([[1.0, mixed], [mixed, theta]])
        return energy.soft_sphere_pair(displacement, species=eq.system.species, sigma=sigma)(x)

    return jax.grad(total)


def by_jaxopt(F, solve):
    solve = functools.partial(solve, tol=RTOL, maxiter=100_000)
    return lambda x: implicit_diff.root_jvp(F, x, (THETA,), (ONE,), solve=solve)


def by_jaxopt_linearised(F):
    def tangent(x):
        product = jax.linearize(lambda x: F(x, THETA), x)[1]
        b = -jax.jvp(lambda theta: F(x, theta), (THETA,), (ONE,))[1]
        return linear_solve.solve_cg(product, b, tol=RTOL, maxiter=100_000)

    return tangent


def by_lineax(F, solver, *tags):
    def tangent(x):
        operator = lx.JacobianLinearOperator(lambda x, _: F(x, THETA), x, tags=tags)
        b = -jax.jvp(lambda theta: F(x, theta), (THETA,), (ONE,))[1]
        return lx.linear_solve(operator, b, solver, throw=False).value

    return tangent


def by_mdsens(F, null, solver, operator=None):
    # jaxopt does not look whether an operator is what it was said to be, so neither do we here; `ms.jvp` has looked before.
    options = {"symmetric": True, "null_space": null, "project": True, "probe": False}
    options |= {"linear_solver": solver, "operator": operator}
    return lambda x: root_jvp(F, x, (THETA,), (ONE,), **options)[0]


def contestants(eq) -> dict:
    """Functions of x alone, by name."""
    F = condition(eq)
    null = known_null_space(eq.system.positions, eq.reference, eq.spectrum.rattlers)
    found = {
        JAXOPT: by_jaxopt(F, linear_solve.solve_normal_cg),
        "jaxopt solve_bicgstab (the paper's)": by_jaxopt(F, linear_solve.solve_bicgstab),
        "jaxopt solve_cg": by_jaxopt(F, linear_solve.solve_cg),
        "jaxopt solve_cg, F linearised once": by_jaxopt_linearised(F),
        "lineax CG": by_lineax(F, lx.CG(rtol=RTOL, atol=RTOL, max_steps=100_000), lx.positive_semidefinite_tag),
        OURS: by_mdsens(F, null, CG(rtol=RTOL), factorised(eq)),
        "mdsens root_jvp, stored stiffness": by_mdsens(F, null, CG(rtol=RTOL), condition(eq, hessian_operator)),
        "mdsens root_jvp, linearised": by_mdsens(F, null, CG(rtol=RTOL)),
    }
    if len(eq.system) <= SMALL:
        of_jaxmd = jaxmd_condition(eq)
        found[f"jax-md energy, {JAXOPT}"] = by_jaxopt(of_jaxmd, linear_solve.solve_normal_cg)
        found["jax-md energy, jaxopt solve_bicgstab"] = by_jaxopt(of_jaxmd, linear_solve.solve_bicgstab)
        found["lineax dense (optimistix's default)"] = by_lineax(F, lx.AutoLinearSolver(well_posed=None))
    return found


def compiled(function, x):
    began = time.perf_counter()
    program = jax.jit(function).lower(x).compile()
    return program, time.perf_counter() - began


def through_the_front_door(eq):
    """`ms.jvp` with all that it checks; its first call compiles."""
    direction = eqx.tree_at(lambda p: p.diameter["B"], jax.tree.map(jnp.zeros_like, eq.potential), ONE)

    def call(_):
        return ms.jvp(eq, direction)

    began = time.perf_counter()
    jax.block_until_ready(call(None))
    return call, time.perf_counter() - began


def measure(programs: dict, x, seconds: float) -> dict[str, list[float]]:
    """Times of calls in turn [s], until all are called often enough or the time is over."""
    times = {name: [] for name in programs}
    for program in programs.values():  # a warm-up
        jax.block_until_ready(program(x))
    over = time.perf_counter() + seconds
    while len(times[OURS]) < REPETITIONS and (time.perf_counter() < over or len(times[OURS]) < 3):
        for name, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(x))
            times[name].append(time.perf_counter() - began)
    return times


def residual(F, x, dx) -> float:
    b = -jax.jvp(lambda theta: F(x, theta), (THETA,), (ONE,))[1]
    return float(jnp.linalg.norm(jax.jvp(lambda x: F(x, THETA), (x,), (dx,))[1] - b) / jnp.linalg.norm(b))


def compare(n: int, seconds: float) -> float:
    """Print the table for n particles; how many times faster than jaxopt's default we are."""
    system = random_packing(n, DIAMETERS, packing_fraction=1.0, seed=0)
    eq = ms.relax(system, ms.SoftSphere(diameter=DIAMETERS, epsilon=1.0), fmax=1e-12)
    x, F = eq.system.positions, condition(eq)
    built = {name: compiled(function, x) for name, function in contestants(eq).items()}
    built[PUBLIC] = through_the_front_door(eq)
    programs = {name: program for name, (program, _) in built.items()}
    times = measure(programs, x, seconds)
    medians = {name: statistics.median(found) for name, found in times.items()}

    print(f"\nN = {n}: {len(times[OURS])} calls each, in turn; lowest curvature {eq.spectrum.lowest:.2e}, fmax {eq.fmax:.0e}")
    print(f"  {'':52} {'compile [s]':>11} {'median [ms]':>12} {'fastest':>9} {'|Au-b|/|b|':>11} {'× mdsens':>9}")
    for name, median in sorted(medians.items(), key=lambda item: -item[1]):
        reached = residual(F, x, programs[name](x))
        row = f"  {name:52} {built[name][1]:11.2f} {1e3 * median:12.3f} {1e3 * min(times[name]):9.3f} {reached:11.1e}"
        print(f"{row} {median / medians[OURS]:9.1f}")
    reference = eq.reference
    for _ in range(2):
        began = time.perf_counter()
        hessian_at(eq.unknown_in(reference), reference, eq.potential)
        looked = time.perf_counter() - began
    print(f"  the look at curvatures, in which {eq.hessian.factor.description} is made, takes relax {1e3 * looked:.1f} ms, once")
    for ours in (PUBLIC, OURS):
        best = min((name for name in medians if name.startswith("jaxopt")), key=medians.__getitem__)
        ratios = ", ".join(f"{medians[peer] / medians[ours]:.3g} of {peer}" for peer in (best, JAXOPT))
        print(f"  times as fast as jaxopt, {ours}: {ratios}")
    return medians[JAXOPT] / medians[OURS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, nargs="+", default=[128], help="numbers of particles (128)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for the calls of a size (20)")
    options = parser.parse_args()
    names = ("jax", "jaxlib", "jaxopt", "optimistix", "lineax", "jax-md", "mdsens")
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    )
    ratios = {n: compare(n, options.seconds) for n in options.n}
    return int(any(ratio < FLOORS.get(n, 0.0) for n, ratio in ratios.items()))


if __name__ == "__main__":
    raise SystemExit(main())
