"""A study of each kind to begin with."""

from pathlib import Path


def template(kind: str) -> str:
    """The text of a study that runs as it is."""
    return (Path(__file__).parent / f"{kind}.toml").read_text(encoding="utf-8")
