"""What a fuzzer says, kept within a size: the beginning and the end of it."""

from collections import deque

_PIECE = 4096  # smaller ones are joined: millions of tiny objects take more memory than what they hold
_GAP = b"\n[%d bytes are left out here]\n"


class Capture:
    """A writer that keeps the first and the last half of `limit` bytes of what it gets."""

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._head = bytearray()
        self._tail: deque[bytearray] = deque()
        self._held = 0
        """Bytes in the tail."""
        self.written = 0
        """Bytes in all."""

    def write(self, data: bytes, /) -> int:
        """Take all of it."""
        self.written += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        if rest := data[room:]:
            if self._tail and len(self._tail[-1]) < _PIECE:
                self._tail[-1] += rest
            else:
                self._tail.append(bytearray(rest))
            self._held += len(rest)
            while self._held - len(self._tail[0]) >= self._half:
                self._held -= len(self._tail.popleft())
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def content(self) -> bytes:
        """What is kept, with a line that tells how much is missing in between."""
        tail = b"".join(self._tail)[-self._half :]
        missing = self.written - len(self._head) - len(tail)
        return bytes(self._head) + (_GAP % missing if missing else b"") + tail

    def end(self, size: int) -> bytes:
        """The last bytes, at most so many of those that are kept at the end."""
        pieces, held = [self._head[-size:]], 0
        for piece in reversed(self._tail):
            if held >= size:
                break
            pieces.insert(1, piece)
            held += len(piece)
        return b"".join(pieces)[-size:]
