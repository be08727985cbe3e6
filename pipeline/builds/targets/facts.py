"""What the ELF files of targets say, remembered by their content: large programs need not be read again."""

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.builds import elf
from pipeline.builds.elf import ElfFacts
from pipeline.errors import InstanceBusy, StoreError
from pipeline.host.faults import host_faults
from pipeline.host.locks import locked
from pipeline.store import document
from pipeline.store.publish import publish_bytes

log = logging.getLogger("topcoat")

SCHEMA = 1
"""The version of the cache file. It rises too when facts about the same files change, such as a mark of an engine."""

MOST_ENTRIES = 20_000
"""How many files are remembered: those that were asked for last."""

_LONGEST = 32 << 20  # bytes of the cache file; what does not fit is not remembered
_LOCK_LIMIT = 10.0

Entries = dict[str, ElfFacts | None]
"""The facts about a file by its digest; None: it is no ELF file."""


@dataclass(frozen=True)
class _CacheFile:
    facts: Entries


class ElfCache:
    """Facts about ELF files, remembered in the cache file `path` by the digests that `digest_of` tells.

    Damaged ELF files are not remembered. A cache file that cannot be understood is begun anew, with one warning, and
    one of another schema without. With `path` None, facts are remembered in memory only.
    """

    def __init__(self, path: Path | None, digest_of: Callable[[Path], str]) -> None:
        self._path = path
        self._digest_of = digest_of
        self._loaded: Entries | None = None
        self._used: Entries = {}
        self._added = False

    def of(self, path: Path) -> ElfFacts | None:
        """What `pipeline.builds.elf.read` tells of a file; raises what it raises, and OSError."""
        digest = self._digest_of(path)
        known = self._known()
        if digest in known:
            facts = known[digest]
        else:
            facts = elf.read(path)
            if self._digest_of(path) != digest:
                return facts  # of which content, nobody knows
            self._added = True
        known[digest] = self._used[digest] = facts
        return facts

    def save(self) -> None:
        """Write what is new to the cache file. Failure is no error: the files are read again next time."""
        if self._path is None or not self._added:
            return
        # Neither a full disk nor a held lock is worth a failure here
        with suppress(StoreError, InstanceBusy), locked(self._path, _LOCK_LIMIT), host_faults("saving facts"):
            saved = _load(self._path, log.debug)
            others = {digest: facts for digest, facts in saved.items() if digest not in self._used}
            publish_bytes(self._path, _encode({**others, **self._used}))
            self._added = False

    def _known(self) -> Entries:
        if self._loaded is None:
            self._loaded = _load(self._path, log.warning) if self._path else {}
        return self._loaded


def _load(path: Path, tell: Callable[[str, Path, Exception], object]) -> Entries:
    try:
        with path.open("rb") as stream:
            return document.decode(stream.read(_LONGEST), _CacheFile, SCHEMA).facts
    except (FileNotFoundError, document.OtherSchema):
        return {}
    except (ValueError, OSError) as error:
        tell("the cache of what programs need is begun anew: %s: %s", path, error)
        return {}


def _encode(entries: Entries) -> bytes:
    """The cache file with the last of these entries, which keep their order."""
    kept: dict[str, str] = {}
    left = _LONGEST - 100
    for digest in list(entries)[: -MOST_ENTRIES - 1 : -1]:
        facts = entries[digest]
        kept[digest] = json.dumps(asdict(facts) if facts else None)
        left -= len(digest) + len(kept[digest]) + 10
        if left < 0:
            del kept[digest]
            break
    lines = [f"{json.dumps(digest)}: {kept[digest]}" for digest in reversed(kept)]
    return b'{"schema": %d, "facts": {\n%s\n}}\n' % (SCHEMA, ",\n".join(lines).encode())
