"""A mapping from file names to values, in which no name is a directory and a file at once."""

from typing import Generic, TypeVar

from pipeline.errors import ImageError

Value = TypeVar("Value")


class Tree(Generic[Value]):
    """Files by their names. A directory exists as long as a file is in it."""

    def __init__(self) -> None:
        self.files: dict[str, Value] = {}
        self._inside: dict[str, set[str]] = {}  # of each directory, what lies directly in it

    def insert(self, name: str, value: Value, *, replace: bool) -> None:
        """Add a file. Raises ImageError if a file or directory is in its way that may not be replaced."""
        if name in self.files:
            self._give_way(name, replace)
        elif name in self._inside:
            self._give_way(name, replace, "(directory vs file) ")
        self._enter(name, replace)
        self.files[name] = value

    def _enter(self, name: str, replace: bool) -> None:
        """Make the directories above a name. One that exists ends the walk: no file can be in the way above it."""
        parent = _parent(name)
        while parent:
            known = parent in self._inside
            if parent in self.files:
                self._give_way(parent, replace)
            self._inside.setdefault(parent, set()).add(name)
            if known:
                return
            name, parent = parent, _parent(parent)

    def _give_way(self, name: str, replace: bool, why: str = "") -> None:
        if not replace:
            raise ImageError(
                f"duplicate target path {why}without --replace: {name}",
                hint="put --replace before what is to replace it",
            )
        self._remove(name)
        parent = _parent(name)
        while parent:
            self._inside[parent].discard(name)
            if self._inside[parent]:
                return
            del self._inside[parent]
            name, parent = parent, _parent(parent)

    def _remove(self, name: str) -> None:
        """Remove a file, or a directory with all that is in it."""
        left = [name]
        while left:
            name = left.pop()
            if name in self._inside:
                left += self._inside.pop(name)
            else:
                del self.files[name]


def _parent(name: str) -> str:
    return name.rpartition("/")[0]
