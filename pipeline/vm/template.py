"""A template: a booted guest that was saved, so that instances can be made as copies of it, which are called clones.

The directory templates/BUILD of the store has template.json, which tells of the other files: `ram`, the guest's memory,
a sparse file; `state`, that of its devices, in QEMU's own format; `disk.qcow2`, what it had written over the prepared
disk; and `serial.log`, what it had said. Once they are published, nobody writes to them: a clone maps the memory
copy-on-write, and copies the rest. doubt.json beside them tells that a clone of this very template has failed.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, Self

from pipeline.builds.build import Build
from pipeline.errors import BootError, HostFault, InstanceBusy, KeyGone, StoreError, UsageError, WrongServer
from pipeline.host.deadline import utc_now
from pipeline.host.faults import host_faults
from pipeline.host.locks import locked
from pipeline.settings import Ready, Settings, Warm
from pipeline.store import document
from pipeline.store.digests import digest
from pipeline.store.publish import publish_json
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

SCHEMA = 1
"""The version of the formats of template.json and doubt.json; a sample of each is frozen in the tests."""

RAM, STATE, DISK, SERIAL = "ram", "state", "disk.qcow2", "serial.log"
"""The names of the files that belong to a template, beside template.json."""

_FACTS = "template.json"
_DOUBT = "doubt.json"
_BEFORE = ("spawn", "monitor")  # stages of a boot in which QEMU has nothing of the template but its memory's size
_PATIENCE = 5.0  # seconds; opening a template takes milliseconds, so that a longer lock is that of its maker


class NoTemplateError(Exception):
    """There is no template of which a clone could be made; the text says why, in one clause."""


@dataclass(frozen=True)
class SavedFile:
    """What template.json, or capsule.json, says of another file: its digest, and its size in bytes."""

    digest: str
    bytes: int


@dataclass(frozen=True)
class TemplateFacts:
    """The content of template.json, without its schema."""

    build: str
    """The name of the build."""
    boot_id: str
    """The id of the boot that was saved."""
    host_key: str | None
    """The guest's SSH host key, which its clones have too."""
    renews: bool
    """Whether a program in the guest waits to renew what clones must not share: see pipeline/vm/qemu/renewal.py."""
    qemu: str
    """QEMU's version."""
    seconds: float
    """How many seconds the boot took."""
    saved: str
    """When the guest was saved: ISO 8601 in UTC."""
    ram: int
    """The size of the memory in bytes."""
    files: Mapping[str, SavedFile]
    """The other files, by their names; the digest of the memory is in the record only, as it takes long."""

    def encode(self) -> dict[str, object]:
        """The facts as data for JSON, with the schema."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """The facts in the content of template.json. Raises ValueError if they are no facts of this schema."""
        return document.decode(text, cls, SCHEMA)


@dataclass(frozen=True)
class _Doubt:
    state: str
    why: str
    when: str


@dataclass(frozen=True)
class Template:
    """The files of a template in a directory, whether they exist or not."""

    directory: Path

    @property
    def file(self) -> Path:
        """The path of template.json, whose lock is that of the whole template."""
        return self.directory / _FACTS

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths of all files of the template, template.json first."""
        return (self.file, *(self.directory / name for name in (RAM, STATE, DISK, SERIAL)))

    def facts(self) -> TemplateFacts:
        """What template.json says. Raises OSError, or ValueError if it cannot be understood."""
        return TemplateFacts.decode(self.file.read_bytes())

    def doubt(self) -> str:
        """Why clones should not be made of this template: one has failed. "" if none has."""
        with suppress(OSError, ValueError, KeyError):
            doubt = document.decode((self.directory / _DOUBT).read_bytes(), _Doubt, SCHEMA)
            if self.facts().files[STATE].digest == doubt.state:
                return f"a clone of it failed at {one_line(doubt.when)}: {one_line(doubt.why)}"
        return ""

    def note_doubt(self, template: "OpenTemplate", why: str) -> None:
        """Note that a clone of `template` has failed, so that no more are made of it, if it is still this one.

        Raises StoreError, and InstanceBusy if another one is being made.
        """
        doubt = _Doubt(template.facts.files[STATE].digest, why, utc_now())
        with locked(self.file, _PATIENCE), suppress(OSError, ValueError, KeyError):
            if self.facts().files[STATE].digest == doubt.state:
                publish_json(self.directory / _DOUBT, {"schema": SCHEMA, **asdict(doubt)})


