"""The command line: `mdsens relax`, `mdsens run`, ..."""
