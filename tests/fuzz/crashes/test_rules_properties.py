"""What holds for the rules whatever a target is called, and whatever a guest says."""

import re
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from pipeline.fuzz.crashes import functions
from pipeline.fuzz.crashes.report import UNKNOWN, CrashReport, parse
from pipeline.fuzz.crashes.rules import DEFAULT, MOST_FRAMES, Rule, decide, identity, key, parse_rule
from pipeline.fuzz.crashes.stack import Frame
from tests.fuzz.crashes.recorded import OUTPUTS, parsed

SLUG = re.compile(r"[a-z0-9_-]{1,80}")
RULES = [DEFAULT, Rule("dedup-token"), *(Rule("frames", number) for number in range(1, MOST_FRAMES + 1))]
KINDS = ("SEGV", "heap-buffer-overflow", "stack-overflow", "deadly signal", "timeout", "out-of-memory", "panic", "x")

rules = st.sampled_from(RULES)
texts = st.text(max_size=60)
names = st.text("bcdfgh", min_size=1, max_size=8)
"""They can spell no function of a runtime or a library."""


@dataclass(frozen=True)
class Call:
    """A call of the target's, as it is in its source."""

    function: str
    form: str
    """How the function's name is written around it; see FORMS."""


# What may differ from build to build stands in braces: a number, and another text
FORMS = (
    "{name}",
    "{name}(int, {text}*)",
    "void shop::{name}<{text}, std::vector<{text}> >(char const*)",
    "shop::Cart<{text}>::{name}() const",
    "<shop::{name}<{text}> as core::iter::Iterator>::next::h{number:016x}",
    "shop::{name}::h{number:016x}",
    "{name}.llvm.{number}",
    "{name}.cold.{number}",
    "shop::{name}(int)::$_{number}::operator()(int) const",
    "shop::{name}::{{closure#{number}}}",
)

calls = st.builds(Call, names, st.sampled_from(FORMS))


@dataclass(frozen=True)
class Build:
    """What differs from one build of a target to another, and from run to run."""

    base: int
    line: int
    directory: str
    build_id: str
    number: int
    text: str
    with_source: bool
    noise: tuple[str, ...]
    """Functions that are nobody's, above the target's own."""

    def printed(self, stack: list[Call], first: str = "AddressSanitizer: SEGV") -> str:
        """What a sanitizer says of a crash with this stack."""
        functions = [call.form.format(name=call.function, number=self.number, text=self.text) for call in stack]
        lines = [
            f"    #{at} {self.base + at * 16:#x} in {function} {self._place(at)}"
            for at, function in enumerate([*self.noise, *functions, "LLVMFuzzerTestOneInput", "main"])
        ]
        token = "--".join([*self.noise, *functions][:3])
        heading = f"=={self.number}==ERROR: {first} on unknown address {self.base:#x} (pc {self.base:#x} T0)"
        return "\n".join(["x", heading, *lines, "", f"DEDUP_TOKEN: {token}", "SUMMARY: AddressSanitizer: SEGV", ""])

    def _place(self, at: int) -> str:
        if self.with_source:
            return f"/{self.directory}/a.c:{self.line + at}:{at + 1}"
        return f"(/{self.directory}/target+{self.base + at:#x}) (BuildId: {self.build_id})"


builds = st.builds(
    Build,
    base=st.integers(1, 2**40),
    line=st.integers(1, 9999),
    directory=st.lists(names, min_size=1, max_size=4).map("/".join),
    build_id=st.text("0123456789abcdef", min_size=8, max_size=40),
    number=st.integers(0, 10**9 - 1),
    text=names,
    with_source=st.booleans(),
    noise=st.sampled_from([(), ("__asan_memcpy",), ("abort", "raise"), ("operator new(unsigned long)",)]),
)
stacks = st.lists(calls, min_size=1, max_size=6)


@given(stacks, builds, builds, rules)
def test_built_again_or_run_again_it_is_the_same_crash(stack: list[Call], one: Build, other: Build, rule: Rule) -> None:
    """Lines, addresses, offsets, build ids, paths, template arguments, and numbers that compilers give differ."""
    if rule.name == "dedup-token":
        other = replace(other, noise=one.noise)  # the token has three functions, of whomever they are
    assert key(parsed(one.printed(stack)), rule=rule) == key(parsed(other.printed(stack)), rule=rule)


