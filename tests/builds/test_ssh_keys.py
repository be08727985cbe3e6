import io
from collections.abc import Callable

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from pipeline.builds.ssh_keys import KeyType, dropbear_host_key, generate


@pytest.mark.parametrize(
    ("key_type", "header", "footer", "name"),
    [
        ("ed25519", b"-----BEGIN OPENSSH PRIVATE KEY-----", b"-----END OPENSSH PRIVATE KEY-----", "ssh-ed25519"),
        ("rsa", b"-----BEGIN RSA PRIVATE KEY-----", b"-----END RSA PRIVATE KEY-----", "ssh-rsa"),
    ],
)
def test_form_of_the_files(key_type: KeyType, header: bytes, footer: bytes, name: str) -> None:
    private, public = generate(key_type)
    assert private.splitlines()[0] == header
    assert private.endswith(footer + b"\n")
    assert public.endswith(b"\n")
    assert public.count(b"\n") == 1
    assert [word.decode() for word in public.split()][:1] == [name]
    assert len(public.split(b" ")) == 2


def test_ed25519_pair_belongs_together() -> None:
    private, public = generate("ed25519")
    key = load_ssh_private_key(private, password=None)
    assert isinstance(key, Ed25519PrivateKey)
    assert key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n" == public


def test_rsa_pair_belongs_together_and_has_2048_bits() -> None:
    private, public = generate("rsa")
    key = load_pem_private_key(private, password=None)
    assert isinstance(key, RSAPrivateKey)
    assert (key.key_size, key.public_key().public_numbers().e) == (2048, 65537)
    assert key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n" == public


@pytest.mark.parametrize(
    ("key_type", "parse"),
    [("ed25519", paramiko.Ed25519Key.from_private_key), ("rsa", paramiko.RSAKey.from_private_key)],
)
def test_paramiko_reads_the_pair(key_type: KeyType, parse: Callable[[io.StringIO], paramiko.PKey]) -> None:
    private, public = generate(key_type)
    key = parse(io.StringIO(private.decode()))
    assert f"{key.get_name()} {key.get_base64()}\n".encode() == public


@pytest.mark.parametrize("key_type", ["ed25519", "rsa"])
def test_each_pair_is_another(key_type: KeyType) -> None:
    assert generate(key_type) != generate(key_type)


def strings(data: bytes) -> list[bytes]:
    """The SSH strings that `data` consists of."""
    found = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        assert len(data) >= end
        found.append(data[4:end])
        data = data[end:]
    return found


def test_dropbear_host_key_is_type_and_pair() -> None:
    private, line = dropbear_host_key()
    name, pair = strings(private)
    assert name == b"ssh-ed25519"
    assert len(pair) == 64
    key = Ed25519PrivateKey.from_private_bytes(pair[:32])
    assert key.public_key().public_bytes_raw() == pair[32:]
    assert line.encode() == key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert len(line.split()) == 2
