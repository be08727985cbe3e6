"""Whether the host has memory and disk space for one more guest."""

from pipeline.errors import HostFault, StoreError, TopcoatError
from pipeline.host.faults import host_faults
from pipeline.host.resources import free_bytes
from pipeline.text.quantity import readable_size
from pipeline.vm.instance import Instance

RESERVE = 512 << 20
"""Bytes of memory that are left to the host."""
ROOM = 16 << 20
"""Bytes that must be free on the instance's disk before a boot is tried: for its overlay and its first logs."""


def shortage(instance: Instance, memory: int, available: int) -> TopcoatError | None:
    """The error that says why the instance should not be booted now, HostFault or StoreError; None if there is room.

    `memory` is the bytes that a guest may take, and `available` the bytes that are free. The error is not raised.
    """
    free = max(0, available - RESERVE)
    if free < memory:
        return HostFault(
            f"a guest takes {readable_size(memory)} of memory, and the host has {readable_size(free)} for it",
            hint="end what else runs, or give each guest less: [qemu] memory; or have fewer of them: [pool] size",
            stage="memory",
            cause="no memory",
        )
    try:
        require_room(instance)
    except StoreError as error:
        return error
    return None


def require_room(instance: Instance) -> None:
    """Raise StoreError if less than ROOM bytes are free on the disk of the instance."""
    there = next(path for path in (instance.directory, *instance.directory.parents) if path.exists())
    with host_faults("looking at the disk"):
        free = free_bytes(there)
    if free < ROOM:
        raise StoreError(
            f"the disk of {there} is full: {readable_size(free)} are free, {readable_size(ROOM)} are wanted",
            hint="free some space, see topcoat gc and topcoat clean; or move the store: [store] root or TOPCOAT_ROOT",
        )
