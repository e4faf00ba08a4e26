"""The version of mdsens, with which files are marked."""

VERSION = "0.1.0"
