"""The bugs that were planted in the Linux guest's fuzzers, each with an input that reaches it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Planted:
    """One planted bug."""

    fuzzer: str
    input: bytes
    """An input that reaches the bug."""
    report: str
    """What libFuzzer or AddressSanitizer calls the bug, after "ERROR: "."""
    function: str
    """The function of the topmost frame of the stack that is the fuzzer's own."""


PLANTED = (
    Planted("crash_fuzzer", b"HI!", "libFuzzer: deadly signal", "greet"),
    Planted("overflow_fuzzer", b"\x09", "AddressSanitizer: heap-buffer-overflow", "copy_payload"),
    Planted("toy_example_arbitrary", b"\0\0\0\0\0\x01\0\x01", "libFuzzer: deadly signal", "check_area"),
    Planted("maze_fuzzer", b"NE", "AddressSanitizer: SEGV", "trap_door"),
    Planted("maze_fuzzer", b"NWS", "AddressSanitizer: heap-use-after-free", "ghost_room"),
    Planted("maze_fuzzer", b"SSSS", "AddressSanitizer: stack-buffer-overflow", "narrow_stairs"),
    Planted("maze_fuzzer", b"WEWEW", "libFuzzer: timeout", "endless_corridor"),
    Planted("maze_fuzzer", b"EEENNN", "libFuzzer: deadly signal", "sealed_gate"),
    Planted("parser_fuzzer", b"TCN\0N\0N\0", "AddressSanitizer: attempting double-free", "set_name"),
    Planted("parser_fuzzer", b"TCT\x11" + 17 * b"t", "AddressSanitizer: heap-buffer-overflow", "copy_text"),
    Planted("parser_fuzzer", b"TCS\x01\x08", "AddressSanitizer: global-buffer-overflow", "look_up_square"),
    Planted("parser_fuzzer", b"TCA\x02\0\0", "AddressSanitizer: FPE", "average"),
    Planted("parser_fuzzer", b"TC(\0" + 200 * b"(", "AddressSanitizer: stack-overflow", "nested_list"),
)
"""All planted bugs but that of out_of_memory_fuzzer, which needs no special input, only -rss_limit_mb."""
