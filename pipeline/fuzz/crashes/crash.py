"""Single crashes: as they are given to the store, and as they are kept in it.

The directory of a crash has `input`, `output.txt`, `serial.txt` and `crash.json`. It appears whole or not at all, and
is never changed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pipeline.fuzz.crashes import rules
from pipeline.fuzz.crashes.report import UNKNOWN, CrashReport
from pipeline.host.faults import host_faults
from pipeline.store import document
from pipeline.store.publish import as_json, publish
from pipeline.text.printable import one_line, printable

SCHEMA = 2
"""The version of crash.json's format. Tests hold a frozen sample of it."""

FILES = ("input", "output.txt", "serial.txt", "crash.json")
"""The files of a crash."""

OUTPUT_LIMIT = 1 << 18
"""The most bytes of a run's output that are kept in output.txt: half from its beginning, half from its end."""

SERIAL_LIMIT = 1 << 16
"""The most bytes of the guest's console that are kept in serial.txt, from its end."""

_LONGEST_TEXT = 1000

State = Literal["new", "known", "back"]
"""What a crash tells of its bucket.

new: nothing was known of it. known: it was seen before. back: it was fixed in an earlier build, and was not seen since.
"""


@dataclass(frozen=True)
class Crash:
    """A crash, as it is given to the store. Nothing in it needs to be fit to print."""

    fuzzer: str
    """The full name of the fuzzer, PACKAGE/FUZZER."""
    build: str
    """The digest of the fuzzer as it was built."""
    campaign: str
    """The name of the campaign."""
    slice: int
    attempt: int
    boot_id: str
    """The id of the guest's boot."""
    seed: int
    options: tuple[str, ...]
    """The options with which the fuzzer ran."""
    environment: Mapping[str, str]
    """The variables that the fuzzer was given."""
    artifact: str
    """The name of the artifact's file in the guest."""
    input: bytes
    output: bytes
    """The output of the run."""
    serial: bytes
    """What the guest wrote to its console, or the end of it."""
    report: CrashReport | None
    """What the output told of the crash; None if nothing."""


@dataclass(frozen=True)
class StoredCrash:
    """What has become of a crash that was added."""

    bucket: str
    """The slug of its bucket."""
    state: State
    """What it tells of the bucket."""
    directory: Path | None
    """Where the crash is kept, or one with the same input was already; None if it was only counted."""
    same: bool
    """Whether the bucket already had a crash with the same input."""

    @property
    def new(self) -> bool:
        """Whether the bucket is new."""
        return self.state == "new"


@dataclass(frozen=True)
class CrashFacts:
    """The content of crash.json. All text in it is fit to print."""

    fuzzer: str
    build: str
    campaign: str
    slice: int
    attempt: int
    boot_id: str
    seed: int
    options: tuple[str, ...]
    environment: Mapping[str, str]
    artifact: str
    sha256: str
    """The SHA-256 of the input."""
    size: int
    """The bytes of the input."""
    frames: tuple[str, ...]
    """What tells its bucket from others, by the rule of that time."""
    seen: str
    """When it was seen, in UTC."""
    report: CrashReport | None
    """What the output told of the crash, but for the input."""


@dataclass(frozen=True)
class KeptCrash:
    """A crash in its directory. Reading its files raises StoreError."""

    directory: Path
    facts: CrashFacts

    @property
    def number(self) -> int:
        """Its number in its bucket."""
        return int(self.directory.name)

    @property
    def file(self) -> Path:
        """The path of the input."""
        return self.directory / "input"

    def input(self) -> bytes:
        """Read the input."""
        return self._read("input")

    def output(self) -> str:
        """Read the output of the run, which is fit to print."""
        return self._read("output.txt").decode(errors="replace")

    def _read(self, name: str) -> bytes:
        with host_faults(f"reading a crash of {self.facts.fuzzer}"):
            return (self.directory / name).read_bytes()

    @classmethod
    def at(cls, directory: Path) -> "KeptCrash":
        """The crash in this directory. Raises OSError, and ValueError if its crash.json cannot be understood."""
        return cls(directory, document.decode((directory / "crash.json").read_bytes(), CrashFacts, SCHEMA))


def facts_of(crash: Crash, seen: str) -> CrashFacts:
    """What crash.json tells of the crash; `seen` is when it was seen, in UTC."""
    facts = {name: value for name, value in vars(crash).items() if name not in ("input", "output", "serial", "report")}
    report = None if crash.report is None else asdict(replace(crash.report, base64=None))
    told = {"report": report, "frames": rules.key_frames(crash.report or UNKNOWN), "seen": seen}
    known = {"sha256": sha256(crash.input).hexdigest(), "size": len(crash.input)}
    return document.convert(clean({**facts, **told, **known}), CrashFacts)


def keep(directory: Path, crash: Crash, facts: CrashFacts) -> None:
    """Make the directory of a crash. On return it is on the disk. Raises StoreError."""
    told = asdict(facts)
    if told["report"]:
        del told["report"]["base64"]
    with publish(directory) as made:
        made.mkdir()
        (made / "input").write_bytes(crash.input)
        (made / "output.txt").write_bytes(printable(_ends(crash.output)).encode())
        (made / "serial.txt").write_bytes(printable(crash.serial[-SERIAL_LIMIT:]).encode())
        (made / "crash.json").write_bytes(as_json({"schema": SCHEMA, **told}))


def clean(value: Any) -> Any:
    """Return the value with each text in it on one line, printable and not too long."""
    if isinstance(value, str):
        return one_line(value, _LONGEST_TEXT)
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list | tuple) else value


def _ends(output: bytes) -> bytes:
    missing, half = len(output) - OUTPUT_LIMIT, OUTPUT_LIMIT // 2
    return output if missing <= 0 else output[:half] + b"\n[%d bytes are left out here]\n" % missing + output[-half:]
