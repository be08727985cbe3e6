"""Saving a guest and restoring it, by QEMU's migration: its state goes through a Unix socket, and we read or write it.

Of all ways this one works in every QEMU from 7.2 on, and in its sandbox. The memory of a template is not part of its
state: it lies in a file (x-ignore-shared), which the saved guest shares and its clones map for themselves. That of a
capsule is. QEMU does not check what it is given: see pipeline/vm/template.py and capsule.py for who does.
"""

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pipeline.host.deadline import Deadline
from pipeline.host.faults import host_faults
from pipeline.vm import sockets
from pipeline.vm.qemu.qmp import Monitor, MonitorError

_CHUNK = 1 << 20
_LONGEST = 256 << 20  # bytes of the state of devices; those of the usual machine have less than one MiB
_COMPLETED, _GIVEN_UP = "MIGRATION completed", ("MIGRATION failed", "MIGRATION cancelled")
_ACTIVE = ("setup", "active", "device", "pre-switchover", "cancelling")  # MigrationStatus in QEMU's qapi/migration.json
_FAST = 1 << 40  # bytes per second; else QEMU would hold itself back


class Sink(Protocol):
    """What takes the state of a guest that is saved."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""


def save(monitor: Monitor, path: Path, sink: Sink, deadline: Deadline, *, memory_in_file: bool) -> None:
    """Write the state of the guest to `sink`; the guest stands still from then on.

    `path` is that of a socket to be made, in QEMU's working directory. Raises MonitorError, whatever `sink` raises, and
    StoreError for an OSError.
    """
    with socket.socket(socket.AF_UNIX) as server:
        with host_faults("making a socket"), sockets.address(path) as where:
            server.bind(where)
        server.listen(1)
        _set(monitor, memory_in_file=memory_in_file)
        monitor.execute("migrate-set-parameters", {"max-bandwidth": _FAST})
        monitor.execute("migrate", {"uri": f"unix:{path.name}"})
        with _talking("QEMU gives no state"):
            server.settimeout(deadline.remaining)
            connection, _ = server.accept()
        with connection, host_faults("saving the guest"):
            for chunk in _received(connection, deadline, _LONGEST if memory_in_file else None):
                sink.write(chunk)
    monitor.wait_for(_COMPLETED, *_GIVEN_UP, limit=deadline.remaining)
    if _COMPLETED not in monitor.events:
        raise MonitorError("QEMU has given up saving the guest")


def give_up(monitor: Monitor, limit: float) -> None:
    """Have QEMU give up a saving that has failed, within `limit` seconds, if it still tries. Raises MonitorError."""
    monitor.execute("migrate_cancel")
    if monitor.execute("query-migrate").get("status") in _ACTIVE:
        monitor.wait_for(_COMPLETED, *_GIVEN_UP, limit=limit)


def _received(connection: socket.socket, deadline: Deadline, longest: int | None) -> Iterator[bytes]:
    count = 0
    while True:
        with _talking("the state does not come whole"):
            connection.settimeout(max(0.001, deadline.remaining))
            chunk = connection.recv(_CHUNK)
        if not chunk:
            return
        count += len(chunk)
        if longest is not None and count > longest:
            raise MonitorError("the state has no end")
        yield chunk


def restore(monitor: Monitor, path: Path, state: Iterable[bytes], deadline: Deadline, *, memory_in_file: bool) -> None:
    """Give a QEMU that waits (`-incoming defer`) the state of a guest, piece by piece, and return once that runs.

    `path` is that of the socket that QEMU will make in its working directory. Raises MonitorError.
    """
    _set(monitor, memory_in_file=memory_in_file)
    monitor.execute("migrate-incoming", {"uri": f"unix:{path.name}"})
    with _talking("QEMU takes no state"), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(max(0.001, deadline.remaining))
        sockets.connect(client, path)
        for chunk in state:
            client.settimeout(max(0.001, deadline.remaining))
            client.sendall(chunk)
    monitor.wait_for(_COMPLETED, limit=deadline.remaining)
    monitor.execute("cont")  # one that stood still when it was saved would stand still now; to others it does nothing
    # Else the guest could be saved only without its memory
    _set(monitor, memory_in_file=False)


def _set(monitor: Monitor, *, memory_in_file: bool) -> None:
    wanted = {"x-ignore-shared": memory_in_file, "events": True}
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})


@contextmanager
def _talking(problem: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MonitorError(f"{problem}: {error.strerror or error}") from error
