"""The kinds of studies: sweeps, error bars, fits, paths."""
