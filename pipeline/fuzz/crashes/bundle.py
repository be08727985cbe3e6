"""A bundle: one file with all that somebody else needs to see a crash again, and to know what differs where he is.

::

    manifest.json    schema 1: what ran, with which arguments, and the digests of all else
    files/SHA256     the target's own files, under the names of their contents
    input            what the target crashed on
    minimised        the same made smaller, if somebody has done that
    output.txt       what the run has said
    serial.txt       the end of the guest's console

It is an archive of the one form in `pipeline.fuzz.crashes.archive`, with the manifest first and the rest by name. The
manifest has the SHA-256 of each member, and that of itself without it, so that it stands for the whole: whatever byte
is changed, the bundle is refused. That shows damage, not who has made it. No name in a bundle is ever used as a path.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pipeline.errors import BundleRefused, InputChanged
from pipeline.fuzz.crashes import archive, private_keys
from pipeline.fuzz.crashes.archive import ArchiveMember
from pipeline.host.faults import host_faults
from pipeline.store import document
from pipeline.store.publish import writing_out
from pipeline.text.printable import is_plain, one_line
from pipeline.text.quantity import readable_size

SCHEMA = 1
"""The version of the manifest's format. A test holds a frozen bundle."""

MANIFEST, INPUT, MINIMISED, OUTPUT, SERIAL = "manifest.json", "input", "minimised", "output.txt", "serial.txt"

MOST_BYTES: Mapping[str, int] = {
    MANIFEST: 4 << 20,
    INPUT: 64 << 20,
    MINIMISED: 64 << 20,
    OUTPUT: 4 << 20,
    SERIAL: 4 << 20,
}
"""The most bytes that members may have."""

MOST_FILE_BYTES = 1 << 30
"""The most bytes that one of the target's own files may have."""

MOST_FILES = 1000
"""How many files of the target's own a bundle may have."""

MOST_BUNDLE_BYTES = 2 << 30
"""The most bytes that a bundle may have."""

_FILES = "files/"
_LONGEST_PATH = 1000
_CHUNK = 1 << 20
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_ASK_AGAIN = "ask whoever made it for the bundle again; topcoat crash bundle writes one"
_NO_KEY = "give the crash away without that; a bundle never holds a private key"


@dataclass(frozen=True)
class BundledFile:
    """A file of the target's own: its content is part of the file `source`, from `offset` on."""

    sha256: str
    size: int
    source: Path = field(compare=False)
    offset: int = field(default=0, compare=False)

    @classmethod
    def of(cls, path: Path) -> "BundledFile":
        """Make one of a file on the host. Raises StoreError if it cannot be read, BundleRefused if it is no file."""
        with _opened(path) as stream:
            size, digest = os.fstat(stream.fileno()).st_size, hashlib.sha256()
            for piece in _pieces(stream, 0, size):
                digest.update(piece)
        return cls(digest.hexdigest(), size, path)

    def pieces(self) -> Iterator[bytes]:
        """Yield the content in pieces. Raises InputChanged at the end if it is not what it was."""
        digest = hashlib.sha256()
        with _opened(self.source) as stream:
            for piece in _pieces(stream, self.offset, self.size):
                digest.update(piece)
                yield piece
        if digest.hexdigest() != self.sha256:
            raise InputChanged(
                f"{one_line(str(self.source))} has changed meanwhile",
                hint="the same command again takes what is there now",
            )


@dataclass(frozen=True)
class Bundle:
    """All that a bundle tells. Nothing in it needs to be fit to print."""

    fuzzer: str
    """The full name of the fuzzer."""
    bucket: str
    """The slug of the bucket."""
    rule: str
    """The rule that made the bucket, NAME/VERSION."""
    facts: Mapping[str, Any]
    """What is known of the bucket, as JSON."""
    argv: tuple[str, ...]
    """The program in the guest and its arguments, as it was run."""
    environment: Mapping[str, str]
    """The variables that it was given."""
    seed: int
    options: tuple[str, ...]
    """The options of the campaign, of which `argv` was made."""
    digests: Mapping[str, Mapping[str, str]]
    """The digests of what it ran with, by group and name: `images`, `tools`, `qemu`."""
    input: bytes
    minimised: bytes | None = None
    """The input made smaller; None if nobody has done that."""
    output: bytes = b""
    serial: bytes = b""
    files: Mapping[str, BundledFile] = field(default_factory=dict)
    """The target's own files by their paths in the guest, as far as they may be given away."""


@dataclass(frozen=True)
class _MemberFacts:
    """What the manifest says of a member."""

    sha256: str
    size: int


@dataclass(frozen=True)
class _Manifest:
    """What manifest.json tells, but for its schema and its own digest."""

    fuzzer: str
    bucket: str
    rule: str
    facts: dict[str, Any]
    argv: tuple[str, ...]
    environment: dict[str, str]
    seed: int
    options: tuple[str, ...]
    digests: dict[str, dict[str, str]]
    files: dict[str, str]
    """The SHA-256s of the target's own files, by their paths in the guest."""
    members: dict[str, _MemberFacts]
    """All members but the manifest."""

    def encode(self) -> bytes:
        """Return the content of manifest.json."""
        facts = asdict(self) | {"schema": SCHEMA}
        return _json(facts | {"sha256": hashlib.sha256(_json(facts)).hexdigest()})


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"


