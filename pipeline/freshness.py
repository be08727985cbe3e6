"""Whether an artifact is what a run would make today, and if not, why.

Beside each artifact lies its record, `<artifact>.made.json`: what it was made of, by which tools, and what came out.
It is written last: no record, no artifact. Digests are compared, never times, so a touched file changes nothing, and a
clock that is wrong cannot hurt. No path of the machine is in a record, so a store can be moved.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.digests import Digests
from pipeline.publish import publish_json

SCHEMA = 1
"""Of records. Tests hold a frozen sample."""


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
        """From JSON. Raises KeyError, TypeError or AttributeError if a field is missing or wrong."""
        maps = ({str(name): str(value) for name, value in data[field].items()} for field in _MAPS)
        return cls(str(data["task"]), int(data["version"]), *maps)


_MAPS = ("parameters", "inputs", "tools")


@dataclass(frozen=True)
class Output:
    """One file that came out."""

    digest: str
    bytes: int


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

    def encode(self) -> dict[str, object]:
        """As JSON: the fields of the key at the top level, and the schema."""
        data = asdict(self)
        return {"schema": SCHEMA, **data.pop("key"), **data}

    @classmethod
    def decode(cls, data: Any) -> "Record":
        """The reverse. Raises ValueError for anything else than a record of this schema."""
        try:
            if data["schema"] != SCHEMA:
                raise ValueError(f"record of schema {data['schema']}")
            outputs = {str(name): Output(**output) for name, output in data["outputs"].items()}
            return cls(Key.decode(data), outputs, str(data["ended"]), float(data["seconds"]), str(data["host"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("record damaged") from error


def record_path(artifact: Path) -> Path:
    """Where the record of an artifact lies."""
    return artifact.with_name(artifact.name + ".made.json")


def read(artifact: Path) -> Record | None:
    """The record of an artifact, or None if there is none. Raises ValueError if it cannot be understood."""
    try:
        text = record_path(artifact).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError("record damaged") from error
    return Record.decode(data)


def write(artifacts: tuple[Path, ...], key: Key, ended: str, seconds: float, digests: Digests) -> None:
    """Write the record of the artifacts that were just made: the moment from which they count."""
    outputs = {path.name: Output(digests.of(path), path.stat().st_size) for path in artifacts}
    record = Record(key, outputs, ended, round(seconds, 3), platform.node())
    publish_json(record_path(artifacts[0]), record.encode())


def short(digest: str) -> str:
    """A digest for people."""
    kind, _, value = digest.partition(":")
    return f"{kind}:{value[:8]}…" if value else digest


def changed(before: Key, now: Key) -> str | None:
    """The first difference between what something was made of and what it would be made of now."""
    if before.task != now.task:
        return f"made by {before.task}"
    if before.version != now.version:
        return f"version {before.version} -> {now.version}"
    return (
        _difference("parameter {} {} -> {}", before.parameters, now.parameters, str)
        or _difference("tool {} changed: {} -> {}", before.tools, now.tools, short)
        or _difference("input {} changed: {} -> {}", before.inputs, now.inputs, short)
    )


def _difference(words: str, before: Mapping[str, str], now: Mapping[str, str], shown: Any) -> str | None:
    for name in sorted({**before, **now}):
        if before.get(name) != now.get(name):
            return words.format(name, shown(before.get(name, "none")), shown(now.get(name, "none")))
    return None


def damaged(record: Record, artifacts: tuple[Path, ...], digests: Digests) -> str | None:
    """What has become of the artifacts since they were made: the first that is missing or changed."""
    if set(record.outputs) != {path.name for path in artifacts}:
        return "other files were made"
    for path in artifacts:
        output = record.outputs[path.name]
        try:
            if path.stat().st_size != output.bytes or digests.of(path) != output.digest:
                return f"output {path.name} changed"
        except OSError:
            return f"output {path.name} missing"
    return None
