"""The package's version, on the ground, where every room can read it."""

__version__ = "0.1.0"
