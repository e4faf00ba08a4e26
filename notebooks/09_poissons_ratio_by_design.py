# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A packing with the Poisson's ratio you want
#
# Pull a strip of rubber and it becomes thin: its Poisson's ratio is near the highest there is. So is that of a packing near
# jamming, which hardly resists shear. Can one choose the diameters of 32 soft discs such that the packing shrinks less across,
# at the same pressure? The elastic constants are those of relaxed particles, and their derivatives go through the
# relaxation, in all diameters at once.

# %%
import equinox as eqx
import matplotlib.pyplot as plt
import numpy as np

import mdsens as ms
from mdsens import studies
from mdsens.observables import poisson_ratio, pressure
from mdsens.structures.packing import random_packing

start = random_packing(32, {"A": 1.0, "B": 0.7}, packing_fraction=1.0, seed=1)
# Hertz's contacts, whose stiffness grows from zero; one diameter a particle.
potential = ms.SoftSphere(diameter=np.repeat([1.0, 0.7], 16), epsilon=1.0, alpha=2.5)
eq = ms.relax(start, potential, fmax=1e-12)
ratio, slope = ms.value_and_gradient(poisson_ratio, eq)
print(f"Poisson's ratio {ratio:.4f}, pressure {pressure(eq.system, potential):.5f} eV/Å²")

# %% [markdown]
# Is the gradient right? Along itself, against central differences of packings relaxed again:

# %%


def ratio_at(change):
    other = eqx.tree_at(lambda p: p.diameter, potential, potential.diameter + change)
    return float(poisson_ratio(ms.relax(eq.system, other, fmax=1e-12).system, other))


along = np.asarray(slope.diameter / np.linalg.norm(slope.diameter))
difference = (ratio_at(1e-6 * along) - ratio_at(-1e-6 * along)) / 2e-6
print(f"implicit {along @ slope.diameter:.6f}, differences {difference:.6f}")
np.testing.assert_allclose(along @ slope.diameter, difference, rtol=1e-4)

# %% [markdown]
# ## Design
#
# Of all diameters that give 0.6 at the pressure there is, those that change least. Contacts open and close on the way, and a
# prediction then reaches no farther than to the next one: the trust region keeps the steps short.

# %%
goal = 0.6
wanted = {"ratio": (poisson_ratio, goal), "pressure": (pressure, float(pressure(eq.system, potential)))}
design = studies.inverse_design(eq.system, potential, wanted, wrt="diameter", relax={"fmax": 1e-12})
print(f"{design.message}; {design.relaxations} relaxations, {len(design.history) - 1} steps")
print(", ".join(f"{label} {value:.6f}" for label, value in zip(design.labels, design.found, strict=True)))
change = design.parameters - design.start
print(f"diameters changed by {np.abs(change).mean():.3f} on average, {np.abs(change).max():.3f} at most")
assert design.converged

# %% [markdown]
# The check, with nothing of the design but its diameters: the packing relaxed by another solver, pulled by hand. A strain
# along x, relaxed at fixed y, gives the stress; from four such stresses the compliance, and from it the ratio.

# %%
(made,) = design.states.values()


def stress(strain):
    x, cell = made.system.positions @ (np.eye(2) + strain), made.system.cell @ (np.eye(2) + strain)
    pulled = eqx.tree_at(lambda s: (s.positions, s.cell), made.system, (x, cell))
    again = ms.relax(pulled, design.potential, solver=ms.FIRE(), fmax=1e-12, check_minimum=False)
    return np.asarray(design.potential.stress(again.system))


e = 1e-6
units = [np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 0.5], [0.5, 0.0]])]
C = np.array([(stress(e * unit) - stress(-e * unit)) / (2 * e) for unit in units]).T
by_hand = float(ms.observables.moduli.poisson(C))
print(f"pulled by hand: {by_hand:.5f}")
np.testing.assert_allclose(by_hand, goal, atol=1e-3)

# %%
_, axes = plt.subplots(1, 3, figsize=(14, 5.0), layout="constrained")
for ax, state, value in zip(axes, (eq, made), (float(ratio), goal), strict=False):
    ms.plot.packing(state, ax=ax)
    ax.set_title(f"Poisson's ratio {value:.3f}")
axes[2].semilogy(np.sqrt(2.0 * np.array(design.history)), "o-", color="#4c78a8")
axes[2].set_xlabel("step")
axes[2].set_ylabel("relative distance from what is wanted")
plt.show()
