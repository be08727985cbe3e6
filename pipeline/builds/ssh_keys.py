"""The SSH key pair with which the host enters its guests, and the Linux guest's host key."""

from typing import Literal

KeyType = Literal["ed25519", "rsa"]

RSA_BITS = 2048
"""The size of an RSA key in bits. It is that of `undercoat`, and so is the format of the private key, PKCS#1 PEM."""


def generate(key_type: KeyType) -> tuple[bytes, bytes]:
    """Make a new key pair. Returns the private key file, and the public key as a line of authorized_keys.

    The private key is in OpenSSH's own format for ed25519, and in PKCS#1 PEM ("BEGIN RSA PRIVATE KEY") for rsa. It has
    no passphrase, and the public key no comment.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key: Ed25519PrivateKey | RSAPrivateKey
    if key_type == "ed25519":
        key, form = Ed25519PrivateKey.generate(), PrivateFormat.OpenSSH
    else:
        key, form = generate_private_key(public_exponent=65537, key_size=RSA_BITS), PrivateFormat.TraditionalOpenSSL
    private = key.private_bytes(Encoding.PEM, form, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private, public + b"\n"


def dropbear_host_key() -> tuple[bytes, str]:
    """Make a new ed25519 host key. Returns dropbear's private key file, and the public key as "ssh-ed25519 BASE64".

    dropbear's file is an SSH string with the name of the type and one with the 32 private and 32 public bytes.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = Ed25519PrivateKey.generate()
    public = key.public_key()
    pair = key.private_bytes_raw() + public.public_bytes_raw()
    line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return _ssh_string(b"ssh-ed25519") + _ssh_string(pair), line


def _ssh_string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data
