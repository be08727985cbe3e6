"""Frames of stacks, their names, and whose they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crashes import stack
from pipeline.crashes.stack import Frame, name, own, read


@pytest.mark.parametrize(
    ("line", "frame"),
    [
        (
            "    #7 0x55726e88fa28 in greet pipeline/demo/fuzzers/crash_fuzzer.c:10:17",
            Frame("greet", "pipeline/demo/fuzzers/crash_fuzzer.c", 10),
        ),
        ("    #7 0x55726e88fa28 in greet crash_fuzzer.c:10", Frame("greet", "crash_fuzzer.c", 10)),
        (
            "    #3 0x7f34b929304f  (/lib/libc.so.6+0x3c04f) (BuildId: 93ac61ec5a8eb1)",
            Frame("", place="libc.so.6+0x3c04f"),
        ),
        (
            "    #1 0x5 in fuzzer::Run(int*, char***) (/d/a b/f+0x46058) (BuildId: 96)",
            Frame("fuzzer::Run(int*, char***)", place="f+0x46058"),
        ),
        (
            "    #1 0x5 in a::b<c, d>::e(unsigned char const*) const /src/a.cc:1:2",
            Frame("a::b<c, d>::e(unsigned char const*) const", "/src/a.cc", 1),
        ),
        (
            "   #1.2  0x000041f27ab1c9a5 in fuzz(const uint8_t*, size_t) ../../file.cc:12 <x>+0x123",
            Frame("fuzz(const uint8_t*, size_t)", "../../file.cc", 12, "x+0x123"),
        ),
        ("   #0    0x00 in abort() a.c:7 <libc.so>+0xa sp 0x1", Frame("abort()", "a.c", 7, "libc.so+0xa")),
        ("   #0    0x00 in <libfoo.so>+0x1", Frame("", place="libfoo.so+0x1")),
        ("   #0    0x00 is not covered by any module", Frame("")),
        ("#0 0x1 in f", Frame("f")),
        ("#0 0x1 in f \r", Frame("f")),
        ("#0 0x1 in", Frame("")),
        ("#0 0x1", Frame("")),
        ("#0 0x1 in f x.c:1234567890123", Frame("f x.c:1234567890123")),
    ],
)  # fmt: skip
def test_a_frame(line: str, frame: Frame) -> None:
    assert read([line]) == (frame,)


@pytest.mark.parametrize(
    "line", ["", "#0", "#x 0x1 in f", "#12345: cov: 3", "0 0x1 in f", "a #0 0x1 in f", "#0 1 in f"]
)
def test_what_is_no_frame(line: str) -> None:
    assert read([line]) == ()


def frames(*numbers: str) -> list[str]:
    return [f"  #{number} 0x1 in f{number.replace('.', '_')}" for number in numbers]


def functions(lines: list[str]) -> list[str]:
    return [frame.function for frame in read(lines)]


def test_the_first_stack_ends_where_another_begins() -> None:
    assert functions(["x", *frames("0", "1", "2"), "", "freed by:", *frames("0", "1")]) == ["f0", "f1", "f2"]
    assert functions([*frames("0"), *frames("0.1", "0", "1"), *frames("0")]) == ["f0", "f0_1", "f0", "f1"]


def test_lines_of_others_may_stand_in_a_stack_but_not_many() -> None:
    assert functions([*frames("0"), "[1.2] a log", *frames("1")]) == ["f0", "f1"]
    assert functions([*frames("0"), *["a log"] * 21, *frames("1")]) == ["f0"]
    assert functions([*frames("0"), "SUMMARY: it", *frames("1")]) == ["f0"]


def test_of_a_deep_stack_the_upper_part_is_kept() -> None:
    assert len(functions(frames(*map(str, range(400))))) == stack.MOST_FRAMES


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("greet", "greet"),
        ("greet(int, char const*)", "greet"),
        ("void a::b<int, c<d> >::e<f>(int (*)(g), h) const", "a::b::e"),
        ("std::__1::vector<int, std::__1::allocator<int> >::at(unsigned long) const &", "std::__1::vector::at"),
        ("(anonymous namespace)::f(int)", "anonymous::f"),
        ("a::operator()(int) const", "a::operator_c"),
        ("bool a::operator< <int>(int)", "a::operator_l"),
        ("a::operator->() const", "a::operator_mg"),
        ("b a::operator<<(c&)", "a::operator_ll"),
        ("void* operator new(unsigned long)", "operator new"),
        ("a::operator bool() const", "a::operator bool"),
        ("f(int)::$_12::operator()(int) const", "f::lambda::operator_c"),
        ("f(int)::'lambda3'(int)::operator()(int) const", "f::lambda::operator_c"),
        ("f(int)::{lambda(int)#4}::operator()(int) const", "f::lambda::operator_c"),
        ("f.cold.12", "f"),
        ("f.llvm.1234567890", "f"),
        ("f[abi:v15007](int)", "f"),
        ("<a::B as c::D<e>>::f", "f"),
        ("a::b::{{closure}}", "a::b::closure"),
        ("core::ptr::drop_in_place<a>::h0123456789abcdef", "core::ptr::drop_in_place"),
        ("f+0x12", "f"),
        ("f(((", "f"),
        (")))f", "f"),
        ("<<<", "<<<"),
    ],
)
def test_a_name_has_only_what_stays_the_same(function: str, expected: str) -> None:
    assert name(Frame(function)) == expected


@pytest.mark.parametrize(
    "function",
    [
        "__sanitizer_print_stack_trace", "fuzzer::PrintStackTrace()", "__pthread_kill_implementation", "raise", "abort",
        "__assert_fail", "__assert_fail_base", "___interceptor_free", "__interceptor_malloc", "__asan_memcpy", "memcpy",
        "__memcpy_avx_unaligned_erms", "__memmove_chk", "strncasecmp", "__strlen_avx2", "operator new(unsigned long)",
        "operator delete[](void*)", "void* operator new[](unsigned long)", "__asan::ReportGenericError()", "gsignal",
        "std::__1::__terminate(void (*)())", "std::terminate()", "__cxa_throw", "CrashTrampolineAsm", "__zx_panic",
        "rust_panic", "std::panicking::begin_panic", "core::panicking::panic_fmt", "__ubsan_handle_shift_abort",
        "main", "_start", "__libc_start_main", "free", "__GI_abort", "abort_message",
    ],
)  # fmt: skip
def test_frames_that_are_nobodys(function: str) -> None:
    assert own([Frame(function), Frame("mine")]) == [Frame("mine")]


@pytest.mark.parametrize(
    "function",
    [
        "free_list",
        "abort_all(int)",
        "memory",
        "strange",
        "main_loop",
        "raised",
        "newest",
        "std::sort<a>(a)",
        "a::memcpy",
    ],
)
def test_frames_that_are_the_targets(function: str) -> None:
    assert own([Frame("abort"), Frame(function)]) == [Frame(function)]


@pytest.mark.parametrize(
    "file", ["../prebuilt/include/c++/v1/libcxx/include/vector", "/rustc/90c5/library/core/src/slice/index.rs"]
)
def test_sources_that_are_nobodys(file: str) -> None:
    assert own([Frame("std::__2::vector<int>::at(unsigned long)", file, 3), Frame("mine")]) == [Frame("mine")]
    assert own([Frame("f", "src/libcxx.cc", 3)])


def test_what_calls_the_entry_is_cut() -> None:
    entry = Frame("LLVMFuzzerTestOneInput(unsigned char const*, unsigned long)")
    assert own([Frame("f"), entry, Frame("g"), Frame("h")]) == [Frame("f"), entry]


def test_among_frames_with_names_libraries_without_are_nobodys() -> None:
    plugin = Frame("", place="plugin.so+0x1")
    assert own([Frame("", place="libc.so.6+0x1"), plugin, Frame(""), Frame("f")]) == [plugin, Frame("f")]


def test_without_names_what_handles_a_signal_is_cut() -> None:
    places = ["libclang_rt.asan.so+0x1", "f+0x1", "f+0x2", "libc.so.6+0x1", "libc.so.6+0x2", "f+0x3", "f+0x4"]
    unnamed = [Frame("", place=place) for place in places]
    assert own(unnamed, handled=True) == unnamed[5:]
    assert own(unnamed) == [*unnamed[1:3], *unnamed[5:]]
    assert own(unnamed[:4], handled=True) == unnamed[1:3]


@given(st.text(alphabet="ab:(<[)>] *&.-$_0#x{}'", max_size=60))
def test_a_name_of_anything_is_one(function: str) -> None:
    named = name(Frame(function, place="m+0x1"))
    assert named == ("m+0x1" if not function else named)
    assert named or not function


@given(st.lists(st.text(max_size=30) | st.text(max_size=30).map("#0 0x1 in {}".format)))
def test_reading_never_fails(lines: list[str]) -> None:
    assert all(isinstance(frame, Frame) for frame in own(read(lines)))
