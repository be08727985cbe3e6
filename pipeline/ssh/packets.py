"""What a server may send us before and below everything else: paramiko itself sets no limit to either."""

import paramiko
from paramiko.packet import Packetizer

LARGEST = 256 * 1024
"""Bytes of one SSH packet; OpenSSH's PACKET_MAX_SIZE. RFC 4253, section 6.1 asks for 35,000 at least."""

GREETING = 64 * 1024
"""Bytes before and of the server's version, which RFC 4253, section 4.2 does not limit."""


class Packets(Packetizer):
    """paramiko's reader of packets, which breaks the connection off instead of taking whatever a server announces."""

    _greeting = 0

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """The next `n` bytes. Raises SSHException if no packet has so many."""
        if n > LARGEST:
            raise paramiko.SSHException(f"the server announces a packet of {n:,} bytes")
        return super().read_all(n, check_rekey)

    def _read_timeout(self, timeout: float) -> bytes:
        data: bytes = super()._read_timeout(timeout)  # type: ignore[misc]  # nothing else is read so; not in the stubs
        self._greeting += len(data)
        if self._greeting > GREETING:
            raise paramiko.SSHException("the server's greeting has no end")
        return data
