"""Renewing what a clone has from its template and must not share: random numbers, clock, boot id, name.

Before the Linux guest is saved, its program `renew` begins to wait on a second serial port, the gate; once a clone
runs, it is told there what the clone's own values are. Only then does anybody log in, so that no SSH session is made of
random numbers that two clones have. The seed does not come into any log.
"""

import os
import socket
import time
from pathlib import Path

from pipeline.builds.linux import BOOT_ID, RENEW
from pipeline.host.deadline import Deadline
from pipeline.text.printable import printable
from pipeline.vm import sockets

COMMAND = f"{RENEW} /dev/ttyS1 {BOOT_ID}"
"""The command that makes the Linux guest wait at the gate; it returns once the guest does."""

_SEED = 32  # bytes, as renew.c expects
_LONGEST = 1024  # bytes of the answer


class RenewalError(Exception):
    """The clone did not say that it has renewed what it must not share with others."""


def renew(gate: Path, boot_id: str, name: str, deadline: Deadline) -> None:
    """Give the clone whose gate is the socket at `gate` its own values. Raises RenewalError."""
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(max(0.001, deadline.remaining))
            sockets.connect(client, gate)
            client.sendall(f"{boot_id} {name} {time.time_ns()} {os.urandom(_SEED).hex()}\n".encode())
            while not answer.endswith(b"\n") and len(answer) < _LONGEST:
                client.settimeout(max(0.001, deadline.remaining))
                chunk = client.recv(_LONGEST)
                if not chunk:
                    break
                answer += chunk
    except OSError as error:
        raise RenewalError(f"the gate of the guest does not answer: {error.strerror or error}") from error
    said = printable(answer).strip()
    if said != f"renewed {boot_id}":
        raise RenewalError(f"the gate of the guest answers {said[:200]!r}")
