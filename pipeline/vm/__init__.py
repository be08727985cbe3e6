"""Virtual machines: instances, their handles, and the pool of guests that campaigns lease.

`launcher` is the contract for whatever boots a guest; `qemu` is its only implementation. This package may import fuzz,
builds, ssh, and what is below them.
"""
