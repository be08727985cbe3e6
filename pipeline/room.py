"""Whether the host has room for one more guest."""

from pipeline.errors import HostFault, StoreError, TopcoatError
from pipeline.instance import Instance
from pipeline.size import readable

RESERVE = 512 << 20
"""Bytes of memory that are left to the host."""


def shortage(instance: Instance, memory: int, available: int) -> TopcoatError | None:
    """Why the instance should not be booted now: HostFault, StoreError; None if there is room.

    A guest may take `memory` bytes, and `available` are free.
    """
    from pipeline.qemu.launcher import require_room

    free = max(0, available - RESERVE)
    if free < memory:
        return HostFault(
            f"a guest takes {readable(memory)} of memory, and the host has {readable(free)} for it",
            hint="end what else runs, or give each guest less: [qemu] memory; or have fewer of them: [pool] size",
            stage="memory",
            cause="no memory",
        )
    try:
        require_room(instance)
    except StoreError as error:
        return error
    return None
