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
# # A first sensitivity: which parameter moves the atoms around a vacancy?
#
# A silicon crystal from ASE, one atom missing, the Stillinger-Weber potential. One call relaxes it, one call gives the
# derivative of every atom's position with respect to every parameter of the potential.

# %%
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from ase.build import bulk

import mdsens as ms

atoms = bulk("Si", cubic=True) * 3
place = atoms.positions[100].copy()
del atoms[100]
near = np.argsort(np.linalg.norm(atoms.positions - place, axis=1))[:4]
# In the ideal lattice the four neighbours sit in a metastable place; the ground state of this vacancy is inward.
atoms.positions[near] += 0.17 * (place - atoms.positions[near])

system = ms.System.from_ase(atoms)
potential = ms.StillingerWeber.silicon()
eq = ms.relax(system, potential, fmax=1e-12)
print(f"{len(system)} atoms, {eq.energy:.4f} eV, largest force {eq.fmax:.1e} eV/Å, {eq.status.value}")

# %% [markdown]
# `S.positions` has the shape of the potential: `S.positions.sigma` is $\partial X/\partial\sigma$, shape `(N, 3)`, in Å per
# Å. Parameters compare in the scaled form $\theta\,\partial X/\partial\theta$. The certificate says how far to trust it.

# %%
S = ms.sensitivity(eq)
scaled = S.scaled().positions
largest = {name: float(np.linalg.norm(leaf, axis=1).max()) for name, leaf in scaled.parameters().items()}
print(f"trusted: {S.certificate.trusted}, residual {S.certificate.residual:.0e}, error below {S.certificate.error_bound:.0e} Å")
ms.plot.influence(largest, label="max |θ dX/dθ| [Å]");

# %% [markdown]
# How the preferred bond angle moves the atoms around the vacancy:

# %%
ms.plot.crystal(eq, scaled.costheta0, centre=place, radius=5.0, parameter="cos θ₀ dX/d(cos θ₀)");

# %% [markdown]
# Any function of the relaxed structure has a derivative with respect to all parameters at the cost of one linear solve:
# here the pressure, and the mean distance of the vacancy's neighbours.

# %%
lengths = ms.observables.distances([(int(a), int(b)) for k, a in enumerate(near) for b in near[k + 1 :]])


def opening(system, potential):
    return jnp.mean(lengths(system, potential))


value, slope = ms.value_and_gradient(opening, eq)
pressure, dpressure = ms.value_and_gradient(ms.observables.pressure, eq)
print(f"opening {value:.4f} Å:  σ d/dσ = {potential.sigma * slope.sigma:8.3f} Å,  B d/dB = {potential.B * slope.B:8.3f} Å")
print(f"pressure {pressure:.4f} GPa:  σ d/dσ = {potential.sigma * dpressure.sigma:8.2f} GPa")

# %% [markdown]
# Does it predict? Make σ larger by 0.1 %, relax again, and compare.

# %%
larger = eqx.tree_at(lambda p: p.sigma, potential, 1.001 * potential.sigma)
again = ms.relax(eq.system, larger, fmax=1e-12)
moved = np.asarray(again.system.positions - eq.system.positions)
predicted = 0.001 * np.asarray(scaled.sigma)
error = np.linalg.norm(moved - predicted, axis=1).max() / np.linalg.norm(moved, axis=1).max()
print(f"prediction off by {error:.2%} of the largest displacement")
assert error < 0.005
assert abs(float(potential.sigma * slope.sigma) - 1.8007) < 1e-3

# %% [markdown]
# Keep it: one HDF5 file in the H5MD layout, which gives everything back bit for bit.

# %%
ms.save("silicon_vacancy.h5", eq, S, overwrite=True)
eq2, S2 = ms.load("silicon_vacancy.h5")
assert (S2.positions.sigma == S.positions.sigma).all()