class OpenTemplate:
    """The files of a template, held open: they stay as they are even if another template takes their place.

    It is a context manager. Opening raises NoTemplateError if a file is missing or has another size than it should.
    """

    def __init__(self, template: Template) -> None:
        self._held = ExitStack()
        try:
            self.facts = template.facts()
            """What the template says of itself."""
            self._descriptors = {name: self._open(template.directory / name) for name in (RAM, STATE, DISK, SERIAL)}
        except (OSError, ValueError) as error:
            self._held.close()
            raise NoTemplateError(f"it cannot be read: {one_line(str(error))}") from error
        sizes = {RAM: self.facts.ram, **{name: one.bytes for name, one in self.facts.files.items()}}
        for name, descriptor in self._descriptors.items():
            if os.fstat(descriptor).st_size != sizes.get(name):  # QEMU would take a longer one, and make a missing one
                self._held.close()
                raise NoTemplateError(f"its file {name} has not the size that it had")

    def _open(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._held.callback(os.close, descriptor)
        return descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the files go."""
        self._held.close()

    @property
    def ram(self) -> int:
        """A descriptor of the memory."""
        return self._descriptors[RAM]

    def state(self) -> tuple[bytes, ...]:
        """The state of the devices, in one piece.

        Raises NoTemplateError if it is not what was saved: QEMU would not notice.
        """
        place = self._checked(STATE, self._place(STATE))
        return (place.read_bytes(),)

    def serial(self) -> bytes:
        """What the guest had said. Raises NoTemplateError if it is not what was saved."""
        return self._checked(SERIAL, self._place(SERIAL)).read_bytes()

    def copy_disk(self, to: Path) -> None:
        """Copy the disk. Raises NoTemplateError if it is not what was saved, and OSError."""
        shutil.copyfile(self._place(DISK), to)
        self._checked(DISK, to)

    def _place(self, name: str) -> Path:
        return Path(f"/proc/self/fd/{self._descriptors[name]}")

    def _checked(self, name: str, content: Path) -> Path:
        if digest(content) != self.facts.files[name].digest:
            raise NoTemplateError(f"its file {name} is not what was saved")
        return content


class Templates(Protocol):
    """Where a launcher gets the template for a clone."""

    def has_one(self) -> bool:
        """Whether a clone can be made at this moment, as far as can be told without waiting."""

    def open(self) -> OpenTemplate:
        """The template, if a clone can be made of it now. Raises NoTemplateError."""

    def failed(self, template: OpenTemplate, error: BootError) -> None:
        """Take note that a clone has failed. Raises `error` if no other boot is to be tried in its place."""


@dataclass(frozen=True)
class PublishedTemplate:
    """The template of a build in the store, as Templates: when a clone fails, the guest is booted instead."""

    template: Template
    unfit: Callable[[], str | None]
    """Why the template must not be used, other than for doubt: it is stale, or missing; None if nothing speaks against
    it. It is called while the template is locked."""

    def has_one(self) -> bool:
        """See Templates."""
        return not (self.unfit() or self.template.doubt())

    def open(self) -> OpenTemplate:
        """See Templates."""
        self._require_fit()  # before the lock too: its maker may hold that for long
        try:
            with locked(self.template.file, _PATIENCE):
                self._require_fit()
                return OpenTemplate(self.template)
        except InstanceBusy as error:
            raise NoTemplateError("it is being made just now") from error

    def _require_fit(self) -> None:
        if why := self.unfit() or self.template.doubt():
            raise NoTemplateError(why)

    def failed(self, template: OpenTemplate, error: BootError) -> None:
        """See Templates. What the host or somebody else did to the clone raises no doubt about its template."""
        if isinstance(error, HostFault | KeyGone | WrongServer) or error.stage in _BEFORE:
            return
        try:
            self.template.note_doubt(template, one_line(str(error)))
        except (InstanceBusy, StoreError) as problem:  # logged, not raised: the guest is to be booted
            log.warning("that clones of this template fail could not be noted: %s", problem)


def warm(wanted: Warm, ready: Ready, settings: Settings, build: Build) -> Warm:
    """Whether clones are made where `[boot] warm` or its like is `wanted`, and guests count as ready by `ready`.

    `auto` means never for guests that cannot renew themselves: their clones share more (docs/warm-boot.md).
    Raises UsageError if clones are always wanted, and cannot be made.
    """
    why = ""
    if ready == "marker":
        why = "nothing can prove a clone ready without SSH"
    elif settings.qemu.user is not None:
        why = "[qemu] user is set, and QEMU as another user cannot be given the state of a saved guest"
    if wanted == "always" and why:
        raise UsageError(f"no clone can be made: {why}", hint="let it be auto or never: --warm, or [boot] warm")
    return "never" if why or (wanted == "auto" and not build.renews) else wanted


def saved_files(directory: Path, *names: str) -> dict[str, SavedFile]:
    """What is to be said of files that were just saved in `directory`, by their names. Raises StoreError."""
    with host_faults("reading what was saved"):
        paths = {name: directory / name for name in names}
        return {name: SavedFile(digest(path), path.stat().st_size) for name, path in paths.items()}
