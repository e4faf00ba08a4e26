"""What studies found in HDF5 files, piece by piece and collected."""
