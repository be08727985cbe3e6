"""The demo's parser_fuzzer, as far as it is known in which function it crashes: pipeline/builds/demo/targets."""

import random

SQUARES = 8


def crashes_in(data: bytes) -> str:
    """The function in which the parser crashes on these data; empty if it does not."""
    if not data.startswith(b"TC"):
        return ""
    at, names = 2, 0
    while at < len(data):
        kind, length = data[at : at + 1], data[at + 1] if at + 1 < len(data) else 0
        at = min(at + 2, len(data))
        length = min(length, len(data) - at)
        body = data[at : at + length]
        at += length
        if kind == b"N":
            names += 1
            if names == 3:
                return "set_name"
        if kind == b"T" and length > 16:
            return "copy_text"
        if kind == b"S" and length == 1 and body[0] >= SQUARES:
            return "look_up_square"
        if kind == b"A" and length > 1 and body[0] == 0:
            return "average"
    return ""


def record(kind: bytes, body: bytes) -> bytes:
    """One record of the format."""
    return kind + bytes([len(body)]) + body


def overflows(seed: int) -> bytes:
    """An input that overflows copy_text, with the other bugs behind it, and harmless records around."""
    dice = random.Random(seed)
    harmless = [record(b"S", b"\x03"), record(b"N", b"name"), record(b"T", b"short"), record(b"x", dice.randbytes(9))]
    dice.shuffle(harmless)
    text = record(b"T", dice.randbytes(dice.randint(17, 60)))
    behind = [record(b"A", b"\0" + dice.randbytes(5)), 3 * record(b"N", b""), record(b"S", b"\x63")]
    dice.shuffle(behind)
    return b"TC" + b"".join(harmless[: dice.randint(0, 4)]) + text + b"".join(behind)


THIRTY_NINE = b"TC" + record(b"T", b"0123456789abcdefgh") + record(b"A", b"\0" * 6) + record(b"N", b"topcoat")
"""39 bytes that overflow copy_text, of which libFuzzer's own minimiser makes a division by zero."""
