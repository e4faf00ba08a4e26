"""The choice among several tables."""

from collections.abc import Iterable

from mdsens.common.errors import InputError, did_you_mean


def choose_table(table: str | None, known: Iterable[str]) -> str:
    """Return the name of the table that is asked for, by default the first.

    Raises:
        InputError: there is none.
    """
    if table is None:
        return next(iter(known))
    if table not in known:
        raise InputError(f"There is no table {table!r}.{did_you_mean(table, known)}")
    return table
