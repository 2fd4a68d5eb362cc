"""kaifs: the file system that agents run from."""

__version__ = "0.1.0"
