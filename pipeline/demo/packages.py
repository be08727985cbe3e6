"""The Debian packages that the demo guest is made of: fetched by apt, or taken from a directory; read without dpkg.

Nothing here needs root. Where apt's own package lists are empty (a fresh container), private ones are fetched into
the store.
"""

import io
import lzma
import platform
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard

from pipeline.digests import digest
from pipeline.errors import PackageError, ToolFailed, ToolMissing
from pipeline.faults import host_faults
from pipeline.publish import publish
from pipeline.text import tail
from pipeline.tools import Tool, run

ARCHITECTURE = "amd64"
KERNEL = "linux-image-cloud-amd64"
"""The package that depends on today's kernel: small, without drivers for real hardware."""
PROGRAMS = ("busybox-static", "dropbear-bin", "openssh-sftp-server")
LIBRARIES = ("libc6", "libcrypt1", "libgcc-s1", "libgmp10", "libtomcrypt1", "libtommath1", "zlib1g")
"""What dropbear and sftp-server load. libgmp10 is for libtommath1."""
GUEST = (KERNEL, *PROGRAMS, *LIBRARIES)
"""All packages of the guest itself. What its fuzzers are compiled with is in `pipeline.demo.compiler`."""

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60


def _version(path: Path) -> list[tuple[int, str]]:
    """Sorts 6.1.0-9 before 6.1.0-56."""
    return [(int(number or 0), text) for number, text in re.findall(r"(\d+)|(\D+)", path.name)]


@dataclass(frozen=True)
class Packages:
    """A directory of .deb files, one for each of the packages `names`."""

    directory: Path
    names: tuple[str, ...] = GUEST

    def find(self, name: str) -> Path:
        """The file of the package `name`; the newest if there are several. Raises PackageError."""
        found = sorted(self.directory.glob(_pattern(name)), key=_version)
        if not found:
            raise PackageError(
                f"there is no {'kernel' if name == KERNEL else f'package {name}'} in {self.directory}",
                hint=f"put {_pattern(name).replace('*', 'VERSION').replace('.deb', f'_{ARCHITECTURE}.deb')} "
                "of Debian there",
            )
        return found[-1]

    def kernel(self) -> Path:
        """The file of the kernel: linux-image-VERSION-cloud-amd64. Raises PackageError."""
        return self.find(KERNEL)

    def present(self) -> list[Path]:
        """All files in the directory that belong to one of the packages."""
        return sorted({path for name in self.names for path in self.directory.glob(_pattern(name))})

    def files(self) -> list[Path]:
        """All package files that are used. Raises PackageError."""
        return [self.find(name) for name in self.names]

    def listing(self) -> dict[str, object]:
        """What was collected, for packages.json."""
        return {"schema": 1, "packages": {path.name: digest(path) for path in self.files()}}

    def check(self) -> None:
        """Raise PackageError, naming all that must be provided, unless every package is there."""
        missing = []
        for name in self.names:
            try:
                self.find(name)
            except PackageError as error:
                missing.append(error.hint)
        if missing:
            raise PackageError(
                f"{len(missing)} packages of the demo guest are missing in {self.directory}",
                hint="provide the files above; [demo] packages names the directory",
                detail="\n".join(missing),
            )


def _pattern(name: str) -> str:
    # The package named KERNEL only depends on the kernel, which has its version in its name
    return f"{name.replace('image', 'image-*') if name == KERNEL else name}_*.deb"


def collected_in(home: Path) -> Packages:
    """The packages of the guest that `collect` brought together in `home`."""
    return Packages(home / "packages")


def collect(home: Path, provided: Path | None, *, timeout: float) -> Packages:
    """Bring all packages of the guest together in `home`/packages, as `gather` does."""
    target = collected_in(home)
    with host_faults("collecting the packages of the demo guest"):
        shutil.rmtree(target.directory, ignore_errors=True)
        with publish(target.directory) as made:
            gather(made, provided, target.names, timeout=timeout)
    return target


def gather(directory: Path, provided: Path | None, names: tuple[str, ...], *, timeout: float) -> Packages:
    """Make `directory` and fill it: copied from the directory `provided`, else downloaded by apt.

    Beside it apt may leave its lists. Raises ToolMissing or PackageError.
    """
    directory.mkdir()
    if provided is None:
        fetch(directory, directory.parent / "apt", names, timeout=timeout)
    else:
        source = Packages(provided, names)
        source.check()
        for path in source.files():
            shutil.copyfile(path, directory / path.name)
    gathered = Packages(directory, names)
    gathered.check()
    return gathered