def write(bundle: Bundle, path: Path) -> None:
    """Write a bundle, whole or not at all; the same bundle gives the same bytes.

    Raises BundleRefused if something in it may not be given away, is too large, or has a name that no file can have;
    InputChanged if one of the target's files is not what it was; StoreError if one cannot be read, or the bundle cannot
    be written.
    """
    small = _small(bundle)
    members = {name: _MemberFacts(hashlib.sha256(content).hexdigest(), len(content)) for name, content in small.items()}
    members |= {_FILES + one.sha256: _MemberFacts(one.sha256, one.size) for one in bundle.files.values()}
    manifest = _manifest_of(bundle, members)
    small[MANIFEST] = manifest.encode()
    _check(bundle, manifest, small)
    files = {_FILES + one.sha256: one for one in bundle.files.values()}
    with writing_out(path) as stream:
        for name in (MANIFEST, *sorted(members)):
            size = len(small[name]) if name in small else files[name].size
            stream.write(archive.header(name, size))
            for piece in [small[name]] if name in small else files[name].pieces():
                stream.write(piece)
            stream.write(archive.padding(size))
        stream.write(archive.END)


def _manifest_of(bundle: Bundle, members: dict[str, _MemberFacts]) -> _Manifest:
    return _Manifest(
        bundle.fuzzer,
        bundle.bucket,
        bundle.rule,
        dict(bundle.facts),
        bundle.argv,
        dict(bundle.environment),
        bundle.seed,
        bundle.options,
        {group: dict(digests) for group, digests in bundle.digests.items()},
        {where: one.sha256 for where, one in bundle.files.items()},
        members,
    )


def _small(bundle: Bundle) -> dict[str, bytes]:
    members = {INPUT: bundle.input, OUTPUT: bundle.output, SERIAL: bundle.serial}
    return members if bundle.minimised is None else members | {MINIMISED: bundle.minimised}


def _check(bundle: Bundle, manifest: _Manifest, small: Mapping[str, bytes]) -> None:
    """Raise BundleRefused for what may not be written."""
    sizes = {name: content.size for name, content in manifest.members.items()} | {MANIFEST: len(small[MANIFEST])}
    if problem := _problem(manifest, sizes):
        raise BundleRefused(f"no bundle can be made: {problem}", hint="make it without what is named here")
    for name, content in small.items():
        if private_keys.has_one(content):
            raise BundleRefused(f"no bundle is made: a private key may be in {name}", hint=_NO_KEY)
    for path, file in bundle.files.items():
        if private_keys.is_name_of_one(path) or _has_key(file):
            raise BundleRefused(f"no bundle is made: {one_line(path)} may be a private key", hint=_NO_KEY)


def _has_key(file: BundledFile) -> bool:
    scanner = private_keys.PrivateKeyScanner()
    for piece in file.pieces():
        scanner.feed(piece)
    return scanner.found


def _problem(manifest: _Manifest, sizes: Mapping[str, int]) -> str:
    """Return what keeps a bundle from being one: its members, their sizes, and the paths of files; empty if nothing."""
    if len(manifest.files) > MOST_FILES:
        return f"it has {len(manifest.files)} files of the target's own, and {MOST_FILES} are the most"
    wanted = {_FILES + digest for digest in manifest.files.values()} | {INPUT, OUTPUT, SERIAL}
    if {*manifest.members} - {MINIMISED} != wanted:
        return "its members are not those that its manifest needs"
    if any(name.startswith(_FILES) and name != _FILES + said.sha256 for name, said in manifest.members.items()):
        return "a file of the target's own is not named by its content"
    for name, size in sizes.items():
        most = MOST_BYTES.get(name, MOST_FILE_BYTES)
        if not 0 <= size <= most:
            return f"{one_line(name)} has {size} bytes, and may have {readable_size(most)}"
    whole = sum(archive.BLOCK + size + len(archive.padding(size)) for size in sizes.values()) + len(archive.END)
    if whole > MOST_BUNDLE_BYTES:
        return f"it has {whole} bytes, and may have {readable_size(MOST_BUNDLE_BYTES)}"
    return next(filter(None, map(_path_problem, manifest.files)), "") or _nested(manifest.files)


def _path_problem(path: str) -> str:
    parts = path.removeprefix("/").split("/")
    if not is_plain(path) or len(path) > _LONGEST_PATH or not {"", ".", ".."}.isdisjoint(parts):
        return f"no file of the target's own can be at {one_line(path)}"
    return ""


