"""topcoat-targets.toml: what a directory of targets says of itself, above all which targets are compiled, and of what.

::

    package = "expat"                  # the first part of the targets' full names; default: the directory's name
    flags = ["-std=c11", "-O2"]        # what stands above all [[target]] holds for each of them

    [[target]]
    name = "parse_fuzzer"
    sources = ["fuzz/parse_fuzzer.c", "lib/xmlparse.c"]
    include = ["lib"]

docs/targets.md explains all keys.
"""

import itertools
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import SettingsError
from pipeline.text.printable import one_line
from pipeline.text.spelling import nearest

NAME = "topcoat-targets.toml"
"""The name of the file, in the directory of the targets."""

FIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+=~-]{0,99}")
"""The names that packages and targets can have: they become names of directories, here and in the guest."""

MOST_TARGETS = 1000
"""How many targets one file may have compiled."""

_MOST = 1 << 20  # bytes of the file
_DEBIANS = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}")  # Debian Policy, 5.6.1
_AT = re.compile(r" - at `\$(?:\.target\[(?P<target>\d+)\])?(?:\.(?P<key>[a-z]+))?.*`\Z")
_MANUAL = "docs/targets.md explains all keys"
_SANITIZERS = ("address",)
_FOR_NAMELESS = "targets"


class _Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    include: tuple[str, ...] = ()
    defines: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    sanitizers: tuple[str, ...] | None = None


class _Target(_Options, frozen=True, kw_only=True):
    name: str
    sources: tuple[str, ...] = ()


class _SourcesFile(_Options, frozen=True, kw_only=True):
    package: str = ""
    packages: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    target: tuple[_Target, ...] = ()


@dataclass(frozen=True)
class SourceTarget:
    """A target that is compiled. All paths are relative to the directory of the targets, or absolute."""

    name: str
    sources: tuple[str, ...]
    """Files in C or C++, as their suffixes say."""
    include: tuple[str, ...] = ()
    """Directories in which headers are looked for."""
    defines: tuple[str, ...] = ()
    """Macros: NAME, or NAME=VALUE."""
    flags: tuple[str, ...] = ()
    """Further arguments for clang."""
    libraries: tuple[str, ...] = ()
    """Libraries to link, as after -l."""
    sanitizers: tuple[str, ...] = _SANITIZERS
    """What -fsanitize gets besides `fuzzer`."""

    def linked(self, directory: Path) -> dict[str, Path]:
        """The files of the host that are linked or named by flags, as far as they exist: by their names in a record.

        They are the libraries in the directories of -L, and what stands among the flags by itself.
        """
        places = [flag[2:] for flag in self.flags if flag.startswith("-L") and flag != "-L"]
        places += [after for flag, after in itertools.pairwise(self.flags) if flag == "-L"]
        names = [
            name
            for one in self.libraries
            for name in ([one[1:]] if one[:1] == ":" else [f"lib{one}.so", f"lib{one}.a"])
        ]
        found = [os.path.join(place, name) for place in places for name in names]  # noqa: PTH118
        found += [flag for flag in self.flags if not flag.startswith("-")]
        return {name: directory / name for name in found if (directory / name).is_file()}


@dataclass(frozen=True)
class TargetSources:
    """What topcoat-targets.toml says; without that file, the defaults."""

    package: str
    """The first part of the targets' full names."""
    packages: tuple[str, ...] = ()
    """Debian packages in which libraries of targets are looked for."""
    files: tuple[str, ...] = ()
    """What targets open at run time: patterns of files in the directory, as in pipeline.builds.targets.patterns."""
    targets: tuple[SourceTarget, ...] = ()
    """The targets that are compiled, in the order of the file."""

    def target(self, name: str) -> SourceTarget:
        """The target of this name. Raises SettingsError if there is none."""
        for target in self.targets:
            if target.name == name:
                return target
        raise SettingsError(
            f"{NAME} has no target {one_line(name)}",
            hint=f"it has {', '.join(target.name for target in self.targets) or 'none at all'}",
        )

    @property
    def compiles(self) -> bool:
        """Whether the directory is one of sources, of which only `files` get into the guest."""
        return bool(self.targets)


def package_of(directory: Path) -> str:
    """The package of a directory that does not say its own: its name, as far as that can be one."""
    name = directory.absolute().name
    return name if FIT.fullmatch(name) else _FOR_NAMELESS


