# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which weights of a network move the vacancy?
#
# A Behler-Parrinello network of about 1,900 weights was trained on Stillinger and Weber's silicon
# (`scripts/train_silicon_network.py`). In the vacancy's symmetric state the four neighbours hardly move; whether inwards or
# outwards hangs on all of the weights. One adjoint solve says how each of them changes that, whatever their number.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk

import mdsens as ms

atoms = bulk("Si", cubic=True) * 2
near = np.argsort(atoms.get_distances(0, range(64), mic=True))[1:5] - 1
arms = atoms.get_distances(0, near + 1, mic=True, vector=True)
ideal = np.linalg.norm(arms, axis=1).mean()
del atoms[0]
atoms.positions[near] -= 0.1 * arms
system = ms.System.from_ase(atoms)
start = system.positions


def breathing(system, potential):
    """How far the four neighbours moved towards the vacancy, on average [Å]."""
    moved = system.positions[near] - (start[near] + 0.1 * arms)
    return -jnp.mean(jnp.sum(moved * arms, axis=1) / ideal)


potential = ms.BehlerParrinello.silicon()
eq = ms.relax(system, potential, fmax=1e-10)
inwards, slope = ms.value_and_gradient(breathing, eq)
weights = sum(leaf.size for leaf in jax.tree.leaves(potential.network))
print(f"{weights} weights; the neighbours moved inwards by {inwards:.4f} Å")

# %% [markdown]
# `θ dg/dθ`, by how much the neighbours would move if one weight were doubled (to first order). Of the first layer it has a
# column for each symmetry function, so that one sees which of them matter.

# %%
scaled = jax.tree.map(lambda theta, d: np.asarray(theta * d), potential.network["Si"], slope.network["Si"])
functions = [f"G² {R:.1f} Å" for R in potential.Rs]
functions += [
    f"{potential.angular} {'+' if sign > 0 else '−'} ζ={z} η={eta:g}"
    for eta, z, sign in zip(potential.angular_eta, potential.zeta, potential.lam, strict=True)
]

_, axes = plt.subplots(2, 1, figsize=(8, 6.5), layout="constrained", height_ratios=(2, 1), sharex=True)
limit = np.abs(scaled["W1"]).max()
image = axes[0].imshow(scaled["W1"], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
axes[0].set_ylabel("unit of the first layer")
axes[0].figure.colorbar(image, ax=axes[0], label="θ dg/dθ [Å]")
share = np.sqrt(np.sum(scaled["W1"] ** 2, axis=0))
axes[1].bar(range(len(functions)), share, color=["#4477aa"] * len(potential.eta) + ["#cc6677"] * len(potential.zeta))
axes[1].set_xticks(range(len(functions)), functions, rotation=90, fontsize=7)
axes[1].set_ylabel("root of the sum\nof squares [Å]")
axes[0].set_title("First layer: weights that move the vacancy's neighbours inwards (red) or outwards (blue)", fontsize=10)
plt.show()

# %% [markdown]
# Is it right? A factor on all energies moves nothing, and so the weights and the bias of the last layer balance exactly. And
# the one weight that matters most, changed by a thousandth, moves the neighbours as predicted.

# %%
balance = scaled["W3"].sum() + scaled["b3"].sum()
print(f"last layer: largest {np.abs(scaled['W3']).max():.3f} Å, sum {balance:.1e} Å")
assert abs(balance) < 1e-7 * np.abs(scaled["W3"]).max()

unit, function = np.unravel_index(np.abs(scaled["W1"]).argmax(), scaled["W1"].shape)
print(f"the strongest weight of the first layer is that of {functions[function]} in unit {unit}")


def changed(share):
    place = lambda p: p.network["Si"]["W1"]  # noqa: E731
    other = eqx.tree_at(place, potential, place(potential).at[unit, function].multiply(1.0 + share))
    return breathing(ms.relax(eq.system, other, fmax=1e-10, check_minimum=False).system, other)


difference = (changed(1e-3) - changed(-1e-3)) / 2e-3
print(f"predicted {scaled['W1'][unit, function]:.5f} Å, relaxed again {difference:.5f} Å")
np.testing.assert_allclose(difference, scaled["W1"][unit, function], rtol=1e-3)
