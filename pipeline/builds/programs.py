"""The choice of programs that prepare images: the build's own `zbi` and `fvm`, or Topcoat's.

A program of the build is used if it passes a trial: it works on a tiny image, and the outcome is proved like that of a
real one. A success is remembered by the digest of the program. An honest `fvm` may refuse the tiny disk: those of 2018
check the file systems in it, and there are none. Its trial is then a copy of the build's own disk, and the outcome is
remembered for the two together, also if it is a refusal. An `fvm` from before 2021 passes too, but silently moves the
data of some disks to where nobody finds it; such a disk is extended by Topcoat's own program.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.builds.build import Build
from pipeline.errors import (
    ImageError,
    InstanceBusy,
    MissingResource,
    StoreError,
    ToolError,
    ToolFailed,
    ToolLied,
    TopcoatError,
)
from pipeline.host.faults import host_faults
from pipeline.host.locks import locked
from pipeline.host.resources import free_bytes
from pipeline.host.tools import Tool
from pipeline.settings import Settings, ToolChoice
from pipeline.store import document
from pipeline.store.publish import publish_json
from pipeline.text.printable import one_line, tail

OWN = {"zbitool": "pipeline.images.zbi", "fvm": "pipeline.images.fvm"}
"""The modules of Topcoat's own programs, by the keys that they can serve."""

SCHEMA = 2
"""The schema of tools.json. Tests hold a frozen sample."""

REFUSED = "refused: "
"""The start of the verdict on an `fvm` that does not work on a disk; the reason follows."""

_TRIAL_LIMIT = 10.0  # seconds
_NOT_THE_TOOL = range(126, 193)  # exit codes of a shell or loader: the program did not run, or was ended by a signal
_MORE = 64 << 20
_TARGET = "data/trial"
_MOMENT = 10.0  # seconds for another process to write its verdict


def settle(build: Build, settings: Settings, digest_of: Callable[[Path], str]) -> Build:
    """The build with its programs decided, as `[tools] zbi` and `fvm` say.

    `digest_of` returns the digest of a file. This may run the build's programs, at most 10 s each time, and an `fvm`
    that refuses the tiny disk once more, on a copy of the build's disk, for as long as `[tools] timeout` allows.
    Verdicts are remembered in the store's cache.
    """
    choices: Mapping[str, ToolChoice] = {"zbitool": settings.tools.zbi, "fvm": settings.tools.fvm}
    own, why = dict(build.own_tools), dict(build.own_why)
    for key, choice in choices.items():
        if key in own or choice == "build":
            continue
        reason = "[tools] says so" if choice == "builtin" else _unfit(build, key, settings, digest_of)
        if reason:
            own[key] = Tool.module(key, OWN[key])
            why[key] = reason
    return replace(build, own_tools=own, own_why=why)


def _unfit(build: Build, key: str, settings: Settings, digest_of: Callable[[Path], str]) -> str:
    """Why the build's program for `key` is not used; "" if it is."""
    try:
        verdict = _verdict(build, build.tool(key), settings, digest_of)
    except MissingResource as error:
        return f"{error.message}"
    except TopcoatError as error:
        verdict = REFUSED + _reason(error)
    if verdict.startswith(REFUSED):
        return f"the build's does not work: {verdict.removeprefix(REFUSED)}"
    return _unsafe(build) if verdict == "old" else ""


def _reason(error: TopcoatError) -> str:
    said = tail(error.detail.partition("\n")[2], 3) if isinstance(error, ToolError) else ""
    return error.message + (f": {one_line(said)}" if said else "")


def _verdict(build: Build, tool: Tool, settings: Settings, digest_of: Callable[[Path], str]) -> str:
    """The verdict of the tool's trial, now or an earlier time. Raises what the trial raises."""
    cache, disk = settings.store.cache / "tools.json", build.path("blk")
    digest, known = _digest(tool.files[0], digest_of), _known(cache)
    if digest in known:
        return known[digest]
    if any(pair.startswith(f"{digest} ") for pair in known) and disk.is_file():
        pair = f"{digest} {_digest(disk, digest_of)}"
        if pair in known:
            return known[pair]
    try:
        verdict = TRIALS[tool.name](tool)
    except ToolFailed as error:
        if tool.name != "fvm" or not disk.is_file() or error.code in _NOT_THE_TOOL:
            raise
        return _verdict_on(disk, tool, settings, f"{digest} {_digest(disk, digest_of)}")
    with suppress(StoreError, InstanceBusy), locked(cache, _MOMENT):  # then it is tried again next time
        _remember(cache, digest, verdict)
    return verdict


def _verdict_on(disk: Path, fvm: Tool, settings: Settings, pair: str) -> str:
    """The verdict on an `fvm` and a disk: one process tries them, the others wait for it."""
    cache = settings.store.cache / "tools.json"
    with locked(cache):
        known = _known(cache)
        if pair not in known:
            known[pair] = _try_fvm_on(fvm, disk, settings)
            with suppress(StoreError):
                _remember(cache, pair, known[pair])
        return known[pair]


