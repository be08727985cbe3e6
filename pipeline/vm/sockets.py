"""Access to a guest's sockets, which lie in its instance's directory, however long that directory's path is.

The address of a socket has at most 107 bytes (sun_path, see unix(7)). So QEMU, which works in that directory, makes the
sockets by their bare names, and clients connect through /proc/self/fd, by a descriptor of the directory.
"""

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.host.faults import host_faults

_NO_SOCKETS = (errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Yield a short address for the socket at `path`, valid during the body. Raises OSError without its directory."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connect(client: socket.socket, path: Path) -> None:
    """Connect a Unix socket to the one at `path`, however long that path is. Raises OSError."""
    with address(path) as where:
        client.connect(where)


def require_sockets(directory: Path) -> None:
    """Raise StoreError if the file system of the directory cannot hold sockets, or nothing can be written there."""
    with host_faults("making a socket"), _trial(directory) as path, socket.socket(socket.AF_UNIX) as server:
        try:
            with address(path) as where:
                server.bind(where)
        except OSError as error:
            if error.errno not in _NO_SOCKETS:
                raise
            raise StoreError(
                f"the file system of {directory} cannot hold sockets: {error.strerror}",
                hint="move the store to a local disk: [store] root in luigi.cfg, or TOPCOAT_ROOT",
            ) from error


@contextmanager
def _trial(directory: Path) -> Iterator[Path]:
    """A path for a socket. `topcoat gc` knows the name of its directory as one that a killed process has left."""
    with tempfile.TemporaryDirectory(prefix=".socket.", suffix=".tmp", dir=directory) as made:
        yield Path(made, "trial")