def _nested(paths: Mapping[str, str]) -> str:
    places = {path.removeprefix("/"): path for path in paths}
    for place, path in places.items():
        for outer in PurePosixPath(place).parents:
            if str(outer) in places:
                return f"{one_line(str(outer))} is both a file and the directory of {one_line(path)}"
    return "" if len(places) == len(paths) else "two files of the target's own are at the same place"


def read(path: Path) -> Bundle:
    """Read a bundle, all of which has been verified then. The target's files stay where they are, in the bundle.

    Raises BundleRefused if it is not as `write` has made it, StoreError if it cannot be read.
    """
    with _opened(path) as stream:
        length = os.fstat(stream.fileno()).st_size
        try:
            if length > MOST_BUNDLE_BYTES:
                raise ValueError(f"it has {length} bytes, and may have {readable_size(MOST_BUNDLE_BYTES)}")
            return _bundle(stream, length, path)
        except (ValueError, RecursionError) as error:
            problem = one_line(str(error))
            raise BundleRefused(f"{one_line(str(path))} is no sound bundle: {problem}", hint=_ASK_AGAIN) from error


def _bundle(stream: BinaryIO, length: int, path: Path) -> Bundle:
    members = archive.members(stream, length)
    manifest = _manifest(stream, next(members, None))
    starts: dict[str, int] = {}
    small: dict[str, bytes] = {}
    for name in sorted(manifest.members):
        said, member = manifest.members[name], next(members, None)
        if member is None or (member.name, member.size) != (name, said.size):
            raise ValueError(f"where {one_line(name)} should be is {_called(member)}")
        starts[name], small[name] = member.start, _verified(stream, member, said.sha256)
    if (member := next(members, None)) is not None:
        raise ValueError(f"something is in it that its manifest does not name: {_called(member)}")
    files = {
        where: BundledFile(digest, manifest.members[_FILES + digest].size, path.absolute(), starts[_FILES + digest])
        for where, digest in manifest.files.items()
    }
    return Bundle(
        manifest.fuzzer,
        manifest.bucket,
        manifest.rule,
        manifest.facts,
        manifest.argv,
        manifest.environment,
        manifest.seed,
        manifest.options,
        manifest.digests,
        small[INPUT],
        small.get(MINIMISED),
        small[OUTPUT],
        small[SERIAL],
        files,
    )


def _verified(stream: BinaryIO, member: ArchiveMember, sha256: str) -> bytes:
    """Compare a member with its digest. Returns its content; that of a file of the target's own is not kept."""
    digest, kept = hashlib.sha256(), []
    for piece in _pieces(stream, member.start, member.size):
        digest.update(piece)
        kept += [piece] if member.name in MOST_BYTES else []
    if digest.hexdigest() != sha256:
        raise ValueError(f"{member.name} is not what its manifest says")
    return b"".join(kept)


def _called(member: ArchiveMember | None) -> str:
    return f"a member named {one_line(member.name)}, of {member.size} bytes" if member else "nothing"


def _manifest(stream: BinaryIO, member: ArchiveMember | None) -> _Manifest:
    """Read the manifest, which must be the first member. Raises ValueError unless it is as `write` makes it."""
    if member is None or member.name != MANIFEST:
        raise ValueError(f"it does not begin with its manifest, but with {_called(member)}")
    if member.size > MOST_BYTES[MANIFEST]:
        raise ValueError(f"its manifest takes {member.size} bytes")
    text = b"".join(_pieces(stream, member.start, member.size))
    manifest = document.convert(document.content(text, SCHEMA), _Manifest)
    if problem := _problem(manifest, {name: one.size for name, one in manifest.members.items()}):
        raise ValueError(problem)
    if manifest.encode() != text:
        raise ValueError("its manifest is not as it was written")
    return manifest


def _pieces(stream: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """Yield `size` bytes from `start` on in pieces; fewer if the file has become shorter."""
    while size and (piece := os.pread(stream.fileno(), min(size, _CHUNK), start)):
        yield piece
        start, size = start + len(piece), size - len(piece)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file to be read. Raises StoreError, or BundleRefused if it is a directory, a device or a pipe."""
    with host_faults(f"reading {path.name}", "file"):
        descriptor = os.open(path, _OPEN)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BundleRefused(f"{one_line(str(path))} is no file", hint="give the path of a file")
            with open(descriptor, "rb", closefd=False) as stream:
                yield stream
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class DigestDifference:
    """Something whose digest is not the one that a bundle tells."""

    group: str
    name: str
    then: str
    """The digest in the bundle; empty if it names none."""
    now: str
    """The digest here; empty if it is not here."""


Digests = Mapping[str, Mapping[str, str]]
"""Digests by group and name, as a bundle has them."""


def compare(then: Digests, now: Digests) -> list[DigestDifference]:
    """Return what differs between the digests of a bundle and those here, by group and name; [] if nothing does."""
    names = sorted({(group, name) for digests in (then, now) for group in digests for name in digests[group]})
    found = [DigestDifference(*one, *(side.get(one[0], {}).get(one[1], "") for side in (then, now))) for one in names]
    return [one for one in found if one.then != one.now]