def read(directory: Path) -> TargetSources:
    """What the directory's topcoat-targets.toml says, or the defaults if it has none. Raises SettingsError."""
    path = directory / NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a pipe could keep us waiting for ever
                raise _wrong(path, "it is no regular file")
            content = stream.read(_MOST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return TargetSources(package_of(directory))
    except OSError as error:
        raise _wrong(path, f"it cannot be read: {error.strerror}") from error
    if len(content) > _MOST:
        raise _wrong(path, "it is larger than 1 MiB")
    return _checked(path, _converted(path, _parsed(path, content)))


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _wrong(path, "it is not written in UTF-8") from error
    except ValueError as error:  # among them TOMLDecodeError
        raise _wrong(path, f"it is no TOML: {one_line(str(error))}", hint="correct it: https://toml.io") from error
    except RecursionError as error:
        raise _wrong(path, "it is nested too deeply") from error


def _converted(path: Path, content: dict[str, Any]) -> _SourcesFile:
    for where, table, known in _tables(content):
        for key in table:
            if key not in known:
                near = nearest(key[:80], known)
                meant = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
                raise _wrong(path, f"{where}there is no key {one_line(key, 80)!r}", hint=f"{meant}; {_MANUAL}")
    try:
        return msgspec.convert(content, _SourcesFile)
    except msgspec.ValidationError as error:
        raise _wrong(path, _type_problem(content, str(error))) from error


def _tables(content: dict[str, Any]) -> Iterator[tuple[str, Mapping[str, object], tuple[str, ...]]]:
    """The file's tables: how a message about one begins, what is in it, and the keys that it can have."""
    yield "", content, _SourcesFile.__struct_fields__
    targets = content.get("target")
    for number, target in enumerate(targets if isinstance(targets, list) else ()):
        if isinstance(target, dict):
            yield f"{_called(content, number)}: ", target, _Target.__struct_fields__


def _called(content: dict[str, Any], number: int) -> str:
    """How a target is called in messages: by its name, or by its place if it has none."""
    target = content["target"][number]
    name = target.get("name") if isinstance(target, dict) else None
    return f"target {one_line(name, 100)}" if name and isinstance(name, str) else f"[[target]] number {number + 1}"


def _type_problem(content: dict[str, Any], said: str) -> str:
    """What is wrong, as msgspec says it: only types can be, for unknown keys are told before."""
    place = _AT.search(said)
    assert place is not None, said
    where = f"{_called(content, int(place['target']))}: " if place["target"] else ""
    match place["key"]:
        case None if where:
            return f"{where}it has no name" if "missing" in said else f"{where}it is no table"
        case "target":
            return "a target begins with the line [[target]], and its keys follow"
        case "name" | "package" as key:
            return f'{where}{key} is not a text, such as {key} = "NAME"'
        case key:
            return f'{where}{key} is not a list of texts, such as {key} = ["this", "that"]'


def _checked(path: Path, found: _SourcesFile) -> TargetSources:
    _check_names(path, found)
    _check_texts(path, "", found)
    for word in found.packages:
        if not _DEBIANS.fullmatch(word):
            raise _wrong(path, f"packages: {one_line(word)!r} is no name of a package of Debian")
    for pattern in found.files:
        if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
            raise _wrong(path, f"files: {one_line(pattern)!r} is no pattern of paths below the directory")
    package = found.package or package_of(path.parent)
    targets = tuple(_target(path, found, one) for one in found.target)
    return TargetSources(package, found.packages, found.files, targets)


def _check_names(path: Path, found: _SourcesFile) -> None:
    names = [target.name for target in found.target]
    if len(names) > MOST_TARGETS:
        raise _wrong(path, f"it has more than {MOST_TARGETS} targets")
    if found.package and not FIT.fullmatch(found.package):
        raise _wrong(path, f"package: {one_line(found.package)!r} cannot be a name", hint=_NAMES)
    for name in names:
        # NAME.txt has the compiler's words about NAME
        if not FIT.fullmatch(name) or name.endswith(".txt"):
            raise _wrong(path, f"name: {one_line(name)!r} cannot be the name of a target", hint=_NAMES)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise _wrong(path, f"two targets have the name {twice[0]}", hint="rename one of them")


_NAMES = "use up to 100 letters, digits and _ . @ + = ~ -, the first a letter, a digit or _, and no ending .txt"


def _check_texts(path: Path, where: str, table: _Options) -> None:
    """Raise SettingsError if a program could not be given the texts as they are."""
    for key in table.__struct_fields__:
        value = getattr(table, key)
        for text in value if isinstance(value, tuple) else ():
            if isinstance(text, str) and "\0" in text:
                raise _wrong(path, f"{where}{key}: there is a NUL in {one_line(text, 80)!r}")


def _target(path: Path, common: _SourcesFile, own: _Target) -> SourceTarget:
    _check_texts(path, f"target {own.name}: ", own)
    sources = (*own.sources, *common.sources) if own.sources else _usual(path, own.name, common.sources)
    chosen = next((each for each in (own.sanitizers, common.sanitizers) if each is not None), _SANITIZERS)
    libraries = (*own.libraries, *common.libraries)
    for key, words in (("sources", sources), ("libraries", libraries), ("sanitizers", chosen)):
        for word in words:
            if not word or word.startswith("-"):
                raise _wrong(path, f"target {own.name}: {key}: {one_line(word)!r} cannot be one", hint=_HINTS[key])
    return SourceTarget(
        own.name,
        sources,
        (*own.include, *common.include),
        (*common.defines, *own.defines),
        (*common.flags, *own.flags),
        libraries,
        chosen,
    )


_HINTS = {
    "sources": "name files in C or C++; words for the compiler are given as flags",
    "libraries": 'name libraries as after -l, such as "z"; words for the linker are given as flags',
    "sanitizers": 'name them as after -fsanitize=, such as "address"; [] is none',
}


SUFFIXES = (".c", ".cc", ".cpp", ".cxx")
"""The suffixes of sources, which tell clang their language."""


def _usual(path: Path, name: str, more: Sequence[str]) -> tuple[str, ...]:
    """The sources of a target that names none: the one file that is called like it, whether it is there or not."""
    usual = [f"{name}{suffix}" for suffix in SUFFIXES]
    return (next((each for each in usual if os.path.lexists(path.with_name(each))), usual[0]), *more)


def _wrong(path: Path, problem: str, *, hint: str = "") -> SettingsError:
    return SettingsError(f"{one_line(str(path))}: {problem}", hint=hint or f"correct it; {_MANUAL}")
