"""Differentiation through the unrolled solver against implicit differentiation, as in Blondel et al. 2021, section 4.4.

    python scripts/unrolled_vs_implicit.py [--seeds 40] [--output DIR] [--picture FILE.png]

From each random start 128 soft spheres (2-D, diameters 1 and θ = 0.6, packing fraction 1.0) are relaxed by FIRE to forces
of 1e-12, and ∂x*/∂θ is computed twice: in forward mode through all steps of FIRE, and implicitly. Both are also computed
on the way, where FIRE would have stopped with a looser tolerance, and held against the packing's own sensitivity.

One HDF5 file a seed, written whole or not at all; a rerun computes only what is missing.
"""

import argparse
import io
from pathlib import Path

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import mdsens as ms
from mdsens.equilibrium.descent import PROBLEM
from mdsens.files.atomic_write import check_writable, save_picture, write_whole
from mdsens.implicit import CG, root_jvp
from mdsens.mechanics.forces import gradient
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.null_space import null_space
from mdsens.mechanics.unknown import Reference, reference_at
from mdsens.plot import COLOURS
from mdsens.structures.packing import random_packing

DIAMETERS = {"A": 1.0, "B": 0.6}
FIRE = ms.FIRE(max_step=None)  # the same as jax-md's fire_descent, step by step
STEPS = 1500
"""Steps of FIRE that are differentiated; the slowest of the 40 packings needs 1148."""

SKIN = 6.0
"""Skin of the one list that serves the whole descent, in which no particle may move by more than half of it (most: 2.6)."""

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10, 1e-12)
"""Largest forces at which FIRE may stop; the last is the packing's."""

LOOSE = TOLERANCES.index(1e-4)
NO_DIGIT = 1.0
"""Deviation Σ|dx - dx*| / Σ|dx*| from the packing's sensitivity dx* beyond which a derivative says nothing."""


@eqx.filter_jit
def along_the_descent(start: Reference, potential, direction):
    """FIRE from a start: `(positions, unrolled derivative, largest force, whether the list is stale)` after each step."""

    def descend(potential):
        data = Landscape(start, potential)

        def step(state, _):
            state = FIRE.step(PROBLEM, state, data)
            return state, (state.z, PROBLEM.norm(state.residual), PROBLEM.is_stale(state.z, data))

        _, (positions, fmax, stale) = jax.lax.scan(step, FIRE.init(PROBLEM, start.system.positions, data), length=STEPS)
        return positions, (fmax, stale)

    positions, derivative, (fmax, stale) = jax.jvp(descend, (potential,), (direction,), has_aux=True)
    return positions, derivative, fmax, stale


@eqx.filter_jit
def implicit(positions, reference: Reference, potential, direction):
    """The implicit derivative at each of some states; NaN where the Hessian is not positive, so that there is none."""

    def condition(x, potential):
        return gradient(x, Landscape(reference, potential))

    def one(x):
        options = {
            "symmetric": True,
            "null_space": null_space(x, Landscape(reference, potential)),
            "linear_solver": CG(rtol=1e-10, max_steps=1000),
        }
        return root_jvp(condition, x, (potential,), (direction,), **options)[0]

    return jax.lax.map(one, positions)


def unit(seed: int) -> dict[str, np.ndarray]:
    """All about one seed.

    Raises:
        ConvergenceError: the descent is too long for `STEPS`, too wide for `SKIN`, or ends in another packing than `relax`.
    """
    potential = ms.SoftSphere(diameter=DIAMETERS, epsilon=1.0)
    direction = eqx.tree_at(lambda p: p.diameter["B"], jax.tree.map(jnp.zeros_like, potential), jnp.ones(()))
    system = random_packing(128, DIAMETERS, packing_fraction=1.0, seed=seed)
    eq = ms.relax(system, potential, solver=FIRE, polish=False, fmax=TOLERANCES[-1])
    packing = np.asarray(ms.sensitivity(eq, wrt=["diameter.B"]).positions.diameter["B"])

    listed = system.with_neighbors(potential, skin=SKIN)
    reference = reference_at(listed)
    positions, unrolled, fmax, stale = along_the_descent(reference, potential, direction)
    stops = np.array([np.argmax(np.asarray(fmax) <= tolerance) for tolerance in TOLERANCES])
    last = stops[-1]
    if fmax[last] > TOLERANCES[-1] or stale[: last + 1].any() or np.abs(positions[last] - eq.system.positions).max() > 1e-9:
        raise ms.ConvergenceError(f"The descent of seed {seed} did not end where relax does: raise STEPS or SKIN.")
    return {
        "steps": stops + 1,
        "fmax": np.asarray(fmax)[: last + 1],
        "l1_unrolled": np.abs(unrolled[: last + 1]).sum(axis=(1, 2)),
        "l1_implicit": np.abs(packing).sum(),
        "deviation_unrolled": _deviation(unrolled[stops], packing),
        "deviation_implicit": _deviation(implicit(positions[stops], reference, potential, direction), packing),
        "positions": np.asarray(eq.system.positions),
        "implicit": packing,
        "unrolled": np.asarray(unrolled[last]),
    }


