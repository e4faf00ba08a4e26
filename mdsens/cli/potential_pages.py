"""The catalogue of potentials for the command line: a list, and a page for each."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from mdsens.common.errors import InputError, did_you_mean
from mdsens.common.units import unit_text
from mdsens.potentials import SHIPPED, EmbeddedPotential, PairPotential, Potential, SitePotential

FORMS = {PairPotential: "pairs", SitePotential: "sites", EmbeddedPotential: "embedded"}
"""Forms of potentials by their base classes."""

COMPOSITES = ("Sum", "Reparameterised")
"""Potentials made from others, without a formula of their own."""


def listing() -> Iterator[str]:
    """Yield a line for each potential: its name, form and summary."""
    classes = sorted(SHIPPED.values(), key=lambda cls: (cls.__name__ in COMPOSITES, cls.__name__.lower()))
    width = max(len(cls.__name__) for cls in classes)
    for cls in classes:
        yield f"  {cls.__name__:<{width}}  {_form(cls):<8}  {_summary(cls)}"


def page(name: str) -> Iterator[str]:
    """Yield a potential's page: formula, parameters with units, restrictions, paper, constructors.

    Raises:
        InputError: an unknown name, in capitals or not.
    """
    known = {key.lower(): key for key in SHIPPED}
    if name.lower() not in known:
        near = did_you_mean(name.lower(), known)
        raise InputError(f"There is no potential {name!r}.{re.sub(r'[a-z0-9]+', lambda m: known.get(m[0], m[0]), near)}")
    cls = SHIPPED[known[name.lower()]]
    yield f"{cls.__name__} ({_form(cls)})"
    yield ""
    yield from (inspect.getdoc(cls) or "").splitlines()
    yield ""
    yield "Fields:"
    fields = [field for field in dataclasses.fields(cls) if field.init]
    width = max(len(field.name) for field in fields)
    for field in fields:
        yield f"  {field.name:<{width}}  {_role(cls, field)}"
    if makers := [(key, value) for key, value in vars(cls).items() if isinstance(value, classmethod) and key != "from_stored"]:
        yield ""
        yield "Made by:"
        for key, value in makers:
            yield f"  {cls.__name__}.{key}{_signature(value.__func__)}  {_first_line(value.__func__)}"


def _form(cls: type[Potential]) -> str:
    form = "composed" if cls.__name__ in COMPOSITES else "other"
    return next((form for base, form in FORMS.items() if issubclass(cls, base)), form)


def _role(cls: type[Potential], field: dataclasses.Field[Any]) -> str:
    """A field in words: a parameter with its unit, or a static setting with its default."""
    if not field.metadata.get("static", False):
        by_species = ", or a dict by species" if "dict" in str(field.type) else ""
        unit = {None: "", "": "number"}.get(cls.units.get(field.name), f"[{unit_text(cls.units.get(field.name))}]")
        return f"parameter {unit}{by_species}".rstrip()
    if field.default is dataclasses.MISSING:
        return "static"
    return "static, can be left out" if field.default is None else f"static, by default {field.default!r}"


def _summary(cls: type[Potential]) -> str:
    return _first_line(inspect.getmodule(cls)) if cls.__name__ not in COMPOSITES else _first_line(cls)


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def _signature(function: Callable[..., Any]) -> str:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return f"({', '.join(str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters)})"
