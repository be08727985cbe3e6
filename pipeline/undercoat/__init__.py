"""The `undercoat` command: the program that ClusterFuzz calls to fuzz on Fuchsia, with Topcoat behind it.

Every call is a process of its own, and is given the guest as the path of its handle, a file. Standard output carries
only what the caller asked for and the texts of errors, which ClusterFuzz reads there; all else goes to stderr. The exit
code is 0 or 1, but see `main` for others. The reference is the interface of Fuchsia's own `undercoat`: tools/fuzz in
its source.
"""

from pipeline.undercoat.program import main

__all__ = ["main"]
