"""Packages of targets for tests: a directory, what it says of itself, and what was compiled for it."""

from pathlib import Path

from pipeline.builds import elf
from pipeline.builds.targets import contents, sources
from pipeline.builds.targets.contents import PackageContents, TargetsSource
from tests.builds.elves import LIBFUZZER, Elf


def target(*needed: str, glibc: str = "", build_id: str = "", text: bytes = b"", **more: tuple[str, ...]) -> bytes:
    """A program with libFuzzer in it."""
    versions: dict[str, tuple[str, ...]] = {"libc.so.6": (f"GLIBC_{glibc}",)} if glibc else {}
    loaded = (*needed, "libc.so.6")
    return bytes(Elf(needed=loaded, versions=versions, build_id=build_id, text=LIBFUZZER + text, **more))  # type: ignore[arg-type]


def library(*needed: str, glibc: str = "", text: bytes = b"") -> bytes:
    """A shared library."""
    versions: dict[str, tuple[str, ...]] = {"libc.so.6": (f"GLIBC_{glibc}",)} if glibc else {}
    return bytes(Elf(interpreter="", flags=0, needed=(*needed, "libc.so.6"), versions=versions, text=text))


class Package:
    """A package that is being filled."""

    def __init__(self, root: Path, name: str = "expat") -> None:
        self.directory, self.compiled = root / name, root / "compiled" / name
        self.directory.mkdir(parents=True)

    def put(self, path: str, content: bytes = b"", *, executable: bool = False) -> Path:
        """Write a file into the directory."""
        return _put(self.directory / path, content, executable)

    def program(self, path: str, content: bytes | None = None) -> Path:
        """Write a program into the directory: a target, unless something else is given."""
        return self.put(path, target() if content is None else content, executable=True)

    def says(self, text: str) -> None:
        """Write its topcoat-targets.toml."""
        self.put(sources.NAME, text.encode())

    def compile(self, name: str, content: bytes | None = None) -> Path:
        """Play what compiling a target makes."""
        (self.compiled / name).mkdir(parents=True, exist_ok=True)
        (self.compiled / f"{name}.txt").touch()
        return _put(self.compiled / name / name, target() if content is None else content, executable=True)

    @property
    def source(self) -> TargetsSource:
        """Where it comes from, as it is now."""
        says = sources.read(self.directory)
        return TargetsSource(says.package, self.directory, says, self.compiled.with_name("store"), self.compiled)

    def contents(self, glibc: str = "") -> PackageContents:
        """What is in it now."""
        return contents.of(self.source, elf.read, glibc)


def _put(file: Path, content: bytes, executable: bool) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(0o755 if executable else 0o644)
    return file
