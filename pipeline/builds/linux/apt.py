"""apt with a state of its own in the store, so that it does not matter what the host has installed or listed.

Only the host's sources and keyrings count, and the settings for how to reach the sources. No root is needed, and
nothing on the host changes.
"""

import errno
import fnmatch
import logging
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pipeline.builds.linux.libraries import Selection
from pipeline.builds.linux.packages import ARCHITECTURE, name_of
from pipeline.errors import PackageError, ToolFailed, ToolMissing
from pipeline.host.faults import hint_for
from pipeline.host.locks import locked
from pipeline.host.tools import Tool, run
from pipeline.host.trust import make_private

T = TypeVar("T")

log = logging.getLogger("topcoat")

_CONFIGURATION = Path(__file__).with_name("apt.conf")
_OTHER_HOSTS = (
    "run Topcoat on Debian 12 or 13, or in a container of one; or name a directory for the .deb files of one "
    "of them with [demo] packages, and it will be told what is missing there"
)


def required(*selections: Selection) -> Tool:
    """The program apt-get. Where there is none, raises ToolMissing, which names all packages that are wanted."""
    try:
        return Tool.in_path("apt-get", hint="")
    except ToolMissing:
        names = dict.fromkeys(name for selection in selections for name in selection.all_packages)
        raise ToolMissing(
            f"the Linux guest is made of Debian packages, and there is no apt to fetch them: this is {_host()}",
            hint=_OTHER_HOSTS,
            detail=f"{', '.join(names).replace('[0-9]*', 'VERSION')}, and the packages of the libraries that they load",
        ) from None


class Apt:
    """apt-get for one selection of packages, and all that these depend on. It is made by `of`."""

    def __init__(self, apt: Tool, state: Path, cache: Path, selection: Selection, timeout: float) -> None:
        self._apt, self._state, self._timeout = apt, state, timeout
        self._options = (
            f"-c{_CONFIGURATION}",
            f"-oDir::State={state}",
            f"-oDir::State::lists={state}/lists",
            f"-oDir::State::status={state}/status",
            f"-oDir::Etc::Preferences={state}/preferences",
            f"-oDir::Cache={cache}",
        )
        self._asked = (*selection.through, *(name for name in selection.all_packages if "*" not in name))
        self._known: frozenset[str] | None = None
        self._names: frozenset[str] | None = None
        for directory in (state / "lists/partial", cache / "archives/partial"):
            make_private(directory)
        (state / "status").write_bytes(b"")
        (state / "preferences").write_text(_preferences())

    @classmethod
    @contextmanager
    def of(cls, state: Path, cache: Path, selection: Selection, *, timeout: float) -> "Iterator[Apt]":
        """Prepare apt for the packages of the selection and all that these depend on.

        Its lists are in the directory `state`, which stays and is locked during the body; `cache` may be deleted after
        it. `timeout` is in seconds, for one run of apt. Raises ToolMissing if the host has no apt, and PackageError if
        it is not an x86-64 machine.
        """
        if platform.machine() != "x86_64":
            raise PackageError(
                f"the Linux guest is made of {ARCHITECTURE} packages, and this is a {platform.machine()} machine",
                hint="provide them in a directory and name it with [demo] packages",
            )
        found = required(selection)
        # apt tells on stdout which packages do not fit together, and on stderr only that some do not
        apt = Tool(found.name, ("sh", "-c", 'exec "$0" "$@" 2>&1', *found.argv), found.files)
        with locked(state):
            yield cls(apt, state, cache, selection, timeout)

    def named(self, pattern: str) -> str | None:
        """The package that apt would install for the selection whose name this is, or fits this pattern; else None."""
        if self._known is None:
            # A simulation would take three times as long. Lines: 'URI' NAME_VERSION_ARCHITECTURE.deb SIZE DIGEST
            told = self._run("-y", "--no-install-recommends", "--print-uris", "install", *self._asked)
            self._known = frozenset(re.findall(r"^'[^']+' ([^_\s]+)_", told, re.MULTILINE))
        return next(iter(sorted(fnmatch.filter(self._known, pattern))), None)

    def exists(self, name: str) -> bool:
        """Whether the lists have a package of exactly this name."""
        if self._names is None:
            self._names = frozenset(self._run("pkgnames", program="apt-cache").split())
        return name in self._names

    def bring(self, names: Iterable[str], directory: Path) -> list[Path]:
        """Download these packages into the directory, and return their files. Raises PackageError."""
        wanted = set(names)
        self._run("download", *sorted(wanted), cwd=directory)
        return sorted(path for path in directory.glob("*.deb") if name_of(path) in wanted)

    def with_fresh_lists(self, action: Callable[[], T]) -> T:
        """Return the outcome of `action`, which is run once more with new package lists if it fails.

        If there are no lists to begin with, they are fetched first, and it is run once. Raises PackageError.
        """
        if any((self._state / "lists").glob("*Packages*")):
            try:
                return action()
            except PackageError as error:
                log.info("fetching new package lists, as %s", error.detail.splitlines()[-1] if error.detail else error)
        failed = self._update()
        try:
            return action()
        except PackageError as error:
            if failed is None:
                raise
            # Either of the two may be the cause
            raise PackageError(failed.message, hint=failed.hint, detail=f"{failed.detail}\n{error.detail}") from error

    def _update(self) -> PackageError | None:
        """Fetch new lists. An error is returned: it need not matter, as only one of several sources may be broken."""
        self._known = self._names = None
        try:
            self._run("update")
        except PackageError as error:
            return error
        return None

    def _run(self, *arguments: str, cwd: Path | None = None, program: str = "apt-get") -> str:
        # The first word after the options is $0 of the shell: the program
        apt = replace(self._apt, argv=(*self._apt.argv[:-1], str(Path(self._apt.argv[-1]).with_name(program))))
        try:
            return run(apt, "-q", *self._options, *arguments, timeout=self._timeout, cwd=cwd)
        except ToolFailed as error:
            raise PackageError(
                "apt could not fetch " + ("its package lists" if arguments == ("update",) else _WHAT),
                hint=hint_for(errno.ENOSPC) if any(said in error.detail for said in _FULL) else _hint(),
                detail=error.detail,
            ) from error


_FULL = (os.strerror(errno.ENOSPC), "enough free space")
_WHAT = "the packages of the Linux guest"


def _hint() -> str:
    system = _release()
    if system.get("ID", "debian") != "debian":
        return f"this is {_host()}: {_OTHER_HOSTS}"
    return "is the network up, and is Debian's main archive in apt's sources (/etc/apt/sources.list.d)?"


def _preferences() -> str:
    """The preferences for apt: the host's own release comes first, as the compiler runs with its libc."""
    codename = _release().get("VERSION_CODENAME", "")
    if not re.fullmatch(r"[a-z]+", codename):
        return ""
    return f"Package: *\nPin: release n=/^{codename}(-updates|-security)?$/\nPin-Priority: 990\n"


def _host() -> str:
    return _release().get("PRETTY_NAME", "a system without /etc/os-release")


def _release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}
