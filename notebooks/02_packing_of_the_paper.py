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
# # The packing of Blondel et al. 2021
#
# Section 4.4 of "Efficient and Modular Implicit Differentiation": 128 soft spheres in a periodic box, half of diameter 1
# and half of diameter θ = 0.6. jax-md's FIRE finds the packing $x^\star(\theta)$; implicit differentiation gives
# $\partial x^\star/\partial\theta$, whatever found it.

# %%
import jax
import jax.numpy as jnp
import jax_md.minimize
import numpy as np

import mdsens as ms
from mdsens.structures.packing import random_packing

diameters = {"A": 1.0, "B": 0.6}
start = random_packing(128, diameters, packing_fraction=1.0, seed=0)
potential = ms.SoftSphere(diameter=diameters, epsilon=1.0, alpha=2.0)
eq = ms.relax(start, potential, solver=ms.solvers.JaxMD(jax_md.minimize.fire_descent), fmax=1e-12)
S = ms.sensitivity(eq, wrt=["diameter.B"])
dx = S.positions.diameter["B"]
print(f"{eq.steps} steps, fmax {eq.fmax:.1e}, L1 norm of the sensitivity {jnp.abs(dx).sum():.3f}")
print(f"zero modes taken out: {', '.join(S.certificate.zero_modes)}; trusted: {S.certificate.trusted}")

# %%
ms.plot.packing(eq, dx);

# %% [markdown]
# The same as a JAX function: `equilibrium_positions` differentiates in forward and reverse mode, and composes with `jit`
# and `vmap`. Here the gradient of the packing's pressure, through the relaxation.

# %%


def pressure(potential):
    x = ms.equilibrium_positions(eq.system, potential, fmax=1e-12)
    return ms.observables.pressure(eq.system.with_positions(x), potential)


slope = jax.grad(pressure)(potential).diameter["B"]
print(f"dP/dθ = {slope:.4f}, explicit part alone {jax.grad(lambda p: ms.observables.pressure(eq.system, p))(potential).diameter['B']:.4f}")

# %% [markdown]
# Held against central differences of packings relaxed again at θ ± 1e-5:

# %%


def relaxed_at(theta):
    changed = ms.SoftSphere(diameter={"A": 1.0, "B": theta}, epsilon=1.0)
    x = ms.relax(eq.system, changed, fmax=1e-12).system.positions
    return np.asarray(x - x.mean(axis=0))


difference = (relaxed_at(0.6 + 1e-5) - relaxed_at(0.6 - 1e-5)) / 2e-5
error = np.abs(difference - np.asarray(dx)).max() / np.abs(dx).max()
print(f"largest deviation {error:.1e} of the longest arrow")
assert error < 1e-5