@given(stacks, builds, rules, st.data())
def test_another_function_among_those_that_decide_is_another_crash(
    stack: list[Call], build: Build, rule: Rule, data: st.DataObject
) -> None:
    most = rule.frames - len(build.noise) * (rule.name == "dedup-token")
    at = data.draw(st.integers(0, min(most, len(stack)) - 1))
    changed = [*stack[:at], replace(stack[at], function=stack[at].function + "k"), *stack[at + 1 :]]
    one, other = parsed(build.printed(stack)), parsed(build.printed(changed))
    assert key(one, rule=rule) != key(other, rule=rule)


@given(stacks, builds, rules)
def test_another_kind_is_another_crash(stack: list[Call], build: Build, rule: Rule) -> None:
    one, other = (parsed(build.printed(stack, f"AddressSanitizer: {kind}")) for kind in ("SEGV", "FPE"))
    assert key(one, rule=rule) != key(other, rule=rule)


@given(st.lists(names, min_size=1, max_size=6), st.lists(names, max_size=3), st.booleans())
def test_without_names_the_place_in_the_module_counts_not_where_it_lies(
    modules: list[str], directory: list[str], with_id: bool
) -> None:
    def printed(path: str, build_id: str) -> str:
        lines = [f"    #{at} {at:#x}  (/{path}{name}+{at:#x}){build_id}" for at, name in enumerate(modules)]
        return "\n".join(["ERROR: AddressSanitizer: SEGV on unknown address", *lines, ""])

    other = printed("".join(f"{part}/" for part in directory), " (BuildId: 0123abcd)" * with_id)
    assert key(parsed(printed("", ""))) == key(parsed(other))


frames = st.builds(Frame, texts | names, texts, st.integers(0, 9), texts | st.just("libc.so.6+0x1"))
reports = st.builds(
    CrashReport,
    st.sampled_from(KINDS) | texts,
    frames=st.lists(
        frames | st.sampled_from([Frame("LLVMFuzzerTestOneInput"), Frame("f"), Frame("g")]), max_size=12
    ).map(tuple),
    message=texts,
    dedup_token=st.lists(texts | st.sampled_from(["f", "g", "malloc"]), max_size=4).map(tuple),
)


@given(reports, texts, rules)
def test_a_decision_on_anything_is_sound(report: CrashReport, fuzzer: str, rule: Rule) -> None:
    decision = decide(report, fuzzer, rule)
    assert SLUG.fullmatch(decision.slug)
    assert decision.slug.endswith(identity(decision.key))
    assert tuple(judged.frame for judged in decision.frames) == report.frames
    deciding = [judged.frame for judged in decision.frames if judged.decides]
    assert sorted(map(repr, deciding)) == sorted(map(repr, decision.telling))
    assert all(judged.decides or judged.why for judged in decision.frames), "each that is left out has a reason"
    assert len(decision.parts) <= (rule.frames if not report.dedup_token else MOST_FRAMES)
    assert all(functions.name(frame) in decision.parts for frame in deciding if not frame.file)
    assert decision == decide(report, fuzzer, rule)
    assert all("\n" not in line for line in decision.lines()[1:] if not report.message)
    assert parse_rule(str(rule)) == rule


@given(reports)
def test_three_frames_are_the_default(report: CrashReport) -> None:
    assert decide(report, "p/f").key == decide(report, "p/f", parse_rule("frames:3")).key


OUTPUT = (OUTPUTS / "parser_fuzzer-copy_text.txt").read_bytes()


@given(st.data(), rules)
def test_a_damaged_output_is_decided_too(data: st.DataObject, rule: Rule) -> None:
    """Cut off, and with anything written into it, as by a guest that wants to be misread."""
    start = data.draw(st.integers(0, len(OUTPUT)))
    end = data.draw(st.integers(start, len(OUTPUT)))
    added = data.draw(st.binary(max_size=40) | texts.map(lambda text: text.encode(errors="replace")))
    decision = decide(parse(OUTPUT[:start] + added + OUTPUT[end:]) or UNKNOWN, "p/f", rule)
    assert SLUG.fullmatch(decision.slug)
    assert not re.search("[\0-\x1f\x7f-\x9f]", "".join(decision.lines()).replace("\t", ""))
