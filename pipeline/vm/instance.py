"""Instances: their directories, their handles, and what state they are in."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.errors import (
    BrokenInstance,
    HandleEdited,
    KernelHalted,
    PidReused,
    UnknownInstance,
    UsageError,
)
from pipeline.host.faults import entries
from pipeline.host.locks import is_locked
from pipeline.host.pidfile import owner_of_pidfile
from pipeline.host.process import Process
from pipeline.settings import Store
from pipeline.store.publish import publish_json
from pipeline.vm import halt
from pipeline.vm.handle import Handle, UnsealedError

State = Literal["running", "halted", "booting", "stopped", "broken"]

LINKS = ("kernel", "initrd")
"""The names of links in an instance's directory to the files that it boots; made where QEMU cannot take their paths."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_name(name: str) -> str:
    """Return the name. Raises UsageError if no instance can have it."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of an instance",
            hint="use letters, digits, '.', '_' and '-', at most 63, the first a letter or digit",
        )
    return name


@dataclass(frozen=True)
class Instance:
    """A name that at most one QEMU has at a time, and the directory with all that belongs to it."""

    name: str
    directory: Path

    @classmethod
    def named(cls, store: Store, name: str) -> "Instance":
        """The instance of this name, whether it exists or not. Raises UsageError if no instance can have that name."""
        return cls(check_name(name), store.instances / name)

    @classmethod
    def existing(cls, store: Store, name: str) -> "Instance":
        """The instance of this name, which has a directory. Raises UsageError, or UnknownInstance if it has none."""
        instance = cls.named(store, name)
        if not instance.directory.is_dir():
            names = ", ".join(one.name for one in cls.all(store))
            raise UnknownInstance(
                f"there is no instance named {name} in {store.instances}",
                hint=f"there are: {names}" if names else "boot one: luigi --module tasks BootInstance",
            )
        return instance

    @classmethod
    def all(cls, store: Store) -> list["Instance"]:
        """All instances that have a directory, sorted by name. Raises StoreError if they cannot be listed."""
        found = entries(store.instances)
        return [cls(path.name, path) for path in found if path.is_dir() and _NAME.fullmatch(path.name)]

    @property
    def handle_file(self) -> Path:
        """The path of the handle, which is written last in a boot, when the guest is ready."""
        return self.directory / "handle.json"

    @property
    def serial_log(self) -> Path:
        """The path of the log with everything that the guest wrote to its serial port; it outlives the instance."""
        return self.directory / "serial.log"

    @property
    def qemu_log(self) -> Path:
        """The path of the log with what QEMU itself, and its keeper, had to say."""
        return self.directory / "qemu.log"

    @property
    def timeline(self) -> Path:
        """The path of the file that tells when the last boot reached each stage."""
        return self.directory / "timeline.jsonl"

    @property
    def overlay(self) -> Path:
        """The path of the guest's disk: a qcow2 file with what it wrote, over the prepared image."""
        return self.directory / "overlay.qcow2"

    @property
    def pidfile(self) -> Path:
        """The path of the pidfile, which QEMU keeps locked while it lives."""
        return self.directory / "qemu.pid"

    @property
    def known_hosts(self) -> Path:
        """The path of a file with the guest's host key, for OpenSSH."""
        return self.directory / "known_hosts"

    @property
    def key(self) -> Path:
        """The path of the private SSH key: a copy of its own, as the store's may be replaced while the guest runs."""
        return self.directory / "sshid"

    @property
    def qmp_socket(self) -> Path:
        """The path of the socket of QEMU's monitor. See pipeline.vm.sockets for how to connect."""
        return self.directory / "qmp"

    @property
    def serial_socket(self) -> Path:
        """The path of the socket of the guest's serial port, which takes one client at a time."""
        return self.directory / "serial"

    @property
    def gate(self) -> Path:
        """The path of the socket of the second serial port that templates and their clones have."""
        return self.directory / "gate"

    @property
    def migration_socket(self) -> Path:
        """The path of the socket through which a guest's state goes when it is saved or restored."""
        return self.directory / "migration"

    @property
    def transient(self) -> tuple[Path, ...]:
        """The paths of all that the instance needs only while it runs: files, sockets, and links to what it boots."""
        files = (self.handle_file, self.pidfile, self.overlay, self.known_hosts, self.key)
        ends = (self.qmp_socket, self.serial_socket, self.gate, self.migration_socket)
        return (*files, *ends, *(self.directory / name for name in LINKS))

    def handle(self) -> Handle | None:
        """The handle, or None if there is none. Raises ValueError if it cannot be understood or was edited."""
        try:
            found = Handle.decode(self.handle_file.read_bytes())
            return replace(found, ssh=replace(found.ssh, key=str(self.key)))  # the store may have been moved
        except (FileNotFoundError, NotADirectoryError):
            return None

    def live_handle(self) -> Handle | None:
        """The handle, if the very QEMU that it was written for still lives; else None. Raises no ValueError."""
        try:
            handle = self.handle()
        except ValueError:
            return None
        return handle if handle and owner_of_pidfile(self.pidfile) == handle.process else None

    def halt(self) -> str:
        """The line by which the kernel of a living guest has said that it has halted; "" if the log has no such line.

        The guest may have forged it: see pipeline/vm/halt.py.
        """
        return halt.found_in_log(self.serial_log)

    def boot_seconds(self) -> float | None:
        """How many seconds the last boot took until the guest was ready; None if it failed, or there was none."""
        from pipeline.vm.timeline import ready_seconds

        return ready_seconds(self.timeline)

    def state(self) -> State:
        """The state of the instance now. "broken": its handle cannot be relied upon, or does not fit the QEMU."""
        try:
            handle = self.handle()
        except ValueError:
            return "broken"
        owner = owner_of_pidfile(self.pidfile)
        if handle and owner == handle.process:
            return "halted" if self.halt() else "running"
        if is_locked(self.directory):
            return "booting"
        return "broken" if owner else "stopped"

    @property
    def has_remains(self) -> bool:
        """Whether the instance's directory has more in it than logs: any of the `transient` paths."""
        return any(os.path.lexists(path) for path in self.transient)

    def require_live(self) -> Handle:
        """The handle of the living instance.

        Raises UnknownInstance if it does not live, PidReused if another process has its pid now, HandleEdited or
        BrokenInstance if the handle cannot be relied upon.
        """
        handle = self.readable_handle()
        owner = owner_of_pidfile(self.pidfile)
        if handle and owner == handle.process:
            return handle
        if handle and owner:
            raise BrokenInstance(
                f"the handle of {self.name} is for another process than the one that runs (pid {owner.pid})",
                hint=f"end it, and boot it again: topcoat stop {self.name}",
            )
        boot_it = f"boot it: luigi --module tasks BootInstance --name {self.name}"
        if handle and (other := Process.find(handle.process.pid)) and other != handle.process:
            raise PidReused(
                f"{self.name} has ended; its pid {other.pid} belongs to another process now, which is left alone",
                hint=boot_it,
            )
        raise UnknownInstance(f"{self.name} is not running ({self.state()})", hint=boot_it)

    def require_running(self) -> Handle:
        """The handle of an instance that lives, and whose kernel has not halted.

        Raises what `require_live` raises, and KernelHalted.
        """
        handle = self.require_live()
        if line := self.halt():
            raise KernelHalted(
                f"{self.name} is running, but its kernel has halted: {line}",
                hint=f"see its last words: topcoat logs {self.name}; to end it: topcoat stop {self.name}",
            )
        return handle

    def readable_handle(self) -> Handle | None:
        """The handle, or None if there is none. Raises HandleEdited, or BrokenInstance if it cannot be understood."""
        try:
            return self.handle()
        except UnsealedError as error:
            raise HandleEdited(
                f"the handle of {self.name} was changed by somebody else than Topcoat",
                hint=f"nothing in it can be relied upon; end the instance and boot it again: topcoat stop {self.name}",
            ) from error
        except ValueError as error:
            raise BrokenInstance(
                f"the handle of {self.name} cannot be understood: {error}",
                hint=f"it may be of another version of Topcoat; to end the instance: topcoat stop {self.name}",
            ) from error

    def publish_handle(self, handle: Handle) -> None:
        """Write the handle: from then on the instance counts as running. Raises StoreError."""
        publish_json(self.handle_file, handle.encode(), mode=0o600)
