"""Limits for the greeting and the packets of an SSH server, for which paramiko itself has none."""

import paramiko
from paramiko.packet import Packetizer

LARGEST = 256 * 1024
"""The most bytes of one SSH packet: OpenSSH's PACKET_MAX_SIZE. RFC 4253, section 6.1, asks for at least 35,000."""

GREETING = 64 * 1024
"""The most bytes up to the end of the server's version line, which RFC 4253, section 4.2, does not limit."""


class Packets(Packetizer):
    """paramiko's packet reader, which breaks the connection off when a server exceeds LARGEST or GREETING."""

    _greeting = 0

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """Read the next `n` bytes. Raises SSHException if `n` is larger than LARGEST."""
        if n > LARGEST:
            raise paramiko.SSHException(f"the server announces a packet of {n:,} bytes")
        return super().read_all(n, check_rekey)

    def _read_timeout(self, timeout: float) -> bytes:
        data: bytes = super()._read_timeout(timeout)  # type: ignore[misc]  # nothing else is read so; not in the stubs
        self._greeting += len(data)
        if self._greeting > GREETING:
            raise paramiko.SSHException("the server's greeting has no end")
        return data
