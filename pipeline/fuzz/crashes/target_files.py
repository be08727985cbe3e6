"""Targets' own files, kept by digest, so that an old crash can still be symbolized when the target was built again.

::

    crashes/.files/b3-12ab…     a program or a library, as it was built; its digest is b3:12ab…

The files are shared by all fuzzers and builds: a link to what the build has, if the file system takes one, so that it
takes no room until the target is built again. Whoever adds or removes any holds the lock of the directory.
"""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.fuzz.corpus.files import link
from pipeline.host.faults import entries
from pipeline.store.digests import digest
from pipeline.store.publish import publish, target_of_remains
from pipeline.text.printable import one_line
from pipeline.text.quantity import readable_size

log = logging.getLogger("topcoat")

NAME = ".files"
"""The name of the directory, in that of all crashes."""

MOST_BYTES = 8 << 30
"""The most bytes of all these files together; of further builds none are kept."""

_DIGEST = re.compile(r"b3s?:[0-9a-f]{64}")


@dataclass(frozen=True)
class TargetFiles:
    """The files that are kept, in their directory."""

    directory: Path
    most: int = MOST_BYTES

    def path(self, digest: str) -> Path:
        """Where the file with this digest is, if it is kept. Raises StoreError for a text that is no digest."""
        if not _DIGEST.fullmatch(digest):
            raise StoreError(f"{one_line(digest, 80)} is no digest of a file", hint="is a builds.json damaged?")
        return self.directory / digest.replace(":", "-")

    def has(self, digests: Collection[str]) -> bool:
        """Whether the files with all of these digests are kept."""
        return all(_DIGEST.fullmatch(digest) and self.path(digest).exists() for digest in digests)

    def keep(self, files: Mapping[str, Path]) -> dict[str, str]:
        """Keep files, given by their paths in the guest, and return their digests; {} if there is no room for all.

        The caller holds the lock of the directory. Raises OSError, or StoreError.
        """
        digests = {name: digest(path) for name, path in sorted(files.items())}
        new = {digests[name]: path for name, path in files.items() if not self.path(digests[name]).exists()}
        there = sum(path.stat().st_size for path in self._all())
        if new and there + sum(path.stat().st_size for path in new.values()) > self.most:
            log.warning(
                "%s has %s, and no room for the files of another build: topcoat gc removes what no crash needs",
                *(self.directory, readable_size(there)),
            )
            return {}
        for name, path in new.items():
            with publish(self.path(name)) as made:
                link(path, made)
        return digests

    def unused(self, needed: Collection[str]) -> list[Path]:
        """The paths of the files whose digests are not among those that are needed. Raises StoreError."""
        return [path for path in self._all() if path.name.replace("-", ":") not in needed]

    def _all(self) -> list[Path]:
        return [path for path in entries(self.directory) if not target_of_remains(path.name) and path.is_file()]
