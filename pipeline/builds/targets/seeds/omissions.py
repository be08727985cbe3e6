"""What is found where seeds are looked for, and why some of it is left out."""

import errno
from dataclasses import dataclass

from pipeline.text.printable import one_line
from pipeline.text.quantity import readable_size

_LONGEST = 100  # characters of an example
# Errors that say something about the path; all others are of the host
_OF_THE_PATH = (
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENXIO,
)


@dataclass(frozen=True)
class Omission:
    """A kind of thing that is left out: what one is, what many are, and what to do about it."""

    one: str
    many: str
    advice: str

    def clause(self, count: int, example: str) -> str:
        """Tell of `count` such things in one line, such as "3 files larger than 1 MiB, such as big.bin"."""
        text = f"1 {self.one}: {example}" if count == 1 else f"{count:,} {self.many}, such as {example}"
        return f"{text}; {self.advice}"


LINK = Omission("link in an archive", "links in archives", "pack the files themselves")
STRAY_LINK = Omission(
    "link that leads to no file of its corpus",
    "links that lead to no file of their corpus",
    "put the files themselves there",
)
SPECIAL = Omission(
    "thing that is no regular file", "things that are no regular files", "only regular files can be seeds"
)
HIDDEN = Omission("hidden directory", "hidden directories", "libFuzzer passes over them: give seeds another place")
SPARSE = Omission("sparse file in an archive", "sparse files in archives", "pack the seeds without --sparse")
ENCRYPTED = Omission("encrypted file", "encrypted files", "pack the seeds without a password")
METHOD = Omission(
    "file compressed in an unknown way", "files compressed in unknown ways", "pack the seeds as zip does by default"
)
DAMAGED_FILE = Omission("damaged file", "damaged files", "pack the seeds anew")
DAMAGED = Omission(
    "archive that cannot be read to its end", "archives that cannot be read to their ends", "pack the seeds anew"
)
UNREADABLE = Omission("path that cannot be read", "paths that cannot be read", "give your user the right to read it")


def too_large(unit: int) -> Omission:
    """The omission of files that have more than `unit` bytes."""
    size = readable_size(unit) if unit % 1024 == 0 else f"{unit:,} bytes"
    return Omission(f"file larger than {size}", f"files larger than {size}", "make smaller seeds")


@dataclass(frozen=True)
class FoundFile:
    """Something where seeds are looked for: the content of a file, or why it is left out.

    `name` comes from whoever packed it; it is for messages, and never a path.
    """

    name: str | bytes
    content: bytes = b""
    omission: Omission | None = None
    why: str = ""
    """What is known beyond the kind of the omission."""
    archive: str = ""
    """The name of the archive that it is in; empty if it is in a directory."""

    @property
    def example(self) -> str:
        """Its name, and what is known about it, fit to print and of bounded length."""
        place = f" in {one_line(self.archive, _LONGEST)}" if self.archive else ""
        why = f" ({one_line(self.why, _LONGEST)})" if self.why else ""
        return one_line(self.name, _LONGEST) + place + why


def unreadable(name: str, error: OSError) -> FoundFile:
    """What is left out because of this error of opening it. Raises the error if it says nothing about the path."""
    if error.errno not in _OF_THE_PATH:
        raise error
    return FoundFile(name, omission=UNREADABLE, why=error.strerror or "")
