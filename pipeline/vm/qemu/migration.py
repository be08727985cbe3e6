"""Saving a guest and restoring it, by QEMU's migration: its state goes through a Unix socket, and we read or write it.

Of all ways this one works in every QEMU from 7.2 on, and in its sandbox. The memory is not part of the state: it lies
in a file (x-ignore-shared), which the saved guest shares and its clones map for themselves. QEMU does not check what it
is given: see pipeline/vm/template.py for who does.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.host.deadline import Deadline
from pipeline.host.faults import host_faults
from pipeline.vm import sockets
from pipeline.vm.qemu.qmp import Monitor, MonitorError

_CHUNK = 1 << 20
_LONGEST = 256 << 20  # bytes of state; the devices of the usual machine have less than one MiB
_FAST = 1 << 40  # bytes per second; else QEMU would hold itself back


def save(monitor: Monitor, path: Path, state: Path, deadline: Deadline) -> None:
    """Save the guest's devices into the new file `state`; the guest stands still from then on, and must be ended.

    `path` is that of a socket to be made, in QEMU's working directory. Raises MonitorError, and StoreError if the state
    cannot be written.
    """
    with socket.socket(socket.AF_UNIX) as server:
        with host_faults("making a socket"), sockets.address(path) as where:
            server.bind(where)
        server.listen(1)
        _set(monitor, memory_in_file=True)
        monitor.execute("migrate-set-parameters", {"max-bandwidth": _FAST})
        monitor.execute("migrate", {"uri": f"unix:{path.name}"})
        with _talking("QEMU gives no state"):
            server.settimeout(deadline.remaining)
            connection, _ = server.accept()
        with connection, host_faults("saving the guest"), state.open("xb") as stream:
            for chunk in _received(connection, deadline):
                stream.write(chunk)
    monitor.wait_for("MIGRATION completed", deadline.remaining)


def _received(connection: socket.socket, deadline: Deadline) -> Iterator[bytes]:
    count = 0
    while True:
        with _talking("the state does not come whole"):
            connection.settimeout(max(0.001, deadline.remaining))
            chunk = connection.recv(_CHUNK)
        if not chunk:
            return
        count += len(chunk)
        if count > _LONGEST:
            raise MonitorError("the state has no end")
        yield chunk


def restore(monitor: Monitor, path: Path, state: bytes, deadline: Deadline) -> None:
    """Give the devices of a QEMU that waits (`-incoming defer`) their state, and return once its guest runs.

    `path` is that of the socket that QEMU will make in its working directory. Raises MonitorError.
    """
    _set(monitor, memory_in_file=True)
    monitor.execute("migrate-incoming", {"uri": f"unix:{path.name}"})
    with _talking("QEMU takes no state"), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(max(0.001, deadline.remaining))
        sockets.connect(client, path)
        client.sendall(state)
    monitor.wait_for("RESUME", deadline.remaining)
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
