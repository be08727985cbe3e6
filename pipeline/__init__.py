"""The parts of Topcoat: everything that the tasks call. Nothing here knows luigi but `targets`."""

__version__ = "0.1.0"