@dataclass(frozen=True)
class _Verdicts:
    tools: dict[str, str]


def _known(cache: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        return document.decode(cache.read_bytes(), _Verdicts, SCHEMA).tools
    return {}


def _remember(cache: Path, key: str, verdict: str) -> None:
    publish_json(cache, {"schema": SCHEMA, "tools": {**_known(cache), key: verdict}})


def _digest(file: Path, digest_of: Callable[[Path], str]) -> str:
    try:
        return digest_of(file)
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror}", hint="may it be read?") from error


def _try_fvm_on(tool: Tool, disk: Path, settings: Settings) -> str:
    """Extend a copy of the build's disk by a little. Returns "disk", or a refusal that another trial would not change.

    Raises ToolError or StoreError for faults that may pass.
    """
    length = (disk.stat().st_size // _MORE + 2) * _MORE
    try:
        _extend_copy(tool, disk, length, settings)
    except (ToolLied, ImageError) as error:
        return REFUSED + _reason(error)
    except ToolFailed as error:
        short = free_bytes(settings.store.cache) < 2 * length  # the program may make a copy of its own
        if short or error.code < 0 or error.code in _NOT_THE_TOOL:
            raise
        return REFUSED + _reason(error)
    return "disk"


def _extend_copy(tool: Tool, disk: Path, length: int, settings: Settings) -> None:
    from pipeline.builds.prepare import copy_disk, extend
    from pipeline.builds.proof import prove_disk

    cache, limit = settings.store.cache, settings.tools.timeout
    with host_faults("trying the build's fvm"):
        # Named like the directories that publish makes, so that topcoat gc finds what a kill leaves of it
        made = tempfile.TemporaryDirectory(dir=cache, prefix=".fvm-trial.", suffix=".tmp")
    with made as name:
        copy = Path(name) / disk.name
        copy_disk(disk, copy, limit)
        extend(tool, copy, str(length), limit)
        prove_disk(tool, copy, disk, length)


def try_zbi(tool: Tool) -> str:
    """Try a `zbi` on a tiny image. Returns "current". Raises ToolError if the outcome is not as it should be."""
    from pipeline.builds.prepare import add_file
    from pipeline.builds.proof import prove_initrd
    from pipeline.images.zbi import write_tiny

    with tempfile.TemporaryDirectory(prefix="topcoat-trial-") as name:
        source, output, content = (Path(name) / word for word in ("in.zbi", "out.zbi", "content"))
        content.write_bytes(b"trial")
        write_tiny(source, {"data/before": content})
        add_file(tool, source, output, _TARGET, content, _TRIAL_LIMIT)
        prove_initrd(tool, output, source, "x64", _TARGET, b"trial")
    return "current"


def try_fvm(tool: Tool) -> str:
    """Try an `fvm` on two tiny disks, one of which old programs do not understand.

    Returns "current" if both come out as they should, "old" if only the other one does. Raises ToolError if that does
    not either.
    """
    _try_extending(tool, length=8 << 20)
    try:
        _try_extending(tool, max_disk_size=64 << 20)
    except ToolError:
        return "old"
    return "current"


def _try_extending(tool: Tool, **geometry: int) -> None:
    from pipeline.builds.prepare import extend
    from pipeline.builds.proof import prove_disk
    from pipeline.images import fvm

    with tempfile.TemporaryDirectory(prefix="topcoat-trial-") as name:
        source, disk = Path(name) / "before.blk", Path(name) / "fvm.blk"
        with source.open("wb") as stream:
            fvm.create(stream, 32 << 10, {"blobfs": b"1" * 100_000, "data": b"2" * 50_000}, **geometry)
        shutil.copyfile(source, disk)
        extend(tool, disk, "128M", _TRIAL_LIMIT)
        prove_disk(tool, disk, source, 128 << 20)


TRIALS: Mapping[str, Callable[[Tool], str]] = {"zbitool": try_zbi, "fvm": try_fvm}


def _unsafe(build: Build) -> str:
    """Why an `fvm` from before 2021 would lose data of the build's disk; "" if it would not.

    It derives the size of the tables, and so the place of the data, from the size of the file, not from the header.
    """
    from pipeline.images import fvm

    disk = build.path("blk")
    try:
        with disk.open("rb") as stream:
            header = fvm.FvmHeader.decode(stream.read(fvm.BLOCK))
        size = disk.stat().st_size
    except (OSError, ImageError):
        return ""  # whoever extends the disk gives a better error
    table = -(-8 * (size // header.slice_size) // fvm.BLOCK) * fvm.BLOCK
    if (header.allocation_table_size, header.partition_size) == (table, size):
        return ""
    return f"the build's is too old for {disk.name}: it would look for the data in other places than its header says"
