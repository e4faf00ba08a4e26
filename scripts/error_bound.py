"""The error of a derivative along the iterations of a solver, beside its bound: Theorem 1 of Blondel et al. 2021, a posteriori.

    python scripts/error_bound.py [--picture FILE.png]

After every few steps of gradient descent (ridge regression) and of FIRE (a packing of soft spheres), the derivative of the
answer in a parameter is computed implicitly at the iterate, with the a-posteriori bound of `implicit.jacobian_bound`, and
by differentiation through all steps so far. Both are held against the exact derivative.

Exit 1 if an error exceeds its bound, or if at some number of steps the unrolled derivative is the better one.
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from unrolled_vs_implicit import DIAMETERS, FIRE

import mdsens as ms
from mdsens.equilibrium.descent import PROBLEM
from mdsens.files.atomic_write import check_writable, save_picture
from mdsens.implicit import jacobian_bound, root_jvp
from mdsens.mechanics.forces import gradient
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.null_space import known_null_space
from mdsens.plot import COLOURS
from mdsens.structures.packing import random_packing

ONE = jnp.ones(())
ROUNDING = 1e-9
"""Share of the derivative below which an error is rounding, in which nobody wins."""

DISPLACEMENT = 1e-3
"""Random displacement [Å] from which FIRE finds the packing again."""


def ridge():
    """`(condition, exact derivative, iterates, unrolled derivatives, options)` of a regression with 40 features."""
    rng = np.random.default_rng(0)
    X, y, theta = jnp.asarray(rng.normal(size=(200, 40)) / 15.0), jnp.asarray(rng.normal(size=200)), jnp.asarray(0.1)

    def condition(w, theta):
        return X.T @ (X @ w - y) + theta * w

    def descend(theta):
        step = 1.0 / (jnp.linalg.norm(X, 2) ** 2 + 0.1)

        def iterate(w, _):
            w = w - step * condition(w, theta)
            return w, w

        return jax.lax.scan(iterate, jnp.zeros(40), length=200)[1]

    exact = jax.jvp(lambda t: jnp.linalg.solve(X.T @ X + t * jnp.eye(40), X.T @ y), (theta,), (ONE,))[1]
    iterates, unrolled = jax.jit(lambda t: jax.jvp(descend, (t,), (ONE,)))(theta)
    return condition, theta, exact, iterates, unrolled, {"symmetric": True}


def packing():
    """The same of 128 soft spheres that were pushed out of their packing a little; θ is the diameter of the small ones."""
    potential = ms.SoftSphere(diameter=DIAMETERS, epsilon=1.0)
    eq = ms.relax(random_packing(128, DIAMETERS, seed=0), potential, fmax=1e-12)
    exact = ms.sensitivity(eq, wrt=["diameter.B"]).positions.diameter["B"]
    reference = eqx.tree_at(lambda f: f.system, eq.reference, eq.system.with_neighbors(potential, skin=0.5))
    theta = potential.diameter["B"]
    start = eq.system.positions + DISPLACEMENT * jax.random.normal(jax.random.key(0), (128, 2))

    def data(theta):
        return Landscape(reference, eqx.tree_at(lambda p: p.diameter["B"], potential, theta))

    def descend(theta):
        def step(state, _):
            state = FIRE.step(PROBLEM, state, data(theta))
            return state, state.z

        return jax.lax.scan(step, FIRE.init(PROBLEM, start, data(theta)), length=700)[1]

    iterates, unrolled = jax.jit(lambda t: jax.jvp(descend, (t,), (ONE,)))(theta)
    null_space = known_null_space(eq.system.positions, eq.reference, eq.spectrum.rattlers)
    condition = lambda x, theta: gradient(x, data(theta))  # noqa: E731
    return condition, theta, exact, iterates, unrolled, {"symmetric": True, "null_space": null_space}


def along(condition, theta, exact, iterates, unrolled, options, every: int) -> dict[str, np.ndarray]:
    """Errors and bounds, relative to the size of the exact derivative, after every so many steps."""
    solve = eqx.filter_jit(lambda z: root_jvp(condition, z, (theta,), (ONE,), throw=False, **options)[0])
    size = float(jnp.linalg.norm(exact))
    found = {"steps": [], "implicit": [], "bound": [], "unrolled": []}
    for k in range(every - 1, len(iterates), every):
        dz = solve(iterates[k])
        bound = jacobian_bound(condition, iterates[k], (theta,), (ONE,), dz, **options)
        found["steps"].append(k + 1)
        found["implicit"].append(float(jnp.linalg.norm(dz - exact)) / size)
        found["bound"].append(bound.error / size)
        found["unrolled"].append(float(jnp.linalg.norm(unrolled[k] - exact)) / size)
    return {name: np.array(values) for name, values in found.items()}


def faults(found) -> dict[str, int]:
    """How often the theorem or the claim fails."""
    noticed = found["unrolled"] > ROUNDING
    return {
        "error above its bound": int((found["implicit"] > found["bound"]).sum()),
        "unrolled the better one": int(((found["implicit"] > found["unrolled"]) & noticed).sum()),
    }


def report(name, found):
    print(f"\n{name}: errors as a share of the derivative")
    print(f"{'steps':>7} {'implicit':>11} {'its bound':>11} {'unrolled':>11}")
    shown = range(0, len(found["steps"]), max(1, len(found["steps"]) // 15))
    for k in shown:
        print(f"{found['steps'][k]:7d} {found['implicit'][k]:11.1e} {found['bound'][k]:11.1e} {found['unrolled'][k]:11.1e}")
    print(", ".join(f"{fault}: {count} of {len(found['steps'])}" for fault, count in faults(found).items()))


def draw(ax, name, found):
    ax.semilogy(found["steps"], found["unrolled"], color=COLOURS[1], label="through the unrolled solver")
    given = np.isfinite(found["bound"])
    ax.semilogy(found["steps"][given], found["bound"][given], color="0.75", linewidth=4, label="bound on the implicit one")
    ax.semilogy(found["steps"], found["implicit"], color=COLOURS[0], label="implicit, at the iterate")
    if not given.all():
        ax.axvspan(0, found["steps"][given][0], color="0.93", zorder=0, label="too far off: no bound is given")
    ax.set_title(name)
    ax.set_xlabel("steps of the solver")
    ax.set_ylabel("error, as a share of the derivative")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="draw it into this PNG file, which is replaced")
    options = parser.parse_args()
    if options.picture is not None:
        check_writable(options.picture, overwrite=True)
    results = {
        "Ridge regression, gradient descent": along(*ridge(), every=5),
        "Packing of 128 soft spheres, FIRE": along(*packing(), every=10),
    }
    for name, found in results.items():
        report(name, found)
    if options.picture is not None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
        for ax, (name, found) in zip(axes, results.items(), strict=True):
            draw(ax, name, found)
        save_picture(axes[0], options.picture, overwrite=True)
    return int(any(sum(faults(found).values()) for found in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
