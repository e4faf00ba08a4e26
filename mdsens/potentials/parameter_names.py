"""`named_leaves`: which parameters are meant by names and paths."""

from collections.abc import Collection, Iterable

from mdsens.common.errors import InputError, did_you_mean
from mdsens.potentials.base import Potential, parameter_paths
from mdsens.potentials.parameters import canonical_key


def named_leaves(potential: Potential, names: Iterable[str]) -> list[bool]:
    """Return for each leaf whether a name or path means it: `"sigma"` means `"sigma.A-A"` and all others of it.

    Raises:
        InputError: a name that does not exist.
    """
    paths = parameter_paths(potential)
    parts = [path.split(".") for path in paths]
    known = dict.fromkeys(".".join(part[:k]) for k in range(1, 1 + max(map(len, parts), default=0)) for part in parts)
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise InputError(f"{type(potential).__name__} has no parameter {name!r}.{_meant(str(name), known)}")
    return [any(path == name or path.startswith(f"{name}.") for name in names) for path in paths]


def _meant(name: str, known: Collection[str]) -> str:
    """Return a guess: a pair in the other order and a term's parameter without the term come before what is spelled alike."""
    *place, key = name.split(".")
    other = ".".join([*place, canonical_key(key)])
    nearer = [path for path in known if path == other or path.endswith(f".{name}")]
    return f" Did you mean {' or '.join(map(repr, nearer))}?" if nearer else did_you_mean(name, known)
