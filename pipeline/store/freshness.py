"""Whether an artifact is what a run would make now (fresh) or not (stale), and why.

Beside each artifact lies its record, `<artifact>.made.json`: what it was made of, by which tools, and what came out.
The record is written last: an artifact without one is stale. Digests are compared, never times, so touching a file has
no effect, and a wrong clock does no harm. A record contains no path of the machine, so a store can be moved.
"""

import os
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.store import document
from pipeline.store.digest_cache import DigestCache
from pipeline.store.publish import publish_json

SCHEMA = 1
"""The version of the format of records; a sample of it is frozen in the tests."""

_LONGEST = 64 << 20  # bytes of a record; one with 100,000 files has about 15 MB


@dataclass(frozen=True)
class Key:
    """All that an artifact depends on.

    In the mappings, names are chosen by Topcoat, and values are texts or digests; none is a path of the machine.
    """

    task: str
    version: int
    parameters: Mapping[str, str]
    inputs: Mapping[str, str]
    tools: Mapping[str, str]

    def without(self, names: Collection[str]) -> "Key":
        """The same key without the inputs NAME and NAME/FILE, for each NAME in `names`."""
        kept = {name: digest for name, digest in self.inputs.items() if name.partition("/")[0] not in names}
        return replace(self, inputs=kept)


@dataclass(frozen=True)
class RecordedFile:
    """What a record says of one output file: its digest, and its size in bytes."""

    digest: str
    bytes: int


Proof = Mapping[str, str | int]
"""The result of the checks that were made before the output files counted: what was found, by name, for people."""


@dataclass(frozen=True)
class Record:
    """The record of an artifact: what it was made of, what came out, and the circumstances."""

    key: Key
    outputs: Mapping[str, RecordedFile]
    """The output files by their names."""
    ended: str
    """When the making ended: ISO 8601 in UTC."""
    seconds: float
    """How long the making took, in seconds."""
    host: str
    """The name of the host that made it."""
    proof: Proof | None = None
    """The result of the checks; None if the files were accepted without any."""

    def encode(self) -> dict[str, object]:
        """The record as data for JSON, with the schema; the key's fields are at the top level, and no field is null."""
        data = {name: value for name, value in asdict(self).items() if value is not None}
        return {"schema": SCHEMA, **data.pop("key"), **data}

    @classmethod
    def decode(cls, text: bytes) -> "Record":
        """The record in the content of its file. Raises ValueError if it is no record of this schema."""
        try:
            data = document.content(text, SCHEMA)
            return document.convert({**data, "key": data}, cls)
        except document.OtherSchema as error:
            raise ValueError(f"record of schema {error.schema}") from error
        except ValueError as error:
            raise ValueError("record damaged") from error


@dataclass(frozen=True)
class Reason:
    """Why a run would make an artifact; `str(reason)` is one line with all causes in a row."""

    text: str
    """The reason alone, short and on one line."""
    cause: "Reason | None" = None
    """Why an input of the artifact is stale; if the input comes out as it was, the artifact need not be made."""

    @property
    def certain(self) -> bool:
        """Whether the artifact would be made even if its stale inputs came out as they were."""
        return self.cause is None

    def __str__(self) -> str:
        return f"{self.text}: {self.cause}" if self.cause else self.text


def record_path(artifact: Path) -> Path:
    """The path of an artifact's record."""
    return Path(f"{artifact}.made.json")


def read(artifact: Path) -> Record | None:
    """The record of an artifact, or None if there is none. Raises ValueError if it cannot be understood."""
    try:
        text = _read_small(f"{artifact}.made.json")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"record cannot be read: {error.strerror}") from error
    return Record.decode(text)


def _read_small(path: str) -> bytes:
    # Takes half the time of open(), and there may be thousands of records
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, min(os.fstat(descriptor).st_size, _LONGEST))
    finally:
        os.close(descriptor)


def write(
    artifact: Path,
    files: Mapping[str, Path],
    key: Key,
    ended: str,
    seconds: float,
    digests: DigestCache,
    proof: Proof | None = None,
) -> None:
    """Write the record of artifacts that were just made together; from this moment on they count.

    The record lies beside the first artifact, `artifact`; `files` are all files of the artifacts, by their names in
    it. `ended` is ISO 8601 in UTC; `seconds` is how long the making took.
    """
    outputs = {name: RecordedFile(*digests.look(path)) for name, path in files.items()}
    record = Record(key, outputs, ended, round(seconds, 3), platform.node(), proof)
    publish_json(record_path(artifact), record.encode())


def short(digest: object) -> str:
    """Shorten a digest to eight digits, for people; a text without ":" stays as it is."""
    kind, _, value = str(digest).partition(":")
    return f"{kind}:{value[:8]}…" if value else kind


def changed(before: Key, now: Key) -> str | None:
    """The first difference between the key of an artifact and the key that it would have now; None if they agree."""
    if before == now:
        return None
    if before.task != now.task:
        return f"made by {before.task}"
    if before.version != now.version:
        return f"version {before.version} -> {now.version}"
    return (
        _difference("parameter {} {} -> {}", before.parameters, now.parameters, str)
        or _difference("tool {} changed: {} -> {}", before.tools, now.tools, short)
        or _difference("input {} changed: {} -> {}", before.inputs, now.inputs, short)
    )


def _difference(
    words: str, before: Mapping[str, str], now: Mapping[str, str], shown: Callable[[object], str]
) -> str | None:
    for name in sorted({**before, **now}):
        if before.get(name) != now.get(name):
            return words.format(name, shown(before.get(name, "none")), shown(now.get(name, "none")))
    return None


def damaged(record: Record, files: Mapping[str, Path], digests: DigestCache) -> str | None:
    """Which file of the artifacts is missing, new or changed since their record was written: the first one, or None."""
    for name in sorted(record.outputs.keys() - files.keys()):
        return f"output {name} missing"
    for name in sorted(files.keys() - record.outputs.keys()):
        return f"output {name} is new"
    for name, path in files.items():
        output = record.outputs[name]
        try:
            same = digests.look(path) == (output.digest, output.bytes)
        except FileNotFoundError:
            return f"output {name} missing"
        except OSError as error:
            return f"output {name} cannot be read: {error.strerror or error}"
        if not same:
            return f"output {name} changed"
    return None
