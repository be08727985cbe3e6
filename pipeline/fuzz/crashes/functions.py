"""Which frames of a stack are the target's own, and names for them that stay the same when it is built again."""

import re
from collections.abc import Sequence

from pipeline.fuzz.crashes.stack import Frame

ENTRY = "LLVMFuzzerTestOneInput"
"""The function through which libFuzzer runs its target. The frames that call it are libFuzzer's own."""

# Endings of glibc's functions for memory and strings; older symbolizers name those in assembler by file and line
_VARIANT = r"(?:_chk|_(?:avx|sse|evex|erms|unaligned|vec)\w*|-[\w-]+\.S(?::\d+)?)?"
# Chosen from STACK_FRAME_IGNORE_REGEXES and STACK_FRAME_IGNORE_REGEXES_IF_SYMBOLIZED of ClusterFuzz
# (src/clusterfuzz/stacktraces/constants.py): those that C, C++, Rust and Go can have on Fuchsia and Linux. Where it
# matches a beginning, such as "free", the whole name is matched here: a target's own free_list is no allocator.
_NOBODYS = (
    # Sanitizers and fuzzers
    r"_{1,3}(?:asan|hwasan|lsan|msan|tsan|ubsan|sanitizer|gwp_asan)(?:::|_).*",
    r"___?interceptor_.*|__interception::.*|(?:gwp_asan|scudo)::.*",
    r"fuzzer::.*|fuzztest::.*|centipede::.*|TestOneProtoInput|CrashTrampolineAsm|SignalAction",
    # The C library: how a process ends, memory, strings
    r"abort(?:_message)?|raise|gsignal|t?g?kill|pthread_(?:kill|create)|__pthread_kill.*|__(?:chk|fortify|stack_chk)_fail",
    r"_?exit|_Exit|quick_exit|_?exit_group|__run_exit_handlers|__cxa_(?:finalize|atexit)",
    r"__libc_.*|__GI_.*|_?main|_start|start_main|start_thread|clone3?|libc_io_functions_not_implemented_use_fdio_instead",
    r"_*(?:malloc|calloc|realloc|free|reallocarray|posix_memalign|aligned_alloc|memalign|valloc)",
    rf"_*(?:mem(?:p?cpy|move|set|cmp|chr|mem)|bcmp|str(?:n?cpy|n?cmp|n?cat|n?case_?cmp|n?len|n?dup|r?chr|str)){_VARIANT}",
    # C++: its runtime, and operators of inlined functions without their class
    r"operator(?:_(?:c|ll?=?|gg?=?|l=g|mg\*?)|\W.*)|__cxa_\w+|__cxxabiv1::.*|__clang_call_terminate|_Unwind_\w+",
    r"std::(?:__\d+::)?(?:_*terminate|unexpected|rethrow_exception|__throw_.*|__libcpp_verbose_abort)",
    r"std::(?:\w+::)*(?:_[A-Z]|__(?!\d+::|cxx11::|ndk1::|Cr::)).*|std::(?:__\d+::)?anonymous::.*",
    r"__gnu_cxx::__verbose_terminate_handler|demangling_(?:terminate|unexpected)_handler",
    # Rust
    r"_*rust_(?:begin_unwind|panic|oom|fuzzer_test_input|try|start_panic|maybe_catch_panic).*|panic_abort::.*",
    r"core::(?:panicking|result::unwrap_failed|option::(?:unwrap|expect)_failed|ops::function::Fn|fmt::write).*",
    r"core::(?:str|slice|cell|char|num)::(?:\w+::)*(?:\w+_fail|panic_)\w*(?:::.*)?",
    r"std::(?:panic|panicking|process::abort|sys|sys_common|io::Write::write_fmt)\b.*|alloc::.*|libfuzzer_sys::.*",
    # Go
    r"runtime\..*|panic",
    # Functions that log and then end the process; debuggers' breakpoints
    r"__zx_panic|(?:syslog|fxl)::LogMessage.*|_?fx_log.*|absl::log_internal::.*",
    r"base::debug::.*|v8::base::OS::Abort|V8_Fatal|WTFCrash.*|WTF::.*|SbSystemBreakIntoDebugger",
)
_NOBODY = re.compile("|".join(_NOBODYS))
_CHECKER = re.compile(r"(?:^|::|_)assert(?:ion)?(?:_|[A-Z]|$|::)")  # called as assert is: its caller is at fault
_LOGGER = re.compile(
    r"\blogging::(?:\(anonymous namespace\)::)?\w*(?:LogMessage|CheckError)\b"
)  # also where it is a template argument
_ALLOCATOR = re.compile(r"New[A-Z]\w*")
_FILE = re.compile(
    r"(?:/|^)(?:sanitizer_common|compiler-rt|libc\+\+|libcxx|c\+\+/v1|llvm-build|glibc-[^/]{1,40}|rustc|libhfuzz)/"
    r"|/include/c\+\+/\d[\d.]{0,8}/"
    r"|/rust/library/(?:alloc|core|std|panic_\w{1,20})/"
)
_LIBRARY = re.compile(
    r"(?:libc|libpthread|libc\+\+|libc\+\+abi|libstdc\+\+|libgcc_s|libm|ld-linux[\w-]*|ld-musl[\w-]*)"
    r"(?!\w)[\w.+-]*\.so.*"
    r"|(?:libsyslog|libfdio|libzircon|libunwind)\.so.*|vDSO\+.*"
    r"|libc-[\d.]+\.so|ld\.so\.1|libclang_rt\..*|linux-(?:gate|vdso).*|\[vdso\]|vdso.*|<?unknown module>?"
)

