"""The address of a guest's SSH server, and the keys of both sides."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Address:
    """Where a guest's SSH server listens, which key logs in there, and which key the server must show."""

    host: str
    port: int
    user: str
    key: str
    """The path of the private key, of which each instance has its own copy."""
    host_key: str | None
    """The server's host key as "TYPE BASE64"; None if it is not known before the first contact."""
