"""Instances: their directories, their handles, and whether they live."""

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import halt, lease
from pipeline.deadline import Deadline
from pipeline.errors import (
    BrokenInstance,
    HandleEdited,
    InstanceBusy,
    KernelHalted,
    PidReused,
    StoreError,
    UnknownInstance,
    UsageError,
)
from pipeline.faults import entries, host_faults
from pipeline.freshness import Key
from pipeline.process import Process, owner_of_pidfile
from pipeline.publish import is_locked, locked, publish_json, remove
from pipeline.settings import Store

if TYPE_CHECKING:
    from pipeline.qemu.machine import How

SCHEMA = 2
"""Of handle.json. Tests hold frozen samples. Schema 1 had no seal."""

State = Literal["running", "halted", "booting", "stopped", "broken"]

ENDED: "dict[How, str]" = {
    "powerdown": "powered itself off",
    "quit": "stopped",
    "SIGTERM": "stopped by SIGTERM; it did not take QEMU's quit command",
    "SIGKILL": "stopped by SIGKILL; it took neither QEMU's quit command nor SIGTERM",
    "not running": "was not running",
}
"""How an instance has ended, for people."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_OWN_TMPDIR = "remove it, or set TMPDIR to a directory of your own"
_LONGEST_SOCKET = 107  # sun_path of Linux, unix(7), without its final NUL


def check_name(name: str) -> str:
    """The name. Raises UsageError if no instance can have it."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of an instance",
            hint="use letters, digits, '.', '_' and '-', at most 63, the first a letter or digit",
        )
    return name


def require_private(base: Path) -> None:
    """Raise StoreError if `base` is no directory for sockets: of this user alone, or still to be made in TMPDIR."""
    there = base if os.path.lexists(base) else base.parent
    named = "TMPDIR, " if there == Path(os.environ.get("TMPDIR", "")) else ""
    hint = "make it, or set TMPDIR to a directory of your own" if named else _OWN_TMPDIR
    if not there.is_dir():
        raise StoreError(f"the sockets cannot be made: {named}{there} is no directory", hint=hint)
    facts = there.lstat()
    if there == base and (base.is_symlink() or facts.st_uid != os.getuid() or facts.st_mode & 0o022):
        raise StoreError(f"{base} belongs to somebody else, or others may write to it", hint=_OWN_TMPDIR)
    if not os.access(there, os.W_OK | os.X_OK):
        raise StoreError(f"the sockets cannot be made: you may not write to {named}{there}", hint=hint)


@dataclass(frozen=True)
class SSH:
    """Where the guest's SSH server is, and the key pair of both sides."""

    host: str
    port: int
    user: str
    key: str
    """The path of the private key: the instance's own copy. Older handles name that of the store."""
    host_key: str | None
    """ "TYPE BASE64"; None if the guest was never spoken to."""


