"""How much guests can still write to the host's disk: a hostile one writes all that it can."""

import logging
from contextlib import suppress
from functools import cache
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.host.faults import host_faults
from pipeline.host.pidfile import owner_of_pidfile
from pipeline.host.resources import free_bytes
from pipeline.settings import Store
from pipeline.vm.instance import Instance
from pipeline.vm.qemu.keeper import parts

log = logging.getLogger("topcoat")

_LENGTH = slice(24, 32)  # where a qcow2 header has the length of the disk: QEMU, docs/interop/qcow2.txt
_MAGIC = b"QFI\xfb"
_LOGS = 4  # the keeper leaves two parts of each of two logs


def of_running(store: Store, log_size: int) -> int:
    """How many bytes the running guests can still add to their disks, and to logs of `log_size` bytes each.

    Raises StoreError or OSError.
    """
    return sum(_of(instance, log_size) for instance in Instance.all(store) if owner_of_pidfile(instance.pidfile))


def tell_if_full(store: Store, disk: int, log_size: int) -> None:
    """Warn if the running guests and one more, with a disk of so many bytes, could fill the disk of the store.

    It also warns, and does not fail, if that cannot be told, for example because a running guest is another user's.
    Each warning is given once in a process, for a campaign boots many guests.
    """
    try:
        with host_faults("looking at what guests could write"):
            more = of_running(store, log_size) + disk + _LOGS * log_size
            full = more > free_bytes(store.root)
    except StoreError as error:
        _tell(f"whether guests could fill the disk of {store.root} cannot be told: {error.message}")
        return
    if full:
        _tell(f"guests could fill the disk of {store.root}: topcoat doctor says with how much")


@cache
def _tell(text: str) -> None:
    log.warning("%s", text)


def _of(instance: Instance, log_size: int) -> int:
    logs = sum(_taken(part) for log in (instance.serial_log, instance.qemu_log) for part in parts(log))
    disk = _length(instance.overlay) - _taken(instance.overlay)
    return max(0, disk) + max(0, _LOGS * log_size - logs)


def _length(overlay: Path) -> int:
    """The length in bytes of the disk that the guest sees; 0 if there is no overlay, or the file is no qcow2."""
    with suppress(FileNotFoundError), overlay.open("rb") as stream:
        header = stream.read(_LENGTH.stop)
        return int.from_bytes(header[_LENGTH]) if header.startswith(_MAGIC) else 0
    return 0


def _taken(file: Path) -> int:
    with suppress(FileNotFoundError):  # it was rotated or removed meanwhile
        return file.stat().st_blocks * 512
    return 0
