"""A fuzzer's output, of which the beginning and the end are kept, within a size."""

from collections import deque

_PIECE = 4096  # bytes; smaller pieces are joined: millions of tiny objects take more memory than their content
_GAP = b"\n[%d bytes are left out here]\n"


class Capture:
    """A writer that keeps the first and the last half of `limit` bytes of what is written to it."""

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._head = bytearray()
        self._tail: deque[bytearray] = deque()
        self._held = 0
        """The number of bytes in the tail."""
        self.written = 0
        """The number of bytes written in all."""

    def write(self, data: bytes, /) -> int:
        """Take a piece of output. Returns its length."""
        self.written += len(data)
        workspace = self._half - len(self._head)
        self._head += data[:workspace]
        if rest := data[workspace:]:
            if self._tail and len(self._tail[-1]) < _PIECE:
                self._tail[-1] += rest
            else:
                self._tail.append(bytearray(rest))
            self._held += len(rest)
            while self._held - len(self._tail[0]) >= self._half:
                self._held -= len(self._tail.popleft())
        return len(data)

    def flush(self) -> None:
        """Do nothing: no output is held back."""

    def content(self) -> bytes:
        """What is kept. If anything in the middle is missing, a line there tells how many bytes."""
        tail = b"".join(self._tail)[-self._half :]
        missing = self.written - len(self._head) - len(tail)
        return bytes(self._head) + (_GAP % missing if missing else b"") + tail

    @property
    def held(self) -> int:
        """The number of bytes that are kept."""
        return len(self._head) + self._held

    def end(self, size: int) -> bytes:
        """At most the last `size` bytes of what is kept."""
        pieces, held = [self._head[-size:]], 0
        for piece in reversed(self._tail):
            if held >= size:
                break
            pieces.insert(1, piece)
            held += len(piece)
        return b"".join(pieces)[-size:]
