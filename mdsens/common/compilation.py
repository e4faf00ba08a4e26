"""Compiled programs kept on disk, so that the first call of the next session need not compile again."""

import contextlib
import hashlib
import platform
import re
from pathlib import Path

import jax
import jaxlib.version
import platformdirs
from jax.experimental.compilation_cache import compilation_cache

from mdsens.common.suggestions import suggest_names

CPU = Path("/proc/cpuinfo")
"""Linux's list of a processor's features; elsewhere its name has to do."""

MAX_MAPS = 20_000
"""Memory maps of a process up to which compiled programs are kept; Linux allows 65,530."""


@suggest_names
def keep_compiled(directory: str | Path | None = None) -> Path:
    """Keep what JAX compiles from now on in a folder, and look there before compiling: JAX's persistent compilation cache.

    With the environment variable `MDSENS_KEEP_COMPILED=1` this is done at `import mdsens`, and by the command `mdsens`.
    Programs are found again by their code and shapes, in a folder of their own for each version of JAX and each kind of
    processor: machines may share a directory. Nothing in it ever makes an answer stale, and it may be deleted at any time.

    Args:
        directory: where to keep them, made where it is missing; by default `mdsens/compiled` in the user's cache directory.

    Returns:
        the folder in it for this machine.

    Raises:
        OSError: the folder cannot be made.
    """
    folder = Path(platformdirs.user_cache_dir("mdsens", appauthor=False)) / "compiled" if directory is None else Path(directory)
    folder = folder.expanduser().absolute() / _kind()
    folder.mkdir(parents=True, exist_ok=True)
    # Small programs too: a relaxation is a hundred of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.set_cache_dir(str(folder))
    # JAX decides once, at the first compilation, whether there is a cache.
    compilation_cache.reset_cache()
    return folder


def drop_programs() -> None:
    """Drop all compiled programs where there are so many that Linux would soon refuse memory for more."""
    try:
        count = Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # elsewhere
        return
    if count > MAX_MAPS:
        jax.clear_caches()


def _kind() -> str:
    """Return a name for the versions and the processor's features: compiled code may not run with others."""
    features = platform.processor()
    with contextlib.suppress(OSError):
        features += "".join(re.findall(r"^(?:flags|Features|model name)\s*:.*$", CPU.read_text(), re.MULTILINE)[:2])
    key = "|".join([jax.__version__, jaxlib.version.__version__, platform.system(), platform.machine(), features])
    return f"{platform.machine()}-jax{jax.__version__}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
