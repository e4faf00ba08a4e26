"""The base classes of energies of pairs, sites and embedded atoms, and what they share."""
