"""Errors, units, texts, progress and compiled code, for all packages."""
