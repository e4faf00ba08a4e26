"""Derivatives of an equilibrium in the parameters of its potential, and how far they can be trusted."""
