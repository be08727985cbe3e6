"""Which frames of a stack are the target's own, and names for them that stay the same when it is built again."""

import re
from collections.abc import Mapping, Sequence

from pipeline.fuzz.crashes.stack import Frame

ENTRY = "LLVMFuzzerTestOneInput"
"""The function through which libFuzzer runs its target. The frames that call it are libFuzzer's own."""

# Endings of glibc's functions for memory and strings; older symbolizers name those in assembler by file and line
_VARIANT = r"(?:_chk|_(?:avx|sse|evex|erms|unaligned|vec)\w*|-[\w-]+\.S(?::\d+)?)?"
# Chosen from STACK_FRAME_IGNORE_REGEXES and STACK_FRAME_IGNORE_REGEXES_IF_SYMBOLIZED of ClusterFuzz
# (src/clusterfuzz/stacktraces/constants.py): those that C, C++, Rust and Go can have on Fuchsia and Linux. Where it
# matches a beginning, such as "free", the whole name is matched here: a target's own free_list is no allocator.
_ENGINE = "the fuzzing engine's own"
_SANITIZER = "a sanitizer's"
_C, _CXX, _RUST, _GO = "of the C library", "of C++'s runtime", "of Rust's runtime", "of Go's runtime"
_ALLOCATES = "an allocator"
_CHECKS, _LOGS, _TRAPS = "what checks an assertion", "what logs and ends the process", "where a check traps"
_KERNEL, _SYSTEM, _NOWHERE = "of the kernel", "of a library of the system", "of no known module"
BELOW = "below the entry"
_HANDLES, _UNKNOWN = "above the handler of the signal", "without a name"

_NOBODYS = {
    _SANITIZER: (
        r"_{1,3}(?:asan|hwasan|lsan|msan|tsan|ubsan|sanitizer|gwp_asan)(?:::|_).*",
        r"___?interceptor_.*|__interception::.*|gwp_asan::.*",
    ),
    _ENGINE: (
        r"fuzzer::.*|fuzztest::.*|centipede::.*|TestOneProtoInput|CrashTrampolineAsm|SignalAction",
        r"_*rust_fuzzer_test_input.*|libfuzzer_sys::.*",
    ),
    _ALLOCATES: (
        r"scudo::.*|_*(?:malloc|calloc|realloc|free|reallocarray|posix_memalign|aligned_alloc|memalign|valloc)",
        r"operator (?:new|delete)\b.*",
    ),
    _C: (  # how a process ends, memory, strings
        r"abort|raise|gsignal|t?g?kill|pthread_(?:kill|create)|__pthread_kill.*|__(?:chk|fortify|stack_chk)_fail",
        r"_?exit|_Exit|quick_exit|_?exit_group|__run_exit_handlers|__cxa_(?:finalize|atexit)",
        r"__libc_.*|__GI_.*|_?main|_start|start_main|start_thread|clone3?",
        r"libc_io_functions_not_implemented_use_fdio_instead",
        rf"_*(?:mem(?:p?cpy|move|set|cmp|chr|mem)|bcmp|str(?:n?cpy|n?cmp|n?cat|n?case_?cmp|n?len|n?dup|r?chr|str)){_VARIANT}",
    ),
    _CXX: (  # also operators of inlined functions without their class
        r"operator(?:_(?:c|ll?=?|gg?=?|l=g|mg\*?)|\W.*)|__cxa_\w+|__cxxabiv1::.*|__clang_call_terminate|_Unwind_\w+",
        r"std::(?:__\d+::)?(?:_*terminate|unexpected|rethrow_exception|__throw_.*|__libcpp_verbose_abort)",
        r"std::(?:\w+::)*(?:_[A-Z]|__(?!\d+::|cxx11::|ndk1::|Cr::)).*|std::(?:__\d+::)?anonymous::.*",
        r"__gnu_cxx::__verbose_terminate_handler|demangling_(?:terminate|unexpected)_handler|abort_message",
    ),
    _RUST: (
        r"_*rust_(?:begin_unwind|panic|oom|try|start_panic|maybe_catch_panic).*|panic_abort::.*",
        r"core::(?:panicking|result::unwrap_failed|option::(?:unwrap|expect)_failed|ops::function::Fn|fmt::write).*",
        r"core::(?:str|slice|cell|char|num)::(?:\w+::)*(?:\w+_fail|panic_)\w*(?:::.*)?",
        r"std::(?:panic|panicking|process::abort|sys|sys_common|io::Write::write_fmt)\b.*|alloc::.*",
    ),
    _GO: (r"runtime\..*|panic",),
    _LOGS: (
        r"__zx_panic|(?:syslog|fxl)::LogMessage.*|_?fx_log.*|absl::log_internal::.*",
        r"base::debug::.*|v8::base::OS::Abort|V8_Fatal|WTFCrash.*|WTF::.*|SbSystemBreakIntoDebugger",
    ),
}  # fmt: skip
_CHECKER = re.compile(r"(?:^|::|_)assert(?:ion)?(?:_|[A-Z]|$|::)")  # called as assert is: its caller is at fault
_LOGGER = re.compile(
    r"\blogging::(?:\(anonymous namespace\)::)?\w*(?:LogMessage|CheckError)\b"
)  # also where it is a template argument
_ALLOCATOR = re.compile(r"New[A-Z]\w*")
_FILES = {
    _SANITIZER: (r"(?:/|^)(?:sanitizer_common|compiler-rt|llvm-build)/",),
    _CXX: (r"(?:/|^)(?:libc\+\+|libcxx|c\+\+/v1)/", r"/include/c\+\+/\d[\d.]{0,8}/"),
    _C: (r"(?:/|^)glibc-[^/]{1,40}/",),
    _RUST: (r"(?:/|^)rustc/", r"/rust/library/(?:alloc|core|std|panic_\w{1,20})/"),
    _ENGINE: (r"(?:/|^)libhfuzz/",),
}
_SHARED = r"(?!\w)[\w.+-]*\.so.*"
_LIBRARIES = {
    _SANITIZER: (r"libclang_rt\..*",),
    _CXX: (rf"(?:libc\+\+|libc\+\+abi|libstdc\+\+|libgcc_s){_SHARED}", r"libunwind\.so.*"),
    _C: (rf"(?:libc|libpthread|libm|ld-linux[\w-]*|ld-musl[\w-]*){_SHARED}", r"libc-[\d.]+\.so|ld\.so\.1"),
    _SYSTEM: (r"(?:libsyslog|libfdio|libzircon)\.so.*",),
    _KERNEL: (r"vDSO\+.*|linux-(?:gate|vdso).*|\[vdso\]|vdso.*",),
    _NOWHERE: (r"<?unknown module>?",),
}


