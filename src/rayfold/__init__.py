"""rayfold: learned replica compaction for Ray Serve."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("rayfold")
