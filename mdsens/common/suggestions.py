"""Suggestions for misspelled names, which Python itself makes at a terminal at best."""

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

from mdsens.common.errors import did_you_mean, nearest_name
from mdsens.common.progress import watch_call

Named = TypeVar("Named", bound=Callable[..., Any])


def suggest_names(function: Named) -> Named:
    """Make a public function or class suggest keyword arguments that were misspelled, and show its progress if it takes long."""
    if isinstance(function, type):
        function.__init__ = _with_check(function.__init__)  # type: ignore[misc]
        return function
    function_with_check = _with_check(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        with watch_call(function.__name__, args, options.get("progress")):
            return function_with_check(*args, **options)

    return cast(Named, wrapper)


def _with_check(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        check_keywords(function, options)
        return function(*args, **options)

    return wrapper


def check_keywords(function: Callable[..., Any], options: Iterable[str]) -> None:
    """Raise TypeError, as Python would, where a function does not take one of the options."""
    known = _keywords(function)
    if known is not None and (unknown := set(options) - known):
        name = min(unknown)
        taken = did_you_mean(name, sorted(known)) if known else " It takes none."
        raise TypeError(
            f"{function.__qualname__.removesuffix('.__init__')}() got an unexpected keyword argument {name!r}.{taken}"
        )


@functools.cache
def _keywords(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return the keywords of a function, None where it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in named) - {"self"}


def unknown_attribute(owner: str, name: str, known: Iterable[str], meant: str | None = None) -> AttributeError:
    """Return the error for a missing attribute, with a suggestion but for names with an underscore, which programs look up."""
    near = f" Did you mean {meant!r}?" if meant else nearest_name(name, [other for other in known if not other.startswith("_")])
    near = "" if name.startswith("_") else near
    # With `name` and no `obj` the interpreter does not add a guess of its own.
    return AttributeError(f"{owner} has no attribute {name!r}.{near}", name=name)


def unknown_names(module: str, known: Iterable[str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module with these public names."""

    def raise_unknown(name: str) -> Any:
        raise unknown_attribute(module, name, known)

    return raise_unknown


def get_attribute(module: Any, name: str, default: Any = None) -> Any:
    """Return an attribute or a default, as `getattr` does, without the time for a suggestion."""
    return getattr(module, name) if name in vars(module) or hasattr(type(module), name) else default


class NameSuggester:
    """Base class of modules of Equinox that suggest misspelled keyword arguments and attributes, and say how to make a copy."""

    copying: ClassVar[str] = "make another one"
    """Advice in place of an assignment to `{name}`."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        check_keywords(cls.__init__, options)
        return super().__new__(cls)

    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None:
            try:
                super().__setattr__(name, value)
            except FrozenInstanceError:
                raise self._frozen(name, "set") from None

        def __delattr__(self, name: str) -> None:
            raise self._frozen(name, "deleted")

        def _frozen(self, name: str, what: str) -> FrozenInstanceError:
            return FrozenInstanceError(f"{type(self).__name__}.{name} cannot be {what}: {self.copying.format(name=name)}.")

        def __getattr__(self, name: str) -> Any:
            if hasattr(type(self), name):
                return object.__getattribute__(self, name)  # a property that raised: its own error
            # `eq.positions` is `eq.system.positions`, which is nearer than anything spelled alike.
            parts = [part for part, value in vars(self).items() if isinstance(value, NameSuggester) and name in dir(value)]
            raise unknown_attribute(type(self).__name__, name, dir(self), f"{parts[0]}.{name}" if parts else None)
