"""Proof that an image holds what it should, and still all that went into it, whichever program made it.

A program that ends with 0 may have made nothing of use all the same: an old `fvm` moves data to where nobody finds it.
Every proof reads all of the image and of its source, in little memory, and returns what it has found.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ImageDamaged, ImageError, ToolLied
from pipeline.host.faults import image_faults
from pipeline.host.tools import Tool
from pipeline.images.part import Part
from pipeline.store.freshness import Proof
from pipeline.text.printable import printable

if TYPE_CHECKING:
    from pipeline.images.fvm import Metadata

log = logging.getLogger("topcoat")

_OFF = "if you know better: [tools] proof = off"


def prove_initrd(
    tool: Tool, image: Path, source: Path, arch: str, path: str, content: bytes, *, strict: bool = False
) -> Proof:
    """Raise ToolLied unless `image` is the boot image `source` with one more file.

    A ZBI must start with the kernel of `arch`, have one BOOTFS, valid CRCs (except for those that are wrong in `source`
    too), the file `path` with exactly this content, and everything else of `source` with equal content. An initramfs
    must hold the file and be `source` otherwise. Raises ImageError if `source` itself cannot be read. A wrong CRC in
    it, which does not show in `image` any more, is refused with ImageDamaged if `strict`; else it is told in a warning
    and is the `doubt` of the proof.
    """
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_look, source)
        try:
            after = _look(image)
        except ImageError as error:
            raise _lied(tool, image, error.message) from error
        before = reading.result()
    _require_sound(source, before)
    doubt = _doubt(source, before, strict=strict)
    if after.kind != before.kind:
        raise _lied(tool, image, f"it is no {before.kind}, but {after.kind}")
    wanted = _digest(content)
    if before.kind == "ZBI":
        # The program copies other items with their faults, which are not its own
        problems = _zbi_problems(before, after, arch, path, wanted)
    else:
        problems = _initramfs_problems(before, after, path, wanted)
    if problem := next(problems, None):
        raise _lied(tool, image, problem)
    files = sum(part.kind == "file" for part in after.walk())
    return {"image": after.kind, "parts": len(after.parts), "files": files, **({"doubt": doubt} if doubt else {})}


def _doubt(source: Path, before: Part, *, strict: bool) -> str:
    """The first wrong CRC of the source; "" if all are right. It is told in a warning, or raised if `strict`."""
    from pipeline.images.zbi.container import WRONG_CRC

    problems = ((part.name, problem) for part in before.parts for problem in part.problems)
    doubt = next((f"{name}: {problem}" for name, problem in problems if problem.startswith(WRONG_CRC)), "")
    if doubt and strict:
        hint = "build it anew, or fetch it once more; [tools] proof = auto only warns of it"
        raise ImageDamaged(f"{doubt} ([tools] proof = on)", hint=hint).about(str(source))
    if doubt:
        log.warning("%s may be damaged: %s; [tools] proof = on refuses it", source, doubt)
    return doubt


def _require_sound(source: Path, before: Part) -> None:
    """Raise ImageDamaged if the source's BOOTFS is damaged: nobody could say then whether its files are still there."""
    from pipeline.images.zbi.container import OF_HEADERS

    for part in before.parts:
        problem = next((problem for problem in part.problems if not problem.startswith(OF_HEADERS)), None)
        if part.name == "BOOTFS" and problem:
            raise ImageDamaged(
                f"BOOTFS: {problem}", offset=part.offset, hint="build it anew, or fetch it once more"
            ).about(str(source))


def _look(image: Path) -> Part:
    from pipeline.images import kinds

    return kinds.inspect(image)


def _digest(content: bytes) -> str:
    from blake3 import blake3

    return f"b3:{blake3(content).hexdigest()}"


def _zbi_problems(before: Part, after: Part, arch: str, path: str, wanted: str) -> Iterator[str]:
    from pipeline.images.zbi import KERNELS, item_name

    yield from _new_problems(before, after)
    kernel = item_name(KERNELS[arch])
    if not after.parts or after.parts[0].name != kernel:
        yield f"it does not start with a {kernel}, but with {after.parts[0].name if after.parts else 'nothing'}"
    count = len(_named(after, "BOOTFS"))
    if count != 1:
        yield f"it has {count} BOOTFS items"
    yield from _file_problems(_files(after), path, wanted)
    others = Counter({key: number for key, number in _files(before).items() if key[0] != path})
    yield from _changes(others, Counter({key: number for key, number in _files(after).items() if key[0] != path}))
    if _others(before) != _others(after):
        yield "other items than the BOOTFS are not what they were"
    if _words(before) != _words(after):
        yield "the command line in it is not what it was"


