"""Names of functions, and whose they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fuzz.crashes.functions import name, own
from pipeline.fuzz.crashes.stack import Frame


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
        ("<a::B as c::D<e>>::f", "a::B::f"),
        ("<a::B<c> as d::E>::f::<g>", "a::B::f"),
        ("<a::B<c>>::f", "a::B::f"),
        ("<&dyn a::B as c::D>::f", "a::B::f"),
        ("<[u8] as c::D>::f", "f"),
        ("<a::B<fn(u8) -> u8> as c::D>::f", "a::B::f"),
        ("<a as b", "<a as b"),
        ("a::b::{closure#3}", "a::b::closure"),
        ("a::b(int) const::'lambda'(int)::operator()(int) const", "a::b::lambda::operator_c"),
        ("a::b() const &::c::d()", "a::b::c::d"),
        ("a::b::{{closure}}", "a::b::closure"),
        ("v8::`anonymous namespace'::f<0>", "v8::anonymous::f"),
        ("$anon::f(int)", "anonymous::f"),
        ("non-virtual thunk to a::b()", "a::b"),
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
        "__run_exit_handlers", "exit", "_exit", "quick_exit", "__cxa_finalize", "operator()", "operator()<int> const",
        "g_assertion_message_expr", "__android_log_assert", "a::assertNotHeld()::'lambda'()::operator()() const",
        "memcpy-ssse3-back.S:1702", "base::debug::BreakDebugger()", "WTFCrash", "V8_Fatal", "fx_logger_log",
        "libc.so.6", "SignalAction(int, void*, void*)", "__clang_call_terminate", "__cxxabiv1::failed_throw(int*)",
        "__gnu_cxx::__verbose_terminate_handler()", "_Unwind_RaiseException", "std::__1::__libcpp_verbose_abort(char)",
        "std::__detail::_Compiler<a>::_M_atom()", "std::vector<a>::_M_range_check(unsigned long) const",
        "std::__1::(anonymous namespace)::as_integer<a>(b)", "std::__1::__function::__func<a>::operator()()",
        "core::str::slice_error_fail_rt", "core::slice::index::slice_end_index_len_fail::do_panic::runtime",
        "core::cell::panic_already_borrowed", "__clang_trap_msg$libc++$a/vector:653: assertion x failed: y",
        "a::Storage<logging::LogMessage::Flush()::$_0>::Call()", "logging::(anonymous namespace)::CheckLogMessage::f()",
        "runtime.raise.abi0", "panic", "panic_abort::__rust_start_panic::abort::h0123456789abcdef", "linux-gate.so.1",
        "alloc::raw_vec::RawVec$LT$T$C$A$GT$::reserve::hf99060ff0a84a3be",
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
        "std::__1::sort<a>(a)",
        "std::__cxx11::basic_string<a>::at(int)",
        "std::hash<mine>::operator()(mine const&)",
        "core::parse",
        "signal_action",
        "a::memcpy",
        "exit_all",
        "reassert",
        "Insert",
        "operators_of",
        "a::operator()()",
        "logging_on",
        "panics",
        "NewParser",
    ],
)
def test_frames_that_are_the_targets(function: str) -> None:
    assert own([Frame("abort"), Frame(function)]) == [Frame(function)]


@pytest.mark.parametrize(
    "file",
    [
        "../prebuilt/include/c++/v1/libcxx/include/vector",
        "/rustc/90c5/library/core/src/slice/index.rs",
        "/usr/include/c++/12/bits/stl_vector.h",
        "/usr/include/c++/4.9.2/vector",
        "/src/llvm-project/compiler-rt/lib/asan/asan_stack.cpp",
    ],
)
def test_sources_that_are_nobodys(file: str) -> None:
    assert own([Frame("std::__2::vector<int>::at(unsigned long)", file, 3), Frame("mine")]) == [Frame("mine")]
    assert own([Frame("f", "src/libcxx.cc", 3)])
    assert own([Frame("f", "src/c++/vector.cc", 3)])


def test_modules_of_the_system_are_nobodys() -> None:
    assert own([Frame("fx_f", "a.cc", 1, "libsyslog.so+0x1"), Frame("mine", "b.cc", 2, "+0x1")]) == [
        Frame("mine", "b.cc", 2, "+0x1")
    ]


@pytest.mark.parametrize("library", ["libcrypto.so.3", "libmagic.so.1", "libstdc++mine", "mine"])
def test_unnamed_frames_of_other_libraries_are_the_targets(library: str) -> None:
    assert own([Frame("", place=f"{library}+0x9d918")])


@pytest.mark.parametrize("library", ["libstdc++.so.6", "libc++.so.1", "libc++abi.so.1.0", "libc.so.6", "libm.so.6"])
def test_unnamed_frames_of_the_system_are_nobodys(library: str) -> None:
    assert own([Frame("", place=f"{library}+0x9d918"), Frame("mine")]) == [Frame("mine")]


def test_what_allocates_is_nobodys_where_memory_ran_out() -> None:
    frames = [Frame("NewForOverwrite"), Frame("mine")]
    assert own(frames, allocating=True) == frames[1:]
    assert own(frames) == frames


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (Frame("λ(int)", "../../src/a.cc", 3), "λ a.cc"),
        (Frame("", "../../arch/exceptions.S", 3, "m+0x1"), "exceptions.S"),
        (Frame("github.com/x/y.(*T[...]).Method", "/src/y.go", 3), "y.T.Method"),
        (Frame("main.f.func1", "/src/y.go", 3), "main.f.func1"),
    ],
)
def test_a_name_by_the_file(frame: Frame, expected: str) -> None:
    assert name(frame) == expected


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
