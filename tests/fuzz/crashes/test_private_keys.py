import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.ssh_keys import dropbear_host_key, generate
from pipeline.fuzz.crashes import private_keys
from pipeline.fuzz.crashes.private_keys import PrivateKeyScanner

KEYS = [
    generate("ed25519")[0],
    dropbear_host_key()[0],
    b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n" + b"MIIEpAIBAAKC" * 8,
    b"-----BEGIN PRIVATE KEY-----\r\n" + b"MIIEvQIBADANBgkqhkiG9w0B" * 4,
]
PROGRAM = b"\x7fELF\2\1\1" + bytes(64)


@pytest.mark.parametrize("key", KEYS, ids=lambda _: "key")  # they are random, and each process of tests has its own
def test_keys_are_found_wherever_they_are(key: bytes) -> None:
    assert private_keys.has_one(key)
    assert private_keys.has_one(b"[12.5] log: " + key + b"\n")
    assert private_keys.has_one(PROGRAM + key)


@pytest.mark.parametrize(
    "content",
    [
        b"-----BEGIN PGP PRIVATE KEY BLOCK-----", b"BEGIN ENCRYPTED PRIVATE KEY", b"PuTTY-User-Key-File-3: ssh-rsa",
        b'{"KEY": "-----BEGIN EC PRIVATE KEY-----\\nMHc"}',
    ],
)  # fmt: skip
def test_in_what_is_no_program_the_heading_is_enough(content: bytes) -> None:
    assert private_keys.has_one(content)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"abc", b"ERROR: the private key cannot be read", b"PRIVATE KEY", b"-----BEGIN PUBLIC KEY-----\nMFkw",
        generate("ed25519")[1], PROGRAM, PROGRAM + b"-----BEGIN RSA PRIVATE KEY-----\0-----END RSA PRIVATE KEY-----\0",
    ],
    ids=lambda _: "content",
)  # fmt: skip
def test_what_only_speaks_of_keys_is_none(content: bytes) -> None:
    assert not private_keys.has_one(content)


@given(st.sampled_from(KEYS), st.booleans(), st.lists(st.integers(0, 900), max_size=5))
def test_the_result_does_not_depend_on_the_pieces(key: bytes, program: bool, cuts: list[int]) -> None:
    content = (PROGRAM if program else b"") + b"-" * 300 + key + b"." * 2000
    scanner = PrivateKeyScanner()
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(content)], strict=True):
        scanner.feed(content[start:end])
    assert scanner.found


@pytest.mark.parametrize("name", ["sshid", "/data/ssh/id_ed25519", "id_rsa", "a/b.key", "ssh_host_key", "X.PPK"])
def test_names_of_keys(name: str) -> None:
    assert private_keys.is_name_of_one(name)


@pytest.mark.parametrize("name", ["id_rsa.pub", "/targets/parser_fuzzer", "keyboard", "a.key/b", "cert.pem", ""])
def test_names_of_other_files(name: str) -> None:
    assert not private_keys.is_name_of_one(name)
