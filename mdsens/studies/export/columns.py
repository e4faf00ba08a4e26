"""Which of several tables is meant."""

from collections.abc import Iterable

from mdsens.common.errors import InputError, did_you_mean


def choose_table(table: str | None, known: Iterable[str]) -> str:
    """The table of this name, by default the first.

    Raises:
        InputError: there is none.
    """
    if table is None:
        return next(iter(known))
    if table not in known:
        raise InputError(f"There is no table {table!r}.{did_you_mean(table, known)}")
    return table