def _deviation(derivatives, packing):
    return np.abs(np.asarray(derivatives) - packing).sum(axis=(1, 2)) / np.abs(packing).sum()


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs.update({"tolerances": TOLERANCES, "theta": DIAMETERS["B"], "mdsens": ms.__version__})
        for name, array in arrays.items():
            file[name] = array
    write_whole(path, image.getvalue(), overwrite=False)


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path, "r") as file:
        return {name: item[()] for name, item in file.items()}


def is_off(deviation):
    return ~(np.asarray(deviation) <= NO_DIGIT)


def report(results: dict[int, dict]) -> None:
    ends = (LOOSE, len(TOLERANCES) - 1)
    print(" " * 20 + "".join(f"| {f'FIRE stopped at fmax {TOLERANCES[k]:.0e}':^46} " for k in ends))
    print(f"{'seed':>5} {'L1 implicit':>13} " + 2 * f"| {'steps':>6} {'L1 unrolled':>13} {'deviation':>10}  {'verdict':12} ")
    for seed, found in results.items():
        row = f"{seed:5d} {found['l1_implicit']:13.4f} "
        for k in ends:
            steps, deviation = found["steps"][k], found["deviation_unrolled"][k]
            verdict = "beyond 100 %" if is_off(deviation) else "within 100 %" if deviation > 0.01 else "within 1 %"
            row += f"| {steps:6d} {found['l1_unrolled'][steps - 1]:13.4f} {deviation:10.1e}  {verdict:12} "
        print(row.rstrip())
    print("deviation: Σ|dx - dx*| / Σ|dx*|, dx* the implicit derivative of the packing; beyond 100 %: or not finite\n")
    print(f"{'':15} {'unrolled through FIRE':^33} {'implicit at the same state':^33}")
    print(f"{'stopped at fmax':15} " + 2 * f"{'beyond 100 %':>13} {'median deviation':>19} ")
    for k, tolerance in enumerate(TOLERANCES):
        row = f"{tolerance:15.0e} "
        for deviations in (_deviations(results, "unrolled", k), _deviations(results, "implicit", k)):
            row += f"{f'{is_off(deviations).sum()} of {len(results)}':>13} {np.median(deviations):19.1e} "
        print(row.rstrip())


def _deviations(results, way, k):
    """Of all seeds; where there is no derivative at all, infinite."""
    return np.nan_to_num([found[f"deviation_{way}"][k] for found in results.values()], nan=np.inf)


def picture(results: dict[int, dict]):
    """Left, as in the paper, the derivative against the steps that are differentiated; right its size at a loose stop."""
    import matplotlib.pyplot as plt

    blue, orange, red = COLOURS[0], COLOURS[1], COLOURS[4]
    _, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for found in results.values():
        left.semilogy(found["l1_unrolled"] / found["l1_implicit"], color=orange, linewidth=0.7, alpha=0.6)
    left.plot([], color=orange, label="unrolled through FIRE, one line a start")
    left.axhline(1.0, color=blue, linewidth=2, label="implicit")
    left.set_xlabel("steps of FIRE, until all forces are below 1e-12 eV/Å")
    left.set_ylabel("L1 norm of ∂x/∂θ, in units of the packing's own")
    left.set_title("Through the steps the derivative first grows")
    left.legend(frameon=False)

    order = sorted(results.values(), key=lambda found: found["l1_implicit"])
    exact = np.array([found["l1_implicit"] for found in order])
    unrolled = np.array([found["l1_unrolled"][found["steps"][LOOSE] - 1] for found in order])
    lost = is_off([found["deviation_unrolled"][LOOSE] for found in order])
    rank = np.arange(len(order))
    right.vlines(rank, exact, unrolled, color="0.85", zorder=0)
    right.scatter(rank[lost], unrolled[lost], marker="x", color=red, label="unrolled, off by more than 100 %")
    right.scatter(rank[~lost], unrolled[~lost], marker="o", facecolors="none", edgecolors=orange, label="unrolled")
    right.scatter(rank, exact, s=18, color=blue, label="implicit")
    right.set_yscale("log")
    right.set_ylim(top=50.0 * unrolled.max())  # room for the legend
    right.set_xlabel("random starts, ordered by the L1 norm of the packing's sensitivity")
    right.set_ylabel("L1 norm of ∂x/∂θ")
    tight = is_off([found["deviation_unrolled"][-1] for found in order]).sum()
    right.set_title(
        f"FIRE stopped at {TOLERANCES[LOOSE]:.0e} eV/Å: {lost.sum()} of {len(order)} unrolled ones are off by more than 100 %\n"
        f"(at {TOLERANCES[-1]:.0e} eV/Å: {tight} of {len(order)})"
    )
    right.legend(frameon=False, loc="upper left")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40, help="how many random starts (40)")
    parser.add_argument("--output", type=Path, default=Path("unrolled_vs_implicit"), help="folder of the results")
    parser.add_argument("--picture", type=Path, help="draw it into this PNG file, which is replaced")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.picture is not None:
        check_writable(options.picture, overwrite=True)
    paths = {seed: options.output / f"seed_{seed:04d}.h5" for seed in range(options.seeds)}
    for seed in tqdm([seed for seed, path in paths.items() if not path.exists()], unit="seed"):
        write(paths[seed], unit(seed))
    results = {seed: read(path) for seed, path in paths.items()}
    report(results)
    if options.picture is not None:
        save_picture(picture(results), options.picture, overwrite=True)


if __name__ == "__main__":
    main()
