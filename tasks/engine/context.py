"""What all tasks of a process share: the settings, the build, and the cache of digests."""

import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline import settings
from pipeline.builds import build, programs
from pipeline.builds.build import Build
from pipeline.settings import Settings
from pipeline.store.digest_cache import DigestCache

log = logging.getLogger("topcoat")

_said: set[str] = set()


@dataclass(frozen=True)
class Context:
    """The facts that hold for one run of luigi, found out only once: luigi asks every task several times."""

    settings: Settings
    digests: DigestCache
    """The store's cache of file digests."""

    @cached_property
    def build(self) -> Build:
        """The build, including the choice of programs that prepare its images.

        The choice is logged. Raises MissingResource or SettingsError.
        """
        found = programs.settle(build.load(self.settings), self.settings, self.digests.of)
        say_once(logging.INFO, f"build: {found.name} ({found.why})")
        for key, why in found.own_why.items():
            say_once(logging.INFO, f"{key}: Topcoat's own: {why}")
        return found


_last: tuple[object, Context] | None = None


def context() -> Context:
    """Return the context for the current directory and environment. Raises SettingsError.

    While both stay the same, so does the context: later changes of luigi.cfg do not count, as with luigi.
    """
    global _last
    place = (Path.cwd(), dict(os.environ))
    if _last is None or _last[0] != place:
        found = settings.load()
        _last = (place, Context(found, DigestCache(found.store.digests)))
    return _last[1]


def say_once(level: int, text: str) -> None:
    """Log a line, unless this process has logged it already: luigi asks every task several times."""
    if text not in _said:
        _said.add(text)
        log.log(level, "%s", text)
