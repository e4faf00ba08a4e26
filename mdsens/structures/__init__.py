"""Atoms in a cell: read from files, packed, and their neighbours."""
