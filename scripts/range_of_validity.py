"""The stated range of a linear prediction, held against structures relaxed again: disordered packings of soft spheres.

    python scripts/range_of_validity.py [-n SEEDS] [--order 1|2] [--picture FILE.png]

In each packing the small spheres grow or shrink. `ms.validity` says how far they may before the predicted displacement is
off by a tenth; structures are then relaxed from predictions inside the range and beyond it. Two rates count: predictions
inside the range that are as good as stated, and ranges that are shorter than a third of the true one.

Exit 1 if fewer than 95 % of the former hold, or more than 20 % of the latter.
"""

import argparse
import math
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import mdsens as ms
from mdsens.derivatives.extrapolation import check
from mdsens.files.atomic_write import check_writable, save_picture
from mdsens.plot import COLOURS
from mdsens.structures.packing import random_packing

DIAMETERS = {"A": 1.0, "B": 0.6}
PARTICLES = 64
SHARE = 0.1
INSIDE = (0.25, 0.5, 0.75, 1.0)
BEYOND = (1.25, 1.5, 2.0, 2.5, 3.0)
"""Shares of the range at which structures are relaxed again."""


def packing(seed):
    """A relaxed packing and the direction in which its small spheres change, by seed."""
    potential = ms.SoftSphere(diameter=DIAMETERS, epsilon=1.0)
    eq = ms.relax(random_packing(PARTICLES, DIAMETERS, seed=seed), potential, fmax=1e-11, progress=False)
    sign = 1.0 if seed % 2 else -1.0
    still = jax.tree.map(jnp.zeros_like, potential)
    return eq, eqx.tree_at(lambda p: p.diameter["B"], still, jnp.asarray(sign))


def errors_along(seed, order):
    """`(range, limit, errors at INSIDE, errors at BEYOND until one is beyond the share)`, or why there is none."""
    try:
        eq, direction = packing(seed)
        found = ms.validity(eq, direction, share=SHARE, order=order)
    except ms.MdsensError as error:
        return str(error)
    inside = [check(eq, found, share * found.range).error for share in INSIDE]
    beyond = []
    for share in BEYOND:
        beyond.append(check(eq, found, share * found.range).error)
        if not beyond[-1] <= SHARE:
            break
    return found.range, found.limit, inside, beyond


def summary(results):
    """`(share of predictions inside that hold, share of ranges shorter than a third of the true one)`."""
    inside = np.concatenate([errors for _, _, errors, _ in results])
    short = [len(beyond) == len(BEYOND) and beyond[-1] <= SHARE for _, _, _, beyond in results]
    return float(np.mean(inside <= SHARE)), float(np.mean(short))


def draw(ax, results):
    places = [*INSIDE, *BEYOND]
    for _, _, inside, beyond in results:
        errors = [min(error, 2.0) for error in [*inside, *beyond]]
        ax.loglog(places[: len(errors)], errors, color=COLOURS[0], alpha=0.25, linewidth=0.8)
    ax.axhline(SHARE, color=COLOURS[1], label=f"allowed: {SHARE:.0%} of the displacement")
    ax.axvline(1.0, color="0.4", linewidth=0.8, label="stated range")
    ax.set_xlabel("change of the parameter, in units of the stated range")
    ax.set_ylabel("error of the predicted displacement")
    ax.set_xticks(places, [f"{place:g}" for place in places])
    ax.minorticks_off()
    ax.set_ylim(bottom=1e-5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--seeds", type=int, default=200, help="packings (200)")
    parser.add_argument("--order", type=int, choices=(1, 2), default=1, help="of the prediction")
    parser.add_argument("--picture", type=Path, help="draw it into this PNG file, which is replaced")
    options = parser.parse_args()
    if options.picture is not None:
        check_writable(options.picture, overwrite=True)
    results, refused = [], {}
    for seed in tqdm(range(options.seeds), unit="packing", disable=None):
        found = errors_along(seed, options.order)
        if isinstance(found, str):
            refused[found.split("(")[0]] = refused.get(found.split("(")[0], 0) + 1
        else:
            results.append(found)
    holds, short = summary(results)
    ranges = np.array([reach for reach, *_ in results])
    print(f"{len(results)} packings of {PARTICLES} spheres, prediction of order {options.order}, allowed error {SHARE:.0%}")
    for reason, count in refused.items():
        print(f"  refused: {count} ({reason})")
    for limit in sorted({limit for _, limit, *_ in results}):
        print(f"  range ends since {limit}: {sum(limit == other for _, other, *_ in results)}")
    finite = ranges[np.isfinite(ranges)]
    print(f"  range of the diameter: median {np.median(finite):.1e}, from {finite.min():.1e} to {finite.max():.1e}")
    print(f"predictions inside the range that hold: {holds:.1%} of {len(results) * len(INSIDE)}")
    print(f"ranges shorter than a third of the true one: {short:.1%}")
    if options.picture is not None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(7, 4.6), layout="constrained")
        draw(ax, results)
        save_picture(ax, options.picture, overwrite=True)
    return int(math.isnan(holds) or holds < 0.95 or short > 0.2)


if __name__ == "__main__":
    raise SystemExit(main())
