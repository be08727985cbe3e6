"""The `undercoat` command: the program that ClusterFuzz calls to fuzz on Fuchsia, with Topcoat behind it.

Every call is a process of its own; a guest is known by its handle, a file. Standard output carries what the caller
asked for and nothing else, and an error's text, which ClusterFuzz reads there; all else goes to stderr. The exit code
is 0 or 1. The reference is the interface of Fuchsia's own `undercoat`, tools/fuzz in its source.
"""

from pipeline.undercoat.command import main

__all__ = ["main"]
