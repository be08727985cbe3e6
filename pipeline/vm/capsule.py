"""A capsule: a guest that was saved as it was when a fuzzer had crashed in it, to be opened again any number of times.

The directory has capsule.json, which tells of the other files: `state.zst`, the whole guest with its memory, in QEMU's
own format, compressed by Zstandard; `disk.qcow2`, its disk, which needs no other file; and `sshid`, the private key
that lets us in. `targets.squashfs` is the disk with targets, if the guest has one: a link to the image that it booted
with, if the file system takes one, so that it takes no room. Nothing else is needed to open the capsule but a QEMU of
the same version. Nobody writes to the files.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pipeline.errors import StoreError
from pipeline.host.faults import host_faults
from pipeline.settings import Accelerator, TcgThreads
from pipeline.store import document
from pipeline.store.digests import digest
from pipeline.text.printable import one_line
from pipeline.vm.template import SavedFile

SCHEMA = 1
"""The version of capsule.json's format; a sample of it is frozen in the tests."""

NAME = "capsule"
"""The name of the directory, in that of its crash."""

STATE, DISK, KEY, TARGETS = "state.zst", "disk.qcow2", "sshid", "targets.squashfs"
"""The names of the files that belong to a capsule, beside capsule.json; the last one need not be there."""

FACTS = "capsule.json"
_CHUNK = 1 << 20
_KIND, _CPU = re.compile(r"pc-q35-[0-9.]{1,20}|q35"), re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]{0,200}")
_QCOW2, _BACKING, _FEATURES, _EXTERNAL = b"QFI\xfb\0\0\0\3", slice(8, 16), slice(72, 80), 1 << 2
_MOST_CPUS, _MOST_MEMORY = 512, 1 << 22
_BOOT_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class CrashedProcess:
    """The process for whose sake a guest is saved."""

    fuzzer: str
    """The full name of the fuzzer, PACKAGE/NAME."""
    pid: int
    """Its pid in the guest, as the guest says."""


@dataclass(frozen=True)
class SavedMachine:
    """The machine in which a guest ran that was saved: what a QEMU must have that is to take it."""

    kind: str
    """QEMU's name of it with its version, such as pc-q35-7.2."""
    cpu: str
    smp: int
    memory: int
    """In MiB."""
    accelerator: Accelerator
    threads: TcgThreads
    """How many threads emulate its CPUs."""
    restrict: bool
    """Whether it is kept from reaching anything outside."""
    generation: bool
    """Whether it has a generation id (vmgenid)."""
    gate: bool
    """Whether it has a second serial port."""
    arguments: tuple[str, ...]
    """The further arguments for QEMU that `[qemu] arguments` said."""
    targets: bool = False
    """Whether it has a second disk, with targets."""

    def problem(self) -> str:
        """What of it no machine of Topcoat's can be; empty if it can be one."""
        if not _KIND.fullmatch(self.kind):
            return f"a machine of the kind {one_line(self.kind)}"
        if not _CPU.fullmatch(self.cpu):
            return f"a CPU of the kind {one_line(self.cpu)}"
        return "" if 1 <= self.smp <= _MOST_CPUS and 1 <= self.memory <= _MOST_MEMORY else "its CPUs or its memory"


@dataclass(frozen=True)
class CapsuleFacts:
    """The content of capsule.json, without its schema."""

    crashed: CrashedProcess
    build: str
    """The name of the build."""
    boot_id: str
    """The id of the boot that was saved."""
    host_key: str | None
    """The guest's SSH host key."""
    machine: SavedMachine
    qemu: str
    """QEMU's version."""
    saved: str
    """When the guest was saved: ISO 8601 in UTC."""
    files: Mapping[str, SavedFile]
    """The other files, by their names."""

    def encode(self) -> dict[str, object]:
        """The facts as data for JSON, with the schema."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """The facts in the content of capsule.json. Raises ValueError if they are no facts of this schema."""
        return document.decode(text, cls, SCHEMA)


class Capsule:
    """The capsule in a directory. Raises StoreError if it is not there, or not what was saved."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts = self._checked()
        """What the capsule says of itself."""

    def _checked(self) -> CapsuleFacts:
        with host_faults("reading the capsule"):
            try:
                facts = CapsuleFacts.decode((self.directory / FACTS).read_bytes())
            except ValueError as error:
                raise self._damaged(f"{FACTS} cannot be understood: {one_line(str(error))}") from error
            for name in (
                STATE,
                DISK,
                KEY,
                *((TARGETS,) if facts.machine.targets else ()),
            ):  # QEMU would take nearly anything
                if name not in facts.files or digest(self.directory / name) != facts.files[name].digest:
                    raise self._damaged(f"{name} is not what was saved")
        if not _stands_alone(self.disk):
            raise self._damaged(f"{DISK} needs other files")
        if problem := facts.machine.problem():
            raise self._damaged(f"{FACTS} tells of {problem}")
        if facts.crashed.pid < 1 or not _BOOT_ID.fullmatch(facts.boot_id):
            raise self._damaged(f"{FACTS} has a pid or an id of the boot that none can be")
        return facts

    def _damaged(self, problem: str) -> StoreError:
        hint = "the input of the crash is in the directory above; it may show the crash again"
        return StoreError(f"the capsule {self.directory} is damaged: {problem}", hint=hint)

    @property
    def disk(self) -> Path:
        """The path of the disk."""
        return self.directory / DISK

    @property
    def targets(self) -> Path:
        """The path of the disk with targets, if the guest has one."""
        return self.directory / TARGETS

    @property
    def key(self) -> Path:
        """The path of the private key."""
        return self.directory / KEY

    def state(self) -> Iterator[bytes]:
        """The whole guest in QEMU's format, piece by piece. Raises OSError."""
        import zstandard

        with (self.directory / STATE).open("rb") as stream:
            yield from zstandard.ZstdDecompressor().read_to_iter(stream, read_size=_CHUNK, write_size=_CHUNK)


def _stands_alone(disk: Path) -> bool:
    """Whether the disk is a qcow2 file that leads QEMU to no other file: see its docs/interop/qcow2.txt."""
    with disk.open("rb") as stream:
        header = stream.read(_FEATURES.stop)
    plain = header.startswith(_QCOW2) and not any(header[_BACKING])
    return plain and not int.from_bytes(header[_FEATURES], "big") & _EXTERNAL


def found_in(directory: Path) -> list[Path]:
    """The directories of capsules that are meant by this one: itself, or that of the crash, or those of the bucket."""
    for places in ([directory], [directory / NAME], sorted(directory.glob(f"*/{NAME}"))):
        if found := [place for place in places if (place / FACTS).is_file()]:
            return found
    return []