@dataclass(frozen=True)
class Handle:
    """All that another process needs to find and control a running instance. Lies in handle.json."""

    name: str
    boot_id: str
    """Random, new with every boot."""
    build: str
    started: str
    """UTC, ISO 8601."""
    argv: tuple[str, ...]
    process: Process
    sockets: str
    """The directory with the sockets `qmp` and `serial`."""
    ssh: SSH
    made_of: Key
    """The images, the QEMU and the settings that it was booted with."""

    def encode(self) -> dict[str, object]:
        """As JSON: the fields by name, the schema, and a seal, so that an edited handle is noticed."""
        data = {"schema": SCHEMA, **asdict(self)}
        return {**data, "seal": _seal(data)}

    @classmethod
    def decode(cls, data: Any) -> "Handle":
        """The reverse. Raises UnsealedError if the seal is not its own, ValueError if it is no handle at all."""
        try:
            if data["schema"] not in (1, SCHEMA):
                raise ValueError(f"its schema is {data['schema']!r}, not {SCHEMA}")
            if data["schema"] == SCHEMA and data["seal"] != _seal(data):
                raise UnsealedError("its seal does not fit what it says")
            values = {key: value for key, value in data.items() if key not in ("schema", "seal")}
            values["argv"] = tuple(map(str, data["argv"]))
            parts = {"process": Process(**data["process"]), "ssh": SSH(**data["ssh"])}
            return cls(**values | parts | {"made_of": Key.decode(data["made_of"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a field is missing or wrong: {error}") from error


class UnsealedError(ValueError):
    """A handle says something else than when it was written."""


def _seal(data: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in data.items() if key != "seal"}, sort_keys=True)
    return sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Instance:
    """One name for one QEMU at a time, and the directory of all that belongs to it."""

    name: str
    directory: Path

    @classmethod
    def named(cls, store: Store, name: str) -> "Instance":
        """The instance of this name, whether it exists or not. Raises UsageError for a name that cannot be one."""
        return cls(check_name(name), store.instances / name)

    @classmethod
    def existing(cls, store: Store, name: str) -> "Instance":
        """The instance of this name. Raises UnknownInstance, with the names that there are."""
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
        """All instances that have a directory, by name. Raises StoreError."""
        found = entries(store.instances)
        return [cls(path.name, path) for path in found if path.is_dir() and _NAME.fullmatch(path.name)]

    @property
    def handle_file(self) -> Path:
        """Written last: it exists while the guest is ready."""
        return self.directory / "handle.json"

    @property
    def serial_log(self) -> Path:
        """Everything that the guest wrote to its serial port. Outlives the instance."""
        return self.directory / "serial.log"

    @property
    def qemu_log(self) -> Path:
        """What QEMU itself said at its start."""
        return self.directory / "qemu.log"

    @property
    def timeline(self) -> Path:
        """When the last boot reached each stage."""
        return self.directory / "timeline.jsonl"

    @property
    def overlay(self) -> Path:
        """The guest's disk: what it wrote, over the prepared image."""
        return self.directory / "overlay.qcow2"

    @property
    def pidfile(self) -> Path:
        """QEMU's pidfile, locked by QEMU while it lives."""
        return self.directory / "qemu.pid"

    @property
    def known_hosts(self) -> Path:
        """The guest's host key, for OpenSSH."""
        return self.directory / "known_hosts"

    @property
    def key(self) -> Path:
        """Its own copy of the private key with which it was booted: the store's may be replaced while it runs."""
        return self.directory / "sshid"

    @property
    def transient(self) -> tuple[Path, ...]:
        """The files that it needs only while it runs."""
        return (self.handle_file, self.pidfile, self.overlay, self.known_hosts, self.key)

    @property
    def sockets(self) -> Path:
        """Where the sockets go: a short private path without blanks or commas, the same for every process.

        The directory is made by `make_sockets`.
        """
        digest = sha256(os.fsencode(os.path.realpath(self.directory))).hexdigest()[:12]
        candidates = [Path(os.environ.get("TMPDIR", "")), Path("/tmp")]
        for base in candidates:
            path = base / f"topcoat-{os.getuid()}" / digest
            plain = re.fullmatch(r"[\w/.+-]+", str(path), re.ASCII)
            if base.is_absolute() and plain and len(str(path)) + len("/serial") <= _LONGEST_SOCKET:
                return path
        raise AssertionError("/tmp is short and plain")

    @property
    def sockets_in_use(self) -> Path:
        """Where the sockets of the last boot are: not the same if the store has been moved since."""
        with suppress(OSError):
            linked = (self.directory / "run").readlink()
            if linked.parent.name == self.sockets.parent.name:
                return linked
        return self.sockets

    def make_sockets(self) -> Path:
        """Make the directory of the sockets, empty but for links, and a link to it named `run`.

        Raises StoreError if somebody else could write to it, InstanceBusy if a guest uses it.
        """
        path = self.sockets
        with host_faults("making the directory for sockets", "temporary"):
            require_private(path.parent)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            require_private(path.parent)
            path.mkdir(mode=0o700, exist_ok=True)
            if lease.is_held(path):
                raise InstanceBusy(
                    f"a guest still uses the sockets in {path}",
                    hint=f"was its store moved away from here while it ran? stop it there: fuser -v {path}/lease",
                )
            for old in path.iterdir():
                old.unlink(missing_ok=True)
            link = self.directory / "run"
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        return path

    def remove_sockets(self) -> None:
        """Undo `make_sockets`."""
        with host_faults("removing the directory of sockets", "temporary"):
            sockets = self.sockets_in_use
            if sockets.is_dir() and not lease.is_held(sockets):
                for old in sockets.iterdir():
                    old.unlink(missing_ok=True)
                sockets.rmdir()
            (self.directory / "run").unlink(missing_ok=True)

    def handle(self) -> Handle | None:
        """The handle, or None if there is none. Raises ValueError if there is one that cannot be understood."""
        try:
            return Handle.decode(json.loads(self.handle_file.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error

    def live_handle(self) -> Handle | None:
        """The handle, if the very QEMU that it was written for still lives; else None."""
        try:
            handle = self.handle()
        except ValueError:
            return None
        return handle if handle and owner_of_pidfile(self.pidfile) == handle.process else None

    def halt(self) -> str:
        """The line by which the guest's kernel has said that it has halted; "" if it has not, as far as the log tells.

        Of an instance that lives. What a guest has written counts, which may not be true: see pipeline/halt.py.
        """
        return halt.found_in_log(self.serial_log)

    def boot_seconds(self) -> float | None:
        """How long the last boot took until the guest was ready; None if it failed, or there was none."""
        from pipeline.timeline import ready_seconds

        return ready_seconds(self.timeline)

    def state(self) -> State:
        """What can be said of the instance now."""
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
        """Whether there is more of it than logs."""
        return any(path.exists() for path in (*self.transient, self.directory / "run"))

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
        """The handle, or None if there is none. Raises HandleEdited or BrokenInstance."""
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
        """Write the handle: from here on the instance counts as running."""
        publish_json(self.handle_file, handle.encode(), mode=0o600)

    def stop(self, limit: float, booted: Handle | None = None, *, gently: bool = False) -> "How":
        """End QEMU within `limit` seconds and remove all but the logs. Returns how it ended.

        With `booted`, only if it is still that boot which runs; `gently` presses the guest's power button first.
        Needs no handle. Raises InstanceBusy while another process boots the instance, StopError if QEMU survives.
        """
        from pipeline.qemu import machine

        deadline = Deadline(limit)
        with locked(self.directory, limit / 3):  # the rest is for QEMU to end
            if booted is not None and self.live_handle() != booted:
                return "not running"
            how = machine.stop(self.pidfile, self.sockets_in_use / "qmp", deadline.remaining, gently=gently)
            remove(*self.transient)
            self.remove_sockets()
        return how
