"""Potentials with many weights: SNAP, Behler-Parrinello, Deep Sets, networks of one's own."""