class _Table:
    """Patterns by the reason that they give; the first that matches counts."""

    def __init__(self, patterns: Mapping[str, Sequence[str]]) -> None:
        self._reasons = tuple(patterns)
        self.pattern = re.compile("|".join(f"({'|'.join(of_reason)})" for of_reason in patterns.values()))

    def reason(self, match: re.Match[str] | None) -> str:
        """Return the reason that a match of `pattern` gives; empty if there is none."""
        return self._reasons[match.lastindex - 1] if match and match.lastindex else ""


_NOBODY, _FILE, _LIBRARY = _Table(_NOBODYS), _Table(_FILES), _Table(_LIBRARIES)

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


def judge(frames: Sequence[Frame], handled: bool = False, allocating: bool = False) -> list[str]:
    """Say of each frame why it is not the target's own, in a few words; nothing if it is.

    Not the target's own are libFuzzer, sanitizers, the C library and their like, and what is below the first ENTRY. In
    a stack without any names, frames of known libraries are not; if it is the stack of a signal's handler (`handled`),
    also the frames above the C library, which called the handler. In the stack of an allocation that failed
    (`allocating`), functions named New… without a class are the allocator's.
    """
    whose = [_whose(frame) for frame in frames]
    if not any(frame.function for frame in frames):
        calls = next((at for at, frame in enumerate(frames) if frame.place.startswith("libc.")), 0) if handled else 0
        return [_HANDLES] * calls + whose[calls:] if not all(whose[calls:]) else whose
    names = [name(frame) for frame in frames]
    end = names.index(ENTRY) if ENTRY in names else len(frames)
    if allocating:
        whose = [why or _ALLOCATES * bool(_ALLOCATOR.fullmatch(named)) for why, named in zip(whose, names, strict=True)]
    return whose[: end + 1] + [BELOW] * len(whose[end + 1 :])


def own(frames: Sequence[Frame], handled: bool = False, allocating: bool = False) -> list[Frame]:
    """Return the frames of the target itself, as `judge` tells them. The last is ENTRY, if the stack has it."""
    return [frame for frame, why in zip(frames, judge(frames, handled, allocating), strict=True) if not why]


def _whose(frame: Frame) -> str:
    """Say whose a frame is, for itself; nothing if it can be the target's. What its function tells comes first."""
    in_library = _LIBRARY.reason(_LIBRARY.pattern.match(frame.place))
    in_file = _FILE.reason(_FILE.pattern.search(frame.file))
    if not frame.function:
        return in_library or in_file or _UNKNOWN * (not frame.place and not frame.file)
    return _whose_function(frame.function, name(frame)) or in_file or in_library


def _whose_function(function: str, called: str) -> str:
    if why := _NOBODY.reason(_NOBODY.pattern.fullmatch(called)):
        return why
    if _CHECKER.search(called):
        return _CHECKS
    if TRAP.match(function):
        return _TRAPS
    return _LOGS if _LOGGER.search(function) else _LIBRARY.reason(_LIBRARY.pattern.fullmatch(function))


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
