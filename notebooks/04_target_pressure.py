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
# # A packing with the pressure you want
#
# A bilevel problem: the outer one chooses the diameters of 128 soft spheres, the inner one relaxes them. Implicit
# differentiation gives the outer one its gradient: one adjoint solve for all 128 diameters together, whatever relaxed the
# packing.

# %%
import equinox as eqx
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import mdsens as ms
from mdsens.structures.packing import random_packing

system = random_packing(128, {"A": 1.0, "B": 0.6}, packing_fraction=1.0, seed=0)
potential = ms.SoftSphere(diameter=np.repeat([1.0, 0.6], 64), epsilon=1.0)  # one diameter a particle
first = ms.relax(system, potential, fmax=1e-12)
pressure, slope = ms.value_and_gradient(ms.observables.pressure, first)
print(f"pressure {pressure:.6f} eV/Å²; its gradient has {slope.diameter.size} components, the largest {slope.diameter.max():.4f}")

# %% [markdown]
# Is it right? The derivative along the gradient itself, held against central differences of packings relaxed again:

# %%


def resized(potential, change):
    return eqx.tree_at(lambda p: p.diameter, potential, potential.diameter + change)


def pressure_at(change):
    eq = ms.relax(first.system, resized(potential, change), fmax=1e-12)
    return float(ms.observables.pressure(eq.system, eq.potential))


along = slope.diameter / jnp.linalg.norm(slope.diameter)
difference = (pressure_at(1e-5 * along) - pressure_at(-1e-5 * along)) / 2e-5
implicit = float(along @ slope.diameter)
print(f"implicit {implicit:.8f}, differences {difference:.8f}")
assert abs(difference / implicit - 1.0) < 1e-5

# %% [markdown]
# Newton's method for $p(D) = p^\star$, half of the pressure: of all changes of the diameters that meet the target to first
# order it takes the smallest, $\Delta D = (p^\star - p)\,g / |g|^2$.

# %%
target = 0.5 * float(pressure)
eq, history = first, [float(pressure)]
while abs(history[-1] - target) > 1e-9 and len(history) < 20:
    p, g = ms.value_and_gradient(ms.observables.pressure, eq)
    change = (target - p) * g.diameter / jnp.sum(g.diameter**2)
    eq = ms.relax(eq.system, resized(eq.potential, change), fmax=1e-12)
    history.append(float(ms.observables.pressure(eq.system, eq.potential)))
    print(f"step {len(history) - 1}: pressure {history[-1]:.10f} eV/Å², off by {abs(history[-1] - target):.1e}")
assert abs(history[-1] - target) < 1e-9

# %%
_, (before, after, steps) = plt.subplots(1, 3, figsize=(13, 5.6), layout="constrained")
for ax, state, p in ((before, first, history[0]), (after, eq, history[-1])):
    ms.plot.packing(state, ax=ax)
    ax.set_title(f"pressure {p:.4f} eV/Å²")
steps.semilogy(np.maximum(np.abs(np.array(history) - target), 1e-16), "o-")
steps.set_xlabel("step of Newton's method")
steps.set_ylabel("|p - p*| [eV/Å²]")
plt.show()

# %% [markdown]
# Who gave how much: in proportion to the gradient, those on which the pressure depends most gave most.

# %%
shrunk = np.asarray(first.potential.diameter - eq.potential.diameter)
print(f"diameters became smaller by {shrunk.mean():.4f} on average, by {shrunk.max():.4f} at most")
assert (shrunk > 0.0).mean() > 0.9
