"""The version of mdsens, which files are marked with."""

VERSION = "0.1.0"
