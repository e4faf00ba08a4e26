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
# # Which parameter makes silicon stiff?
#
# The cell relaxes at zero pressure, the elastic constants are those of relaxed ions, and their derivatives are total ones: a
# parameter changes the stiffness directly, and through the lattice constant and the internal displacements.

# %%
import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk

import mdsens as ms
from mdsens import plot
from mdsens.observables import elastic_constants
from mdsens.structures.packing import random_packing

potential = ms.StillingerWeber.silicon()
crystal = ms.relax(ms.System.from_ase(bulk("Si", cubic=True)), potential, cell="free", fmax=1e-11)
C, dC = ms.value_and_jacobian(elastic_constants, crystal)
clamped = elastic_constants(crystal.system, potential, relaxed=False)
print(f"a = {crystal.system.cell[0, 0]:.5f} Å")
print(f"C11, C12, C44 = {C[0, 0]:.2f}, {C[0, 1]:.2f}, {C[3, 3]:.2f} GPa; with ions clamped C44 = {clamped[3, 3]:.2f} GPa")

# %% [markdown]
# Dimensionless, so that parameters compare: by how many per cent a constant changes if a parameter grows by one per cent.

# %%
names = list(potential.parameters())
constants = {"C11": (0, 0), "C12": (0, 1), "C44": (3, 3)}
table = np.array([[getattr(potential, n) * getattr(dC, n)[ij] / C[ij] for n in names] for ij in constants.values()])

_, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
limit = np.abs(table).max()
image = ax.imshow(table, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
ax.set_xticks(range(len(names)), names)
ax.set_yticks(range(len(constants)), constants)
for (row, column), value in np.ndenumerate(table):
    ax.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 * limit else "black")
ax.figure.colorbar(image, label="(θ / C) dC/dθ")
plt.show()

# %% [markdown]
# Is it right? Energies scale as ε f(x/σ), so at zero pressure C ∝ ε/σ³ exactly. And one more crystal, with λ larger by a
# hundredth of a per cent, gives the same as the derivative.

# %%
np.testing.assert_allclose(table[:, names.index("epsilon")], 1.0, rtol=1e-8)
np.testing.assert_allclose(table[:, names.index("sigma")], -3.0, rtol=1e-8)

step = 1e-4 * float(potential.lam)
other = crystal.again(ms.StillingerWeber(**{**potential.parameters(), "lam": potential.lam + step}, p=4, q=0), fmax=1e-11)
change = (elastic_constants(other.system, other.potential) - C)[3, 3] / step
print(f"dC44/dλ = {dC.lam[3, 3]:.5f} GPa, by one difference {change:.5f} GPa")
np.testing.assert_allclose(change, dC.lam[3, 3], rtol=1e-3)

# %% [markdown]
# ## How far does a derivative reach?
#
# In a disordered packing contacts open and close as a parameter moves. `validity` states how far the linear prediction holds;
# a few structures relaxed again show it.

# %%
diameters = {"A": 1.0, "B": 0.6}
packing = ms.relax(random_packing(64, diameters, seed=3), ms.SoftSphere(diameter=diameters, epsilon=1.0), fmax=1e-11)
reach = ms.validity(packing, {"diameter.B": 1.0}, share=0.1, checks=6)
print(f"up to {reach.range:.2e} Å; {reach.limit}; the first contact changes at {reach.first_contact:.2e} Å")
plot.validity(reach).set_title("Small spheres that grow")
plt.show()
assert reach.holds
