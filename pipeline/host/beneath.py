"""Access to directories below a chosen one by names that deserve no trust: none of them leads out of it."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_INNER = _ROOT | os.O_NOFOLLOW


class Beneath:
    """A chosen directory and all directories below it; to be used as a context manager.

    Raises OSError if there is no such directory.
    """

    def __init__(self, directory: Path) -> None:
        self._root = os.open(directory, _ROOT)
        self._last: tuple[tuple[bytes, ...], int] = ((), self._root)  # kept, as files come directory by directory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors."""
        self._leave()
        os.close(self._root)

    @contextmanager
    def entered(self, path: Sequence[bytes]) -> Iterator[int]:
        """Yield a descriptor of the directory that these names lead to, valid during the body; () is the chosen one.

        Missing directories on the way are made. Raises NotADirectoryError, with the name, if anything else has that
        name (also a link, wherever it leads), and ValueError for a name that cannot be a directory's, such as "..".
        """
        descriptor = os.dup(self._found(tuple(path)))
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _found(self, path: tuple[bytes, ...]) -> int:
        if self._last[0] != path:
            self._leave()
            descriptor = self._root
            for name in path:
                descriptor = self._step(descriptor, name)
            self._last = (path, descriptor)
        return self._last[1]

    def _step(self, directory: int, name: bytes) -> int:
        try:
            if name in (b"", b".", b"..") or b"/" in name:
                raise ValueError(f"{name!r} is no name of a directory")
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=directory)
            return os.open(name, _INNER, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name) from error
        finally:
            if directory != self._root:
                os.close(directory)

    def _leave(self) -> None:
        if self._last[1] != self._root:
            os.close(self._last[1])
        self._last = ((), self._root)