def _new_problems(before: Part, after: Part) -> Iterator[str]:
    """The problems of the image, except for those that the same item had before."""
    known = {(part.name, part.digest, problem) for part in before.walk() for problem in part.problems}
    for part in after.walk():
        for problem in part.problems:
            if (part.name, part.digest, problem) not in known:
                yield f"{part.name or part.kind}: {problem}"


def _named(image: Part, name: str) -> list[Part]:
    return [part for part in image.parts if part.name == name]


def _files(image: Part) -> "Counter[tuple[str, str | None]]":
    return Counter((file.name, file.digest) for item in _named(image, "BOOTFS") for file in item.parts)


def _file_problems(files: Iterable[tuple[str, str | None]], path: str, wanted: str) -> Iterator[str]:
    found = [digest for name, digest in files if name == path]
    if not found:
        yield f"{path} is not in it"
    elif found != [wanted]:
        yield f"{path} in it is not our key"


def _changes(before: "Counter[tuple[str, str | None]]", after: "Counter[tuple[str, str | None]]") -> Iterator[str]:
    for name, _ in before - after:
        yield f"{name} is missing in it, or is not what it was"
    for name, _ in after - before:
        yield f"{name} has come into it"


def _others(image: Part) -> list[tuple[object, ...]]:
    """All items that must be as they were, in their order."""
    kept = [part for part in image.parts if part.name not in ("BOOTFS", "CMDLINE")]
    return [(part.name, part.size, part.digest, part.facts) for part in kept]


def _words(image: Part) -> list[str]:
    return [word.name for item in _named(image, "CMDLINE") for word in item.parts]


def _initramfs_problems(before: Part, after: Part, path: str, wanted: str) -> Iterator[str]:
    yield from _new_problems(before, after)
    count = len(before.parts)
    if [_entry(part) for part in after.parts[:count]] != [_entry(part) for part in before.parts]:
        yield "what was in it is not what it was"
    added = after.parts[count:]
    yield from _file_problems(((part.name, part.digest) for part in added if part.kind == "file"), path, wanted)
    for part in added:
        if part.name != path and not path.startswith(f"{part.name}/"):
            yield f"{part.name} has come into it"


def _entry(part: Part) -> tuple[object, ...]:
    return part.kind, part.name, part.size, part.digest, part.facts.get("mode"), part.facts.get("target")


def prove_disk(tool: Tool, image: Path, source: Path, length: int) -> Proof:
    """Raise ToolLied unless `image` has `length` bytes and, if `source` is an FVM, is the same volume in that size.

    Both copies of its tables must be valid and equal, and every slice of `source` must be there, with equal content.
    Raises ImageError if `source` itself is not sound.
    """
    from pipeline.images import fvm, kinds

    size = image.stat().st_size
    if size != length:
        raise _lied(tool, image, f"it has {size} bytes, not {length}")
    if kinds.identify(source) is not kinds.Kind.FVM:
        return {"image": "disk", "bytes": size}
    with source.open("rb") as stream, image_faults(str(source)):
        before = fvm.read(stream)
    try:
        after = fvm.inspect(image, digests=False)
        problem = next(_disk_problems(before, after, length), None) or fvm.first_difference(source, image)
    except ImageError as error:
        if error.file == str(source):
            raise
        raise _lied(tool, image, error.message) from error
    if problem:
        raise _lied(tool, image, problem)
    slices = int(after.facts["allocated slices"])
    return {"image": "FVM", "bytes": size, "partitions": len(after.parts), "slices": slices}


def _disk_problems(before: "Metadata", after: Part, length: int) -> Iterator[str]:
    for part in after.walk():
        yield from part.problems
    size = int(after.facts["partition size"])
    if size + before.header.slice_size < length:
        yield f"its volume has {size} bytes, not {length}"
    had = [(partition.name, partition.slices) for partition in before.partitions]
    has = [(part.name, part.facts["slices"]) for part in after.parts]
    if had != has:
        yield f"its partitions are {has}, not {had}"


def _lied(tool: Tool, image: Path, problem: str) -> ToolLied:
    return ToolLied(
        f"{tool.name} ended well, but {image.name} is not what it should be: {printable(problem)}",
        hint=f"is it the right program for this build? {tool.argv[0]} ({_OFF})",
    )