def fetch(directory: Path, lists: Path, wanted: tuple[str, ...] = GUEST, *, timeout: float) -> None:
    """Download packages into `directory` with apt. `lists` is where private package lists go if apt has none.

    Raises ToolMissing or PackageError, which say what to provide by hand and by which setting.
    """
    if platform.machine() != "x86_64":
        raise PackageError(
            f"the demo guest is made of {ARCHITECTURE} packages, and this is a {platform.machine()} machine",
            hint="provide them in a directory and name it with [demo] packages",
        )
    try:
        apt = Tool.in_path("apt-get", hint="")
        cache = Tool.in_path("apt-cache", hint="")
    except ToolMissing:
        raise ToolMissing(
            "the demo guest is made of Debian packages, and there is no apt to fetch them",
            hint="put these .deb files of one Debian release into a directory and name it with [demo] packages",
            detail=", ".join(_pattern(name).removesuffix("_*.deb").replace("*", "VERSION") for name in wanted),
        ) from None
    options = () if _has_lists(cache, timeout) else _private_lists(apt, lists, timeout)
    names = [_kernel_name(cache, options, timeout) if name == KERNEL else name for name in wanted]
    _apt(apt, *options, "download", *names, cwd=directory, timeout=timeout)


def _has_lists(cache: Tool, timeout: float) -> bool:
    # `madison` prints nothing for an unknown package, and exits with 0 all the same
    return bool(run(cache, "madison", KERNEL, timeout=timeout).strip())


def _private_lists(apt: Tool, directory: Path, timeout: float) -> tuple[str, ...]:
    (directory / "lists/partial").mkdir(parents=True, exist_ok=True)
    (directory / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
    options = (f"-oDir::State::lists={directory}/lists", f"-oDir::Cache={directory}/cache", "-oDebug::NoLocking=1")
    _apt(apt, *options, "update", timeout=timeout)
    return options


def _kernel_name(cache: Tool, options: tuple[str, ...], timeout: float) -> str:
    try:
        listing = run(cache, *options, "depends", KERNEL, timeout=timeout)
    except ToolFailed as error:  # an unknown name
        listing = error.detail
    match = re.search(r"Depends: (linux-image-\S+-cloud-amd64)", listing)
    if match is None:
        raise PackageError(
            f"apt knows no kernel behind {KERNEL}",
            hint="is this Debian, with its main archive in sources.list? else provide packages by [demo] packages",
            detail=tail(listing),
        )
    return match[1]


def _apt(apt: Tool, *arguments: str, timeout: float, cwd: Path | None = None) -> None:
    try:
        # As root, apt would drop to a user who may not write to the store, and warn about it
        run(apt, "-q", "-oAPT::Sandbox::User=root", *arguments, timeout=timeout, cwd=cwd)
    except ToolFailed as error:
        raise PackageError(
            "apt could not fetch the packages of the demo guest",
            hint="is the network up, and are the package lists fresh (as root: apt-get update)?",
            detail=error.detail,
        ) from error


@contextmanager
def opened(package: Path) -> Iterator[tarfile.TarFile]:
    """The files of a .deb as a tar stream: to be read once, in order. Raises PackageError for a damaged one."""
    try:
        with package.open("rb") as stream:
            name, data = _data_member(stream, package)
            with tarfile.open(fileobj=_decompressed(name, data, package), mode="r|") as archive:
                yield archive
    except (lzma.LZMAError, zstandard.ZstdError, tarfile.TarError, EOFError) as error:
        raise _damaged(package, str(error)) from error


def _data_member(stream: io.BufferedReader, package: Path) -> tuple[str, bytes]:
    if stream.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise _damaged(package, "it is no ar archive")
    while len(header := stream.read(_AR_HEADER)) == _AR_HEADER and header[48:58].strip().isdigit():
        name, size = header[:16].decode(errors="replace").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            data = stream.read(size)
            if len(data) == size:
                return name, data
            break
        stream.seek(size + size % 2, io.SEEK_CUR)
    raise _damaged(package, "it is cut off")


def _decompressed(name: str, data: bytes, package: Path) -> io.BufferedIOBase:
    if name == "data.tar.xz":
        return lzma.LZMAFile(io.BytesIO(data))
    if name == "data.tar.zst":
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)))
    raise _damaged(package, f"{name} is compressed in an unknown way")


def _damaged(package: Path, why: str) -> PackageError:
    return PackageError(f"{package.name} is no sound Debian package: {why}", hint=f"delete {package} and try again")
