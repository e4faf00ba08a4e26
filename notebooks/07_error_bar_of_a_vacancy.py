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
# # How sure is the formation energy of a vacancy?
#
# Embedded atoms with the constants of Cleri and Rosato say 1.27 eV for copper, at the measured lattice constant. The
# constants came from a fit, and have error bars. What do these make of the vacancy's? To first order J Σ Jᵀ, where the
# derivatives J are those of relaxed structures: none is relaxed once more for any of the constants.

# %%
import equinox as eqx
import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk

import mdsens as ms
from mdsens import studies

potential = ms.Gupta.published("Cu")
atoms = bulk("Cu", a=3.615, cubic=True) * 2
del atoms[0]
states = {
    "bulk": ms.relax(ms.System.from_ase(bulk("Cu", a=3.615)), potential, fmax=1e-10),
    "defect": ms.relax(ms.System.from_ase(atoms), potential, fmax=1e-10),
}
observed = {
    "vacancy": ms.observables.defect_formation_energy,
    "cohesion": studies.Of(ms.observables.cohesive_energy(), "bulk"),
    "pressure": studies.Of(ms.observables.pressure, "bulk"),
}
constants = ("A", "xi", "p", "q")
width = {name: 0.01 * float(getattr(potential, name)) for name in constants}
apart = studies.uncertainty(states, observed, width, wrt=constants)
vacancy, std = float(apart.values["vacancy"]), float(apart.std["vacancy"])
print(f"vacancy {vacancy:.3f} eV; with 1 % in each constant, independently, ± {std:.3f} eV")
print("  of which", ", ".join(f"{name} {share:.0%}" for name, share in zip(apart.names, apart.shares["vacancy"], strict=True)))
print(f"  it departs from a straight line by {apart.nonlinearity['vacancy']:.0%} of that; trusted: {apart.trusted}")

# %% [markdown]
# ## What a fit knows
#
# The constants are not independent: they were chosen such that the crystal has its cohesive energy, and no pressure at its
# lattice constant. The same covariance, between observables now, says what is left of the error bar if these two are known:
# Var(g | d) = Var(g) - Cov(g, d) Cov(d, d)⁻¹ Cov(d, g).

# %%
order = list(apart.values)
g, d = order.index("vacancy"), [order.index("cohesion"), order.index("pressure")]
weights = np.linalg.solve(apart.covariance[np.ix_(d, d)], apart.covariance[d, g])
left = float(np.sqrt(apart.covariance[g, g] - weights @ apart.covariance[d, g]))
print(f"± {left:.3f} eV where cohesion and lattice constant are as measured: {std / left:.1f} times less")

# %% [markdown]
# ## Is it right?
#
# Relax both structures again for 200 sets of constants drawn at random.

# %%


@eqx.filter_jit
def observe(systems, potential):
    return [observable(systems, potential) for observable in observed.values()]


def relaxed_with(values):
    other = studies.with_values(potential, dict(zip(constants, values, strict=True)))
    again = {name: eq.again(other, fmax=1e-10, check_minimum=False) for name, eq in states.items()}
    return observe({name: eq.system for name, eq in again.items()}, other)


rng = np.random.default_rng(0)
centre, spread = (np.array([float(part[name]) for name in constants]) for part in (potential.parameters(), width))
sampled = np.array([relaxed_with(centre + spread * draw) for draw in rng.normal(size=(200, 4))])
energies, data = sampled[:, 0], sampled[:, 1:]
told = (data - data.mean(axis=0)) @ weights  # what the data say of the vacancy
rest = energies - told
print(f"of 200 samples: ± {energies.std(ddof=1):.3f} eV, and ± {rest.std(ddof=1):.3f} eV beside what the data say")
sampling = 1.0 / np.sqrt(2 * 200)  # relative error of a standard deviation
assert abs(energies.std(ddof=1) / std - 1.0) < 4.0 * sampling + apart.nonlinearity["vacancy"]
assert abs(rest.std(ddof=1) / left - 1.0) < 4.0 * sampling + apart.nonlinearity["vacancy"]

# %%
_, (cloud, bars) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
cloud.plot(vacancy + told, energies, "o", markersize=3.5, color="#4c78a8", alpha=0.7)
ends = np.array([energies.min(), energies.max()])
cloud.plot(ends, ends, color="0.4", linewidth=0.8)
cloud.set_xlabel("told by cohesive energy and pressure [eV]")
cloud.set_ylabel("vacancy, both structures relaxed again [eV]")
x = np.linspace(*ends, 300)
for values, one, colour, label in ((energies, std, "#f58518", "constants independent"), (rest, left, "#4c78a8", "data known")):
    bars.hist(values, bins=24, density=True, color=colour, alpha=0.45)
    bars.plot(x, np.exp(-0.5 * ((x - vacancy) / one) ** 2) / (one * np.sqrt(2.0 * np.pi)), color=colour, label=label)
bars.set_xlabel("formation energy of the vacancy [eV]")
bars.set_ylabel("density: samples, and J Σ Jᵀ as lines")
bars.legend(frameon=False)
plt.show()
