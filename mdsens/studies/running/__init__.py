"""Studies done piece by piece, in this process, in several, or by Dask."""
