"""What is in an image, as a tree: the one form in which every reader tells it.

It is shown, printed as JSON, compared with another one, and proves that an image still holds what went in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Fact = str | int | bool


@dataclass(frozen=True)
class Part:
    """A file, an item, a partition: something with a place and a size, and with parts of its own.

    `name` comes from the image and may be hostile: it is made printable where it is shown. Names of siblings can be
    equal. `digest` ("b3:HEX", BLAKE3; of a file with holes "b3s:HEX", see pipeline/digests.py) is that of the content,
    decompressed; None where there is no content of its own, or where that cannot be read. `problems` are sentences
    without a full stop: this part is not sound.
    """

    kind: str
    name: str = ""
    size: int = 0
    """Bytes of content, decompressed."""
    offset: int | None = None
    """Bytes from the start of the file, or of the decompressed container that it lies in."""
    digest: str | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    parts: tuple["Part", ...] = ()

    @property
    def sound(self) -> bool:
        """Whether neither this nor anything in it has a problem."""
        return not any(part.problems for part in self.walk())

    def walk(self) -> Iterator["Part"]:
        """This part and all that it holds, parents first."""
        yield self
        for part in self.parts:
            yield from part.walk()

    def encode(self) -> dict[str, object]:
        """As JSON. What does not apply is left out."""
        data: dict[str, object] = {"kind": self.kind, "size": self.size}
        optional = {
            "name": self.name,
            "digest": self.digest,
            "facts": dict(self.facts),
            "problems": list(self.problems),
            "parts": [part.encode() for part in self.parts],
        }
        data |= {key: value for key, value in optional.items() if value}
        return data if self.offset is None else {**data, "offset": self.offset}
