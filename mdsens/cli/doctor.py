"""Diagnosis of an installation: its versions, and whether its JAX computes correctly."""

import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mdsens.common.compilation import MAX_BYTES, default_folder, kept_bytes

PACKAGES = ("mdsens", "jax", "jaxlib", "jax-md", "equinox", "numpy", "scipy", "ase", "vesin", "h5py", "matplotlib")
BROKEN_JAX_VERSIONS = {
    "0.10.2": "miscompiles on the CPU (jax issue 39103)",
    "0.11.0": "miscompiles on the CPU",
    "0.11.1": "miscompiles on the CPU",
}


def report() -> Iterator[tuple[str, str, bool]]:
    """Yield `(name, finding, whether that is good)` of each check."""
    yield "python", platform.python_version(), True
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name), True
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed", False
    if (reason := BROKEN_JAX_VERSIONS.get(jax.__version__)) is not None:
        yield "jax version", f"{jax.__version__} {reason}: install another one", False
    yield "devices", ", ".join(str(device) for device in jax.devices()), True
    wide = jnp.asarray(1.0).dtype == jnp.float64
    yield "precision", "float64" if wide else "float32: 64-bit mode was switched off after importing mdsens", wide
    yield "compiled programs", _kept_programs(), True
    yield ("compiled products", *_products())
    yield ("jax-md", *_jax_md())
    yield ("implicit derivative", *_derivative())


def _kept_programs() -> str:
    """Return where compiled programs are kept between sessions, and how large they are."""
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # of jax's stubs
    if folder is None:
        return "not kept between sessions"
    if not Path(folder).is_relative_to(default_folder()):
        return f"kept in {folder} by JAX's own settings"
    return f"kept in {folder}; all together {kept_bytes(default_folder()) / 1e6:.0f} MB of at most {MAX_BYTES / 1e6:.0f} MB"


def _products() -> tuple[str, bool]:
    # jax issue 39103: with 64 bits wrong from row 16,385 on. Whole numbers, so that the right answer is exact.
    numbers = np.arange(20_000.0)
    rows = np.stack([numbers, np.zeros_like(numbers), np.zeros_like(numbers)], axis=1)
    identity = jnp.eye(3)
    squares = np.asarray(jax.jit(jax.vmap(lambda row: jnp.sum((identity @ row) ** 2)))(rows))
    if wrong := int((squares != numbers**2).sum()):
        return f"{wrong} of {len(numbers)} wrong (the miscompilation of jax issue 39103): install another jax", False
    return "right", True


def _jax_md() -> tuple[str, bool]:
    try:
        import jax_md.minimize  # noqa: F401
    except Exception as error:  # its many imports raise errors of all kinds
        return f"cannot be imported ({type(error).__name__}: {error}); mdsens works without it", False
    return "can be imported", True


def _derivative() -> tuple[str, bool]:
    from mdsens.equilibrium.positions import equilibrium_positions
    from mdsens.potentials import LennardJones
    from mdsens.structures.system import System

    pair = System([[0.0, 0.0, 0.0], [1.2, 0.0, 0.0]])
    potential = LennardJones(epsilon=1.0, sigma=1.0, cutoff=3.0, switch="truncated")
    length = jax.grad(lambda p: jnp.linalg.norm(jnp.diff(equilibrium_positions(pair, p, fmax=1e-12), axis=0)))(potential)
    error = abs(float(length.sigma) - 2.0 ** (1.0 / 6.0))
    return f"of a dimer, right to {error:.0e}", error < 1e-10
