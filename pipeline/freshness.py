"""Whether an artifact is what a run would make today, and if not, why.

Beside each artifact lies its record, `<artifact>.made.json`: what it was made of, by which tools, and what came out.
It is written last: without a record an artifact is stale. Digests are compared, never times, so a touched file changes
nothing, and a clock that is wrong cannot hurt. No path of the machine is in a record, so a store can be moved.
"""

import json
import os
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.digest_cache import DigestCache
from pipeline.publish import publish_json

SCHEMA = 1
"""Of records. Tests hold a frozen sample."""

_LONGEST = 1 << 20  # bytes of a record


@dataclass(frozen=True)
class Key:
    """All that an artifact depends on. Names are ours, values are texts or digests; no paths."""

    task: str
    version: int
    parameters: Mapping[str, str]
    inputs: Mapping[str, str]
    tools: Mapping[str, str]

    @classmethod
    def decode(cls, data: Any) -> "Key":
        """From JSON. Raises KeyError or TypeError if a field is missing or wrong."""
        maps = [data["parameters"], data["inputs"], data["tools"]]
        if not all(isinstance(field, dict) for field in maps):
            raise TypeError("no mapping")
        return cls(data["task"], data["version"], *maps)

    def without(self, names: Collection[str]) -> "Key":
        """The same, but for the inputs NAME and NAME/FILE of these names."""
        kept = {name: digest for name, digest in self.inputs.items() if name.partition("/")[0] not in names}
        return replace(self, inputs=kept)


@dataclass(frozen=True)
class Output:
    """One file that came out."""

    digest: str
    bytes: int


Proof = Mapping[str, str | int]
"""What was looked into before the files counted, and what was found: names of ours, for people."""


@dataclass(frozen=True)
class Record:
    """What is known of the making of an artifact."""

    key: Key
    outputs: Mapping[str, Output]
    """By file name."""
    ended: str
    """UTC, ISO 8601."""
    seconds: float
    """What it cost."""
    host: str
    proof: Proof | None = None
    """None: the files were believed as they came."""

    def encode(self) -> dict[str, object]:
        """As JSON: the fields of the key at the top level, and the schema. Without a proof, there is no such field."""
        data = {name: value for name, value in asdict(self).items() if value is not None}
        return {"schema": SCHEMA, **data.pop("key"), **data}

    @classmethod
    def decode(cls, data: Any) -> "Record":
        """The reverse. Raises ValueError for anything else than a record of this schema."""
        try:
            schema = data["schema"]
            if schema == SCHEMA:
                outputs = {name: Output(**output) for name, output in data["outputs"].items()}
                ended, host, proof = str(data["ended"]), str(data["host"]), data.get("proof")
                if not isinstance(proof, dict | None):
                    raise TypeError("no mapping")
                return cls(Key.decode(data), outputs, ended, float(data["seconds"]), host, proof)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError("record damaged") from error
        raise ValueError(f"record of schema {schema}")


@dataclass(frozen=True)
class Reason:
    """Why something would be made. `text` is short, `str(reason)` goes on to what lies behind it; one line both."""

    text: str
    cause: "Reason | None" = None
    """Why that is stale which this is made of. If it comes out as it was, this is not made."""

    @property
    def certain(self) -> bool:
        """Whether it would be made whatever comes out of what it is made of."""
        return self.cause is None

    def __str__(self) -> str:
        return f"{self.text}: {self.cause}" if self.cause else self.text


def record_path(artifact: Path) -> Path:
    """Where the record of an artifact lies."""
    return Path(f"{artifact}.made.json")


def read(artifact: Path) -> Record | None:
    """The record of an artifact, or None if there is none. Raises ValueError if it cannot be understood."""
    try:
        text = _read_small(f"{artifact}.made.json")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"record cannot be read: {error.strerror}") from error
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError("record damaged") from error
    return Record.decode(data)


def _read_small(path: str) -> bytes:
    # Half the time of open(), and there may be thousands
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _LONGEST)
    finally:
        os.close(descriptor)


def write(
    artifacts: tuple[Path, ...],
    key: Key,
    ended: str,
    seconds: float,
    digests: DigestCache,
    proof: Proof | None = None,
) -> None:
    """Write the record of the artifacts that were just made: the moment from which they count."""
    outputs = {path.name: Output(*digests.look(path)) for path in artifacts}
    record = Record(key, outputs, ended, round(seconds, 3), platform.node(), proof)
    publish_json(record_path(artifacts[0]), record.encode())


def short(digest: object) -> str:
    """A digest for people."""
    kind, _, value = str(digest).partition(":")
    return f"{kind}:{value[:8]}…" if value else kind


def changed(before: Key, now: Key) -> str | None:
    """The first difference between what something was made of and what it would be made of now."""
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


def damaged(record: Record, artifacts: tuple[Path, ...], digests: DigestCache) -> str | None:
    """What has become of the artifacts since they were made: the first that is missing or changed."""
    names = {path.name for path in artifacts}
    for name in sorted(record.outputs.keys() - names):
        return f"output {name} missing"
    for name in sorted(names - record.outputs.keys()):
        return f"output {name} is new"
    for path in artifacts:
        output = record.outputs[path.name]
        try:
            same = digests.look(path) == (output.digest, output.bytes)
        except FileNotFoundError:
            return f"output {path.name} missing"
        except OSError as error:
            return f"output {path.name} cannot be read: {error.strerror or error}"
        if not same:
            return f"output {path.name} changed"
    return None