TRAP = re.compile(r"__clang_trap_msg\$[^$]*\$(.*)")
"""The name that clang makes up for a frame where a target traps, with the reason in the group."""

_OPERATOR = re.compile(r"\boperator ?(\(\)|<=>|<<=|>>=|<<|>>|<=|>=|->\*|->|<|>)")
_PUNCTUATION = str.maketrans({"(": "c", ")": "", "<": "l", ">": "g", "-": "m"})
_UNSTABLE = re.compile(
    r"\$_\d{1,9}|'lambda\d{0,9}'|\{lambda#\d{1,9}\}"  # the compiler numbers them in the order of the file
    r"|::h[0-9a-f]{16}$|(?:\.(?:cold|isra|part|constprop|llvm|lto_priv)(?:\.\d{1,20})?){1,8}$|\+0x[0-9a-f]{1,16}$"
)
_QUALIFIERS = re.compile(r"(?: (?:const|volatile|noexcept|&&?)){1,4}(?=$|::)")
_CLOSURE = re.compile(r"\{\{closure\}\}|\{closure#\d{1,9}\}")  # by Rust's older mangling, and by its newer one
_ANONYMOUS = re.compile(r"\(anonymous namespace\)|`anonymous namespace'|\$anon\b")  # by LLVM, Microsoft, zxdb


def own(frames: Sequence[Frame], handled: bool = False, allocating: bool = False) -> list[Frame]:
    """Return the frames of the target itself, without those of libFuzzer, sanitizers, the C library and their like.

    The last is ENTRY, if the stack has it. In a stack without any names, frames of known libraries are left out; if it
    is the stack of a signal's handler (`handled`), also the frames above the C library, which called the handler. In
    the stack of an allocation that failed (`allocating`), functions named New… without a class are the allocator's.
    """
    if not any(frame.function for frame in frames):
        calls = next((at for at, frame in enumerate(frames) if frame.place.startswith("libc.")), 0) if handled else 0
        return [frame for frame in frames[calls:] if _is_own(frame)] or [frame for frame in frames if _is_own(frame)]
    end = next((at for at, frame in enumerate(frames) if name(frame) == ENTRY), len(frames))
    return [
        frame
        for frame in frames[: end + 1]
        if _is_own(frame) and not (allocating and _ALLOCATOR.fullmatch(name(frame)))
    ]


def _is_own(frame: Frame) -> bool:
    if _LIBRARY.match(frame.place) or _FILE.search(frame.file):
        return False
    if not frame.function:
        return bool(frame.place or frame.file)
    called = name(frame)
    return not (
        _NOBODY.fullmatch(called)
        or _LIBRARY.fullmatch(frame.function)
        or _CHECKER.search(called)
        or _LOGGER.search(frame.function)
        or TRAP.match(frame.function)
    )


def name(frame: Frame) -> str:
    """Return a name for a frame that stays the same when the target is built again, as far as there is one.

    It is the function's name without parameters, template arguments, return type, and what the compiler has numbered.
    If the function is not known, it is the file, or else the place. For a lambda, of which zxdb tells no name, it is
    `λ` and the file.
    """
    file = frame.file.rpartition("/")[2]
    if not frame.function:
        return file or frame.place
    if frame.function.startswith("λ"):
        return f"λ {file}".strip()
    if frame.file.endswith(".go"):
        return _name_in_go(frame.function)
    text = _CLOSURE.sub("closure", _ANONYMOUS.sub("anonymous", frame.function))
    text = _OPERATOR.sub(lambda match: "operator_" + match[1].translate(_PUNCTUATION), text)
    text = _QUALIFIERS.sub("", _outside_brackets(_of_type(text)).strip())
    text = _UNSTABLE.sub(lambda match: "lambda" if "lambda" in match[0] or "$" in match[0] else "", text)
    before, operator, after = text.partition("operator ")  # operator new, operator bool: a blank in the name itself
    return (before.rpartition(" ")[2] + operator + after).strip(":*& ") or frame.function


def _of_type(text: str) -> str:
    """Return Rust's `<TYPE as TRAIT>::method` and `<TYPE>::method` as `TYPE::method`; any other text as it is."""
    if not text.startswith("<"):
        return text
    depth, middle = 0, 0
    for at, character in enumerate(text):
        depth += (character in "<([") - (character in ")]" or (character == ">" and text[at - 1] != "-"))
        middle = middle or (depth == 1 and text.startswith(" as ", at) and at)
        if not depth:
            return text[1 : middle or at] + text[at + 1 :]
    return text


def _name_in_go(function: str) -> str:
    """Return `pkg.Type.Method`: without the directory of the package, marks of pointers, and type arguments."""
    return re.sub(r"\[.*\]|[(*)]", "", function[function.rfind("/") + 1 :]) or function


def _outside_brackets(text: str) -> str:
    """Return the text without what is in (), <> and [], nested to any depth."""
    kept: list[str] = []
    depth = 0
    for at, character in enumerate(text):
        if character in "(<[":
            depth += 1
        elif character == ">" and depth and text[at - 1] == "-":
            continue  # an arrow, in the type of a function
        elif character in ")>]":
            depth = max(0, depth - 1)
        elif not depth:
            kept.append(character)
    return "".join(kept)
