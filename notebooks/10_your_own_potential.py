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
# # Your own potential: salt in the water of a colloidal crystal
#
# Charged spheres in water repel each other with $Z_i Z_j\, e^{-\kappa r}/r$; salt makes the screening κ larger. In a
# hexagonal layer sits one sphere of three times the charge. Do its neighbours come nearer, or go away, when salt is added?
# The potential is not among those that are shipped: it is written here.

# %%
import jax.numpy as jnp
import numpy as np

import mdsens as ms


class Screened(ms.PairPotential):
    """Z_i Z_j exp(-κ r)/r, in units in which the spacing of the crystal is 1."""

    charge: dict  # by species
    kappa: float
    onset: float = ms.static(3.0)
    cutoff: float = ms.static(3.5)

    def pair_energy(self, r, i, j):
        return self.one(self.charge, i) * self.one(self.charge, j) * jnp.exp(-self.kappa * r) / r


potential = Screened(charge={"A": 1.0, "B": 3.0}, kappa=2.0)

# %% [markdown]
# Fields are parameters, unless they are static; that is all mdsens wants to know. Forces, Hessian and derivatives are made
# from the energy. Whether the energy is sound, `check_potential` tells: symmetries, derivatives to second order against
# differences, smoothness at the cutoff, small cells, files.

# %%
columns, rows = 8, 4
corners = np.array([[x, np.sqrt(3.0) * y] for y in range(rows) for x in range(columns)])
layer = np.concatenate([corners, corners + [0.5, np.sqrt(0.75)]])
species = ["A"] * len(layer)
species[20] = "B"
crystal = ms.System(layer, cell=np.diag([columns, rows * np.sqrt(3.0)]), pbc=True, species=species)
print(ms.testing.check_potential(potential, crystal))

# %% [markdown]
# ## The answer

# %%
eq = ms.relax(crystal, potential, fmax=1e-12)
S = ms.sensitivity(eq)
dx = S.positions.kappa
print(f"trusted: {S.certificate.trusted}; longest arrow {np.linalg.norm(dx, axis=1).max():.4f}")
ms.plot.packing(eq, dx, parameter="κ");

# %% [markdown]
# How far the six neighbours stand off, and what salt does to that: one adjoint solve for all parameters.

# %%
away = layer - layer[20]
away -= np.round(away / np.diag(crystal.cell)) * np.diag(crystal.cell)
near = np.argsort(np.linalg.norm(away, axis=1))[1:7]
lengths = ms.observables.distances([(20, int(k)) for k in near])


def shell(system, potential):
    return jnp.mean(lengths(system, potential))


distance, slope = ms.value_and_gradient(shell, eq)
print(f"neighbours at {distance:.4f}; κ d/dκ = {potential.kappa * slope.kappa:+.4f}")
for name in ("A", "B"):
    print(f"  Z_{name} d/dZ_{name} = {potential.charge[name] * slope.charge[name]:+.4f}")

# %% [markdown]
# Is it right? All charges times a number is all energies times its square, which moves nothing: the two last lines cancel. And
# one more layer, with κ larger by a thousandth, is where the derivative says.

# %%
balance = sum(float(potential.charge[name] * slope.charge[name]) for name in "AB")
assert abs(balance) < 1e-9

salted = Screened(charge={"A": 1.0, "B": 3.0}, kappa=2.002)
moved = float(shell(ms.relax(eq.system, salted, fmax=1e-12).system, salted) - distance)
print(f"by 0.002 more of κ: {moved:+.3e}, predicted {0.002 * slope.kappa:+.3e}")
np.testing.assert_allclose(moved, 0.002 * slope.kappa, rtol=5e-3)

# %% [markdown]
# Salt lets the neighbours come nearer: by 0.07 % of the spacing for each per cent of κ. A file keeps the result; to read it,
# mdsens wants the class.

# %%
ms.save("layer.h5", eq, S, overwrite=True)
again, _ = ms.load("layer.h5", potential=potential)
assert (again.system.positions == eq.system.positions).all()
