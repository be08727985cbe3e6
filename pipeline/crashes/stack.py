"""Stacks as sanitizers and the symbolizers of LLVM and Fuchsia write them, and which of their frames mean something.

::

    #7 0x55726e88fa28 in greet pipeline/demo/fuzzers/crash_fuzzer.c:10:17
    #3 0x7f34b929304f  (/lib/libc.so.6+0x3c04f) (BuildId: 93ac61ec5a8eb139)
   #1.2  0x000041f27ab1c9a5 in fuzz_target_function(const uint8_t*, size_t) ../../file.cc:12 <fuzzer>+0x123
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ENTRY = "LLVMFuzzerTestOneInput"
"""The function through which libFuzzer runs its target: what it is called by is libFuzzer's own."""

MOST_FRAMES = 128
"""Of a stack, at most."""

_LONGEST_LINE = 4096
_LONGEST_NAME = 200
_GAP = 20  # lines of others, such as a log's, between two frames

_FRAME = re.compile(r" {0,16}#(\d{1,5})(?:\.\d{1,4})? {1,16}0x[0-9a-fA-F]{1,16}(?: (.*))?")
_BUILD_ID = re.compile(r" ?\(BuildId: [0-9a-fA-F]{1,128}\)$")
_FUCHSIA_PLACE = re.compile(r" ?<([^<>]{1,200})>(\+0x[0-9a-fA-F]{1,16})")
_SOURCE = re.compile(r"(.+?):(\d{1,9})(?::\d{1,9})?")

# Chosen from STACK_FRAME_IGNORE_REGEXES and STACK_FRAME_IGNORE_REGEXES_IF_SYMBOLIZED of ClusterFuzz
# (src/clusterfuzz/stacktraces/constants.py): those that C, C++ and Rust can have on Fuchsia and Linux. What it takes by
# the beginning, such as "free" or "new", is taken whole here: a target's own free_list is no part of the allocator.
_IGNORED = re.compile(
    r"(?:_{1,3}(?:asan|hwasan|lsan|msan|tsan|ubsan|sanitizer)(?:::|_)|___?interceptor_|__interception::|fuzzer::|fuzztest::"
    r"|__assert|__libc_|__GI_|__pthread_kill|__cxa_(?:re)?throw|std::(?:__\d+::)?_*terminate|std::__throw_"
    r"|_*rust_(?:begin_unwind|panic|oom|fuzzer_test_input|try|start_panic)|core::panicking|core::result::unwrap_failed|core::option::(?:unwrap|expect)_failed"
    r"|std::(?:panic|panicking|process::abort|sys)\b|core::ops::function::Fn|libfuzzer_sys::"
    r"|TestOneProtoInput|CrashTrampolineAsm|__zx_panic|syslog::LogMessage|fxl::LogMessage|logging::LogMessage"
    r"|absl::log_internal::|demangling_terminate_handler"
    r"|operator (?:new|delete)\b).*"
    r"|abort(?:_message)?|_?exit|_Exit|raise|gsignal|t?g?kill|pthread_(?:kill|create)|__(?:chk|fortify|stack_chk)_fail"
    r"|_*(?:malloc|calloc|realloc|free|reallocarray|posix_memalign|aligned_alloc|memalign|valloc)"
    r"|_*(?:mem(?:p?cpy|move|set|cmp|chr|mem)|bcmp|str(?:n?cpy|n?cmp|n?cat|n?case_?cmp|n?len|n?dup|r?chr|str))"
    r"(?:_chk|_(?:avx|sse|evex|erms|unaligned|vec)\w*)?"
    r"|_?main|_start|start_thread|clone3?"
)
_IGNORED_FILE = re.compile(r"(?:/|^)(?:sanitizer_common|libc\+\+|libcxx|glibc-[^/]{1,40}|rustc)/")
_LIBRARY = re.compile(
    r"(?:libc|libpthread|libc\+\+|libc\+\+abi|libstdc\+\+|libgcc_s|libm|ld-linux[\w-]*|ld-musl[\w-]*)\b[\w.+-]*\.so.*"
    r"|libc-[\d.]+\.so|ld\.so\.1|libclang_rt\..*|linux-(?:gate|vdso).*|\[vdso\]|vdso.*|<?unknown module>?"
)

