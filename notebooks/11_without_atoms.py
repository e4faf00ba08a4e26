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
# # Implicit differentiation without atoms
#
# `mdsens.implicit` knows nothing of atoms. Write down the condition that an answer obeys; take the answer from any solver;
# and it has derivatives in everything that the condition depends on. Two examples: a magnet in the mean-field
# approximation, and a penalty that is chosen by its gradient.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize

from mdsens import implicit, solvers

# %% [markdown]
# ## A magnet
#
# Each spin sees the mean of its z neighbours, in units in which the critical temperature is 1: $m = \tanh((m + h)/T)$.
# The susceptibility ∂m/∂h is a derivative of the solution. SciPy finds the solution, JAX never sees how.


# %%
def mean_field(m, h, T):
    return jnp.tanh((m + h) / T)


@implicit.custom_fixed_point(mean_field)
def magnetisation(start, h, T):
    return jnp.asarray(scipy.optimize.brentq(lambda m: np.tanh((m + float(h)) / float(T)) - m, 1e-9, 1.0, xtol=1e-15))


susceptibility = jax.grad(magnetisation, argnums=1)
h = 0.01
temperatures = np.linspace(0.4, 1.6, 49)
m = np.array([magnetisation(1.0, h, T) for T in temperatures])
chi = np.array([susceptibility(1.0, h, T) for T in temperatures])
closed = (1.0 - m**2) / (temperatures - (1.0 - m**2))
print(f"largest deviation from the closed form: {np.abs(chi / closed - 1.0).max():.1e}")
assert np.abs(chi / closed - 1.0).max() < 1e-9

# %% [markdown]
# How hard the iteration m ← tanh((m + h)/T) would be is the spectral radius of its derivative. At the critical point it is
# near 1, and the susceptibility grows as 1/(1 - radius).

# %%
radius = np.array([implicit.spectral_radius(mean_field, jnp.asarray(one), h, T) for one, T in zip(m, temperatures, strict=True)])
np.testing.assert_allclose(chi, radius / (1.0 - radius), rtol=1e-8)

# %% [markdown]
# ## A penalty chosen by its gradient
#
# A sparse signal of 40 numbers, 30 noisy measurements. The lasso minimises $\frac12|Xw - y|^2 + \lambda|w|_1$; which λ? The one
# whose answer predicts 30 other measurements best. Its condition is that a step of the proximal gradient changes nothing.

# %%
key = jax.random.split(jax.random.key(1), 4)
truth = jnp.where(jnp.arange(40) < 5, 2.0, 0.0)
X, X_other = jax.random.normal(key[0], (30, 40)), jax.random.normal(key[1], (30, 40))
y = X @ truth + 1.5 * jax.random.normal(key[2], (30,))
y_other = X_other @ truth + 1.5 * jax.random.normal(key[3], (30,))
step = 1.0 / float(jnp.linalg.norm(X, 2) ** 2)

lasso = implicit.optimality.proximal_gradient(
    lambda w, penalty: 0.5 * jnp.sum((X @ w - y) ** 2),
    lambda w, step, penalty: implicit.proximal.l1(w, step, penalty),
    stepsize=step,
)
fit = solvers.fixed_point(lasso, solver=solvers.Anderson(), tolerance=1e-12)


@jax.jit
def error(log_penalty):
    w = fit(jnp.zeros(40), jnp.exp(log_penalty))
    return jnp.mean((X_other @ w - y_other) ** 2)


slope = jax.jit(jax.value_and_grad(error))
path = np.linspace(np.log(1.0), np.log(60.0), 25)
errors, slopes = (np.array(column) for column in zip(*(slope(one) for one in path), strict=True))

# %% [markdown]
# The minimum by bisection of the gradient, and a check of the gradient by differences of fits done again:

# %%
lowest = int(errors.argmin())
best = scipy.optimize.brentq(lambda one: float(slope(one)[1]), path[lowest - 1], path[lowest + 1])
w = fit(jnp.zeros(40), jnp.exp(best))
print(f"best penalty {np.exp(best):.2f}: error {error(best):.3f}; {int((jnp.abs(w) > 1e-9).sum())} of 40 numbers are not zero")
somewhere = path[lowest + 3] + 0.01
difference = float(error(somewhere + 1e-4) - error(somewhere - 1e-4)) / 2e-4
print(f"gradient {slope(somewhere)[1]:.6f}, differences {difference:.6f}")
np.testing.assert_allclose(slope(somewhere)[1], difference, rtol=1e-4)

# %%
_, (magnet, penalty) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
magnet.plot(temperatures, m, color="#4c78a8", label="m")
magnet.plot(temperatures, chi / chi.max(), color="#f58518", label=f"χ, in units of its largest, {chi.max():.1f}")
magnet.plot(temperatures, radius, color="0.5", linestyle="dashed", label="spectral radius of the iteration")
magnet.set_xlabel(f"T / T_c, at h = {h}")
magnet.set_ylim(top=1.35)
magnet.legend(frameon=False, loc="upper left")
penalty.plot(np.exp(path), errors, "o", color="#4c78a8", markersize=4)
for one, value, gradient in zip(path, errors, slopes, strict=True):
    ends = one + np.array([-0.06, 0.06])
    penalty.plot(np.exp(ends), value + gradient * (ends - one), color="#f58518")
penalty.plot(np.exp(best), error(best), "*", color="#e45756", markersize=14, label="where the gradient vanishes")
penalty.set_xscale("log")
penalty.set_xlabel("penalty λ")
penalty.set_ylabel("error on the other measurements, with its derivative")
penalty.legend(frameon=False)
plt.show()
