"""What looks like a private key, so that none is given away together with a crash."""

import re

_NAME = re.compile(
    r"(?:.*/)?(?:sshid|id_(?:rsa|dsa|ecdsa|ed25519)(?:_sk)?|[^/]*(?:\.(?:key|ppk)|_host_key))",
    re.IGNORECASE | re.DOTALL,
)
_HEADING = rb"BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY"
_OF_DROPBEAR = rb"\0\0\0\x0bssh-ed25519\0\0\0\x40"
_TEXT = re.compile(_HEADING + rb"|PuTTY-User-Key-File-\d|" + _OF_DROPBEAR)
# Programs that read keys have the heading in them, with something else behind it
_IN_PROGRAM = re.compile(rb"-----" + _HEADING + rb"[A-Z ]{0,10}-----[\t-~]{0,400}?[A-Za-z0-9+/]{40}|" + _OF_DROPBEAR)
_PROGRAM = b"\x7fELF"
_OVERLAP = 1024
"""Bytes, more than what is looked for can have."""


def is_name_of_one(path: str) -> bool:
    """Whether files of that name are private keys, as a rule."""
    return bool(_NAME.fullmatch(path))


class PrivateKeyScanner:
    """Looks for a private key in a content that comes in pieces. The result does not depend on where it is cut."""

    def __init__(self) -> None:
        self.found = False
        """Whether what has come so far has one."""
        self._pattern: re.Pattern[bytes] | None = None
        self._held = b""

    def feed(self, piece: bytes) -> None:
        """Look at the next piece."""
        text = self._held + piece
        if self._pattern is None and len(text) >= len(_PROGRAM):
            self._pattern = _IN_PROGRAM if text.startswith(_PROGRAM) else _TEXT
        self.found = self.found or bool(self._pattern and self._pattern.search(text))
        self._held = text[-_OVERLAP:]


def has_one(content: bytes) -> bool:
    """Whether the content looks as if a private key were in it."""
    scanner = PrivateKeyScanner()
    scanner.feed(content)
    return scanner.found