_OPERATOR = re.compile(r"\boperator ?(\(\)|<=>|<<=|>>=|<<|>>|<=|>=|->\*|->|<|>)")
_PUNCTUATION = str.maketrans({"(": "c", ")": "", "<": "l", ">": "g", "-": "m"})
_UNSTABLE = re.compile(
    r"\$_\d{1,9}|'lambda\d{0,9}'|\{lambda#\d{1,9}\}"  # numbered in the order of their file
    r"|::h[0-9a-f]{16}$|(?:\.(?:cold|isra|part|constprop|llvm|lto_priv)(?:\.\d{1,20})?)+$|\+0x[0-9a-f]{1,16}$"
)
_TRAILING = re.compile(r"(?: (?:const|volatile|noexcept|&&?))+$")


@dataclass(frozen=True)
class Frame:
    """One call. What is not known is empty, or 0."""

    function: str
    file: str = ""
    line: int = 0
    place: str = ""
    """Where in a module, such as `libc.so.6+0x3c04f`."""


def read(lines: Iterable[str]) -> tuple[Frame, ...]:
    """The first stack in the lines, which are printable; of a deep one the upper part. No frame if there is none."""
    frames: list[Frame] = []
    last, gap = -1, 0
    for line in lines:
        match = _FRAME.fullmatch(line[:_LONGEST_LINE].rstrip())
        if match is None:
            gap += 1
            if frames and (gap > _GAP or line.startswith("SUMMARY: ")):
                break
            continue
        number, gap = int(match[1]), 0
        if number < last or (number == 0 and last > 0) or len(frames) == MOST_FRAMES:
            break
        frames.append(_frame(match[2] or ""))
        last = number
    return tuple(frames)


def _frame(text: str) -> Frame:
    text, place = _without_place(_BUILD_ID.sub("", text.strip()))
    text = text.strip()
    if text != "in" and not text.startswith("in "):
        return Frame("", place=place)
    before, _, word = text[3:].strip().rpartition(" ")
    source = _SOURCE.fullmatch(word)
    if source is None:
        return Frame(text[3:].strip()[:_LONGEST_NAME], place=place)
    return Frame(before.strip()[:_LONGEST_NAME], source[1][-_LONGEST_NAME:], int(source[2]), place)


def _without_place(text: str) -> tuple[str, str]:
    """What stands before the module, and the module's name and the offset in it."""
    head, bracket, module = text.rpartition("(")
    if bracket and module.endswith(")") and "+0x" in module:
        return head, module[:-1].rpartition("/")[2][-_LONGEST_NAME:]
    for match in _FUCHSIA_PLACE.finditer(text):
        return text[: match.start()], match[1].rpartition("/")[2] + match[2]
    return text, ""


def own(frames: Sequence[Frame], handled: bool = False) -> list[Frame]:
    """The frames that belong to the target: without those of libFuzzer, sanitizers, the C library and their like.

    The entry is the last of them, if it is there. In a stack without any names the libraries' are left out, and, if it
    is that of a signal's handler (`handled`), what stands above the C library, which called the handler.
    """
    if not any(frame.function for frame in frames):
        calls = next((at for at, frame in enumerate(frames) if frame.place.startswith("libc.")), 0) if handled else 0
        return [frame for frame in frames[calls:] if _is_own(frame)] or [frame for frame in frames if _is_own(frame)]
    end = next((at for at, frame in enumerate(frames) if name(frame) == ENTRY), len(frames))
    return [frame for frame in frames[: end + 1] if _is_own(frame)]


def _is_own(frame: Frame) -> bool:
    if frame.function:
        return not (_IGNORED.fullmatch(name(frame)) or _IGNORED_FILE.search(frame.file))
    return bool(frame.place) and not _LIBRARY.match(frame.place)


def name(frame: Frame) -> str:
    """A name for a frame that stays the same when the target is built again, as far as there is one.

    The function's, without parameters, template arguments, return type, and what the compiler has numbered. Without a
    function the place.
    """
    if not frame.function:
        return frame.place
    text = frame.function.replace("(anonymous namespace)", "anonymous").replace("{{closure}}", "closure")
    text = _OPERATOR.sub(lambda match: "operator_" + match[1].translate(_PUNCTUATION), text)
    text = _TRAILING.sub("", _outside_brackets(text).strip())
    text = _UNSTABLE.sub(lambda match: "lambda" if "lambda" in match[0] or "$" in match[0] else "", text)
    before, operator, after = text.partition("operator ")  # operator new, operator bool: a blank in the name itself
    return (before.rpartition(" ")[2] + operator + after).strip(":*& ") or frame.function


def _outside_brackets(text: str) -> str:
    """The text without what is in (), <> and [], nested to any depth."""
    kept: list[str] = []
    depth = 0
    for character in text:
        if character in "(<[":
            depth += 1
        elif character in ")>]":
            depth = max(0, depth - 1)
        elif not depth:
            kept.append(character)
    return "".join(kept)
