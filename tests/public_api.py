"""The public surface as text, one name a line with its signature; run it to renew `public_api.txt` after a change on purpose.

python tests/public_api.py > tests/public_api.txt
"""

import enum
import inspect
import types
from collections.abc import Iterator

import typer

import mdsens
from mdsens import implicit, observables
from mdsens.cli.app import app

MODULES = {
    "mdsens": mdsens,
    **{f"mdsens.{name}": getattr(mdsens, name) for name in mdsens._MODULES},
    **{one.__name__: one for one in (implicit.optimality, implicit.projections, implicit.proximal, observables.moduli)},
}


def surface() -> Iterator[str]:
    """Every public name: of `mdsens`, of its public modules, of their classes; and the commands with their options."""
    described = {}
    for where, module in MODULES.items():
        for name in sorted(_names(module)):
            value, path = getattr(module, name), f"{where}.{name}"
            if isinstance(value, types.ModuleType):
                continue
            if id(value) in described and callable(value):
                yield f"{path} is {described[id(value)]}"
                continue
            described[id(value)] = path
            yield from _described(path, value)
    for name, command in sorted(typer.main.get_command(app).commands.items()):
        yield f"$ mdsens {name} {' '.join(option for param in command.params for option in param.opts)}".rstrip()


def _names(module):
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return [name for name in getattr(module, "__all__", own) if not name.startswith("_")]


def _described(path, value) -> Iterator[str]:
    if not isinstance(value, type):
        yield path + (_signature(value) if callable(value) else "")
        return
    yield path + ("" if issubclass(value, enum.Enum | Exception) else _signature(value))
    if issubclass(value, enum.Enum):
        yield from (f"{path}.{member.name}" for member in value)
    # What is inherited stands under the base class.
    for name, member in vars(value).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            yield f"{path}.{name}"
        elif isinstance(member, classmethod | staticmethod | types.FunctionType) or hasattr(member, "__wrapped__"):
            yield f"{path}.{name}{_signature(getattr(value, name))}"


def _signature(function) -> str:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return ""
    bare = [parameter.replace(annotation=parameter.empty, default=_told(parameter.default)) for parameter in parameters]
    return str(inspect.Signature(bare))


class _Text(str):
    __repr__ = str.__str__


def _told(default):
    """A default that reads the same in every process."""
    if default is inspect.Parameter.empty:
        return default
    return _Text("..." if " at 0x" in repr(default) or len(repr(default)) > 60 else repr(default))


if __name__ == "__main__":
    print("\n".join(surface()))
