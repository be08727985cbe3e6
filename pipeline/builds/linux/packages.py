"""Debian packages: a directory of .deb files, and the files in them, read without dpkg.

The names of these files are given as on a system whose /bin and /lib are links into /usr: Debian moved the files of its
packages there one by one.
"""

import gzip
import io
import lzma
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import zstandard

from pipeline.errors import PackageError
from pipeline.store.digests import digest

ARCHITECTURE = "amd64"
KERNEL = "linux-image-[0-9]*-cloud-amd64"
"""The pattern of the kernel's package, which is small and has no drivers for real hardware."""

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_MERGED = ("bin", "lib", "lib64", "sbin")


def name_of(package: Path) -> str:
    """The name of the package in a file, which is called NAME_VERSION_ARCHITECTURE.deb."""
    return package.name.partition("_")[0]


def file_for(name: str) -> str:
    """The name that the file of a package, or of a pattern of packages, has in messages: VERSION stands for any."""
    return f"{name.replace('[0-9]*', 'VERSION')}_VERSION_{ARCHITECTURE}.deb"


def _version(path: Path) -> list[tuple[int, str]]:
    """A key that sorts 6.1.0-9 before 6.1.0-56."""
    return [(int(number or 0), text) for number, text in re.findall(r"(\d+)|(\D+)", path.name)]


@dataclass(frozen=True)
class Packages:
    """The packages in a directory of .deb files."""

    directory: Path

    def newest(self, name: str) -> Path | None:
        """The newest file of the package `name`, or of those whose names fit this pattern; None if there is none."""
        return max(self.directory.glob(f"{name}_*.deb"), key=_version, default=None)

    def find(self, name: str) -> Path:
        """Do as `newest`, but raise PackageError if there is none."""
        found = self.newest(name)
        if found is None:
            raise PackageError(
                f"there is no {'kernel' if name == KERNEL else f'package {name}'} in {self.directory}",
                hint=f"put {file_for(name)} of Debian there",
            )
        return found

    def version(self, name: str) -> str:
        """The upstream version of a package, such as "2.36" of libc6_2.36-9_amd64.deb; "" if it is not there."""
        found = self.newest(name)
        return re.split(r"[-+~]", found.name.split("_")[1].rpartition("%3a")[2])[0] if found else ""

    def kernel(self) -> Path:
        """The file of the kernel, linux-image-VERSION-cloud-amd64. Raises PackageError if there is none."""
        return self.find(KERNEL)

    def files(self) -> list[Path]:
        """All files of packages, sorted by name."""
        return sorted(self.directory.glob("*.deb"))

    def listing(self) -> dict[str, object]:
        """The content of packages.json: the digest of each file."""
        return {"schema": 1, "packages": {path.name: digest(path) for path in self.files()}}


@contextmanager
def opened(package: Path) -> Iterator[tarfile.TarFile]:
    """Open the files of a .deb as a tar stream, to be read once, in order. Raises PackageError for a damaged one."""
    with _archive(package, "data.tar") as archive:
        yield archive


def members(archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """All members of an opened .deb, each with its name as under a merged /usr, without "./" at the start."""
    for member in archive:
        path = PurePosixPath(member.name)
        yield str("usr" / path if path.parts[:1] and path.parts[0] in _MERGED else path), member


def content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of a regular file."""
    stream = archive.extractfile(member)
    assert stream is not None  # the caller asked isfile()
    return stream.read()


def depends(package: Path) -> list[str]:
    """The names of all packages that a package depends on, with all alternatives. Raises PackageError if damaged."""
    with _archive(package, "control.tar") as archive:
        texts = [content(archive, member) for name, member in members(archive) if name == "control" and member.isfile()]
    # Lines that begin with a blank continue a field: Debian Policy, 5.1
    fields = re.findall(rb"^(?:Pre-)?Depends:(.*(?:\n[ \t].*)*)", b"".join(texts), re.MULTILINE | re.IGNORECASE)
    return [name.decode() for field in fields for name in re.findall(rb"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]+)", field)]


@contextmanager
def _archive(package: Path, which: str) -> Iterator[tarfile.TarFile]:
    try:
        with package.open("rb") as stream:
            name, data = _ar_member(stream, package, which)
            with tarfile.open(fileobj=_decompressed(name, data, package), mode="r|") as archive:
                yield archive
    except (lzma.LZMAError, zstandard.ZstdError, tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise _damaged(package, str(error)) from error


def _ar_member(stream: io.BufferedReader, package: Path, which: str) -> tuple[str, bytes]:
    if stream.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise _damaged(package, "it is no ar archive")
    while len(header := stream.read(_AR_HEADER)) == _AR_HEADER and header[48:58].strip().isdigit():
        name, size = header[:16].decode(errors="replace").strip().rstrip("/"), int(header[48:58])
        if name.startswith(which):
            data = stream.read(size)
            if len(data) == size:
                return name, data
            break
        stream.seek(size + size % 2, io.SEEK_CUR)
    raise _damaged(package, "it is cut off")


def _decompressed(name: str, data: bytes, package: Path) -> io.BufferedIOBase:
    packed = io.BytesIO(data)
    match PurePosixPath(name).suffix:
        case ".xz":
            return lzma.LZMAFile(packed)
        case ".zst":
            return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(packed))
        case ".gz":
            return gzip.GzipFile(fileobj=packed)
    raise _damaged(package, f"{name} is compressed in an unknown way")


def _damaged(package: Path, why: str) -> PackageError:
    return PackageError(f"{package.name} is no sound Debian package: {why}", hint=f"delete {package} and try again")
