"""Compiled programs kept on disk, so that the first call of the next session need not compile again."""

import atexit
import contextlib
import contextvars
import hashlib
import platform
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
import platformdirs
from jax.experimental.compilation_cache import compilation_cache

from mdsens.common.suggestions import suggest_names

CPU = Path("/proc/cpuinfo")
"""Linux's list of a processor's features; elsewhere its name has to do."""

MAX_BYTES = 2 * 10**9
"""Size that kept programs may have together; those that were not used for longest go first."""

MAX_MAPS = 20_000
"""Memory maps of a process up to which compiled programs are kept; Linux allows 65,530."""


_plan: contextvars.ContextVar[bool | None] = contextvars.ContextVar("plan", default=None)


@contextlib.contextmanager
def plan_compilation(often: bool) -> Iterator[None]:
    """Say whether what comes will be done often, so that it is compiled at once, or not at all where it need not be.

    Otherwise that depends on how often it was done before, and with it the last digits of results.
    """
    token = _plan.set(often)
    try:
        yield
    finally:
        _plan.reset(token)


def planned_compilation() -> bool | None:
    """Return what `plan_compilation` said; None where nothing was said."""
    return _plan.get()


@suggest_names
def keep_compiled(directory: str | Path | None = None) -> Path:
    """Keep what JAX compiles from now on in a folder, and look there before compiling: JAX's persistent compilation cache.

    `import mdsens` does this by itself, with the default folder, unless JAX's own settings name one
    (`JAX_COMPILATION_CACHE_DIR`) or the environment variable `MDSENS_KEEP_COMPILED` is 0. Programs are found again by their code
    and shapes, in a folder of their own for each version of JAX and each kind of processor: machines may share a directory.
    Nothing in it ever makes an answer stale, it takes up to 2 GB, and it may be deleted at any time. `mdsens doctor` says where
    it is.

        ms.keep_compiled("/scratch/compiled")

    Args:
        directory: where to keep them, made where it is missing; by default `mdsens/compiled` in the user's cache directory.

    Returns:
        the folder in it for this machine.

    Raises:
        OSError: the folder cannot be made.
    """
    root = (default_folder() if directory is None else Path(directory)).expanduser().absolute()
    folder = root / _kind()
    folder.mkdir(parents=True, exist_ok=True)
    atexit.register(prune, root)
    # Small programs too: a relaxation is a hundred of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.set_cache_dir(str(folder))
    # JAX decides once, at the first compilation, whether there is a cache.
    compilation_cache.reset_cache()
    return folder


def keep_by_default() -> None:
    """Keep compiled programs in the default folder, unless JAX has a folder of its own or keeps none.

    A folder that cannot be written to is no error: programs that are there are found, and others are compiled.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return
    with contextlib.suppress(OSError):
        keep_compiled()
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry", UserWarning)


def default_folder() -> Path:
    """Return the folder in the user's cache directory."""
    return Path(platformdirs.user_cache_dir("mdsens", appauthor=False)) / "compiled"


def kept_bytes(root: Path) -> int:
    """Return the size of all programs in a folder and those below it."""
    return sum(size for _, size, _ in _programs(root))


def prune(root: Path, limit: int = MAX_BYTES) -> None:
    """Delete the programs that were not used for longest where all together are larger than a limit, down to 80 % of it."""
    programs = sorted(_programs(root))
    size = sum(size for _, size, _ in programs)
    if size <= limit:
        return
    for _, one, path in programs:
        if size <= 0.8 * limit:
            return
        with contextlib.suppress(OSError):  # another process was faster
            path.unlink()
        size -= one


def _programs(root: Path) -> list[tuple[float, int, Path]]:
    """`(time of the last use, size, path)` of each program; other files in the folder are somebody else's."""
    programs = []
    for path in root.glob("*-jax*/*-cache"):
        with contextlib.suppress(OSError):
            entry = path.stat()
            programs.append((max(entry.st_atime, entry.st_mtime), entry.st_size, path))
    return programs


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
