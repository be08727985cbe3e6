"""topcoat-targets.toml: what each key means, and what is said about a file that is wrong."""

import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds import demo
from pipeline.builds.targets.sources import MOST_TARGETS, NAME, SourceTarget, TargetSources, package_of, read
from pipeline.errors import SettingsError

TARGET = '[[target]]\nname = "a"\n'


def reading(directory: Path, content: str | bytes) -> TargetSources:
    directory.mkdir(exist_ok=True)
    (directory / NAME).write_bytes(content.encode() if isinstance(content, str) else content)
    return read(directory)


def refusal(directory: Path, content: str | bytes) -> tuple[str, str]:
    """The message about a wrong file, without its path, and the hint."""
    with pytest.raises(SettingsError) as caught:
        reading(directory, content)
    path, _, message = str(caught.value).partition(": ")
    assert path == str(directory / NAME)
    assert caught.value.detail == ""
    return message, caught.value.hint


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "expat"


def test_without_a_file_all_is_default(here: Path) -> None:
    assert read(here) == TargetSources("expat")
    assert not read(here).compiles
    assert reading(here, "") == TargetSources("expat")
    (here / "file").touch()
    assert read(here / "file") == TargetSources("file")


def test_every_key(here: Path) -> None:
    found = reading(
        here,
        """
        package = "xml"
        packages = ["libicu72", "zlib1g"]
        files = ["testdata", "*.dtd"]
        sources = ["common.c"]
        include = ["include"]
        defines = ["COMMON"]
        flags = ["-O2"]
        libraries = ["z"]
        sanitizers = ["undefined"]

        [[target]]
        name = "b_fuzzer"
        sources = ["fuzz/b.cc", "/abs/c.c", "../d.c"]
        include = ["lib"]
        defines = ["OWN=1"]
        flags = ["-O0"]
        libraries = ["m"]
        sanitizers = ["address", "undefined"]

        [[target]]
        name = "a"
        """,
    )
    assert found == TargetSources(
        package="xml",
        packages=("libicu72", "zlib1g"),
        files=("testdata", "*.dtd"),
        targets=(
            SourceTarget(
                name="b_fuzzer",
                sources=("fuzz/b.cc", "/abs/c.c", "../d.c", "common.c"),
                include=("lib", "include"),  # the first place in which a header is found counts
                defines=("COMMON", "OWN=1"),  # the last one of a name counts
                flags=("-O2", "-O0"),
                libraries=("m", "z"),  # a library comes before those that it needs
                sanitizers=("address", "undefined"),
            ),
            SourceTarget("a", ("a.c", "common.c"), ("include",), ("COMMON",), ("-O2",), ("z",), ("undefined",)),
        ),
    )
    assert found.compiles
    assert found.target("a") is found.targets[1]


def test_a_target_has_address_sanitizer_unless_it_is_told_otherwise(here: Path) -> None:
    assert reading(here, TARGET).targets[0].sanitizers == ("address",)
    assert reading(here, f"{TARGET}sanitizers = []").targets[0].sanitizers == ()
    assert reading(here, f"sanitizers = []\n{TARGET}").targets[0].sanitizers == ()


@pytest.mark.parametrize("suffix", ["c", "cc", "cpp", "cxx"])
def test_a_target_without_sources_is_the_file_of_its_name(here: Path, suffix: str) -> None:
    here.mkdir()
    (here / f"a.{suffix}").touch()
    (here / "a.cxx").touch()
    assert reading(here, TARGET).targets[0].sources == (f"a.{suffix}",)


def test_a_source_that_is_missing_is_only_its_targets_affair(here: Path) -> None:
    here.mkdir()
    (here / "a.cc").symlink_to("nowhere")
    found = reading(here, f'{TARGET}[[target]]\nname = "b"\n[[target]]\nname = "c"\nsources = ["d.c"]')
    assert [target.sources for target in found.targets] == [("a.cc",), ("b.c",), ("d.c",)]


def test_a_target_that_is_not_there(here: Path) -> None:
    with pytest.raises(SettingsError, match=r"^topcoat-targets\.toml has no target b\\n$") as caught:
        reading(here, f'{TARGET}[[target]]\nname = "c"').target("b\n")
    assert caught.value.hint == "it has a, c"
    with pytest.raises(SettingsError) as caught:
        reading(here, "").target("b")
    assert caught.value.hint == "it has none at all"


@pytest.mark.parametrize(
    ("name", "package"),
    [("out", "out"), ("My-Fuzzers_1.2", "My-Fuzzers_1.2"), ("a b", "targets"), (".hidden", "targets"),
     ("-x", "targets"), ("x" * 101, "targets"), ("x" * 100, "x" * 100), ("größe", "targets"), ("a\nb", "targets")],
)  # fmt: skip
def test_a_package_is_called_like_its_directory_if_it_can_be(tmp_path: Path, name: str, package: str) -> None:
    assert package_of(tmp_path / name) == package
    assert reading(tmp_path / name, TARGET).package == package


def test_the_name_of_the_root_and_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert package_of(Path("/")) == "targets"
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert package_of(Path()) == "mine"


def test_a_byte_order_mark_and_other_line_ends(here: Path) -> None:
    assert reading(here, b"\xef\xbb\xbf" + TARGET.replace("\n", "\r\n").encode()).targets[0].name == "a"


ALL = "the keys are include, defines, flags, libraries, sanitizers"
MANUAL = "docs/targets.md explains all keys"
CORRECT = f"correct it; {MANUAL}"


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("foo = 1", "there is no key 'foo'", f"{ALL}, package, packages, files, sources, target; {MANUAL}"),
        (f"{TARGET}foo = 1", "target a: there is no key 'foo'", f"{ALL}, name, sources; {MANUAL}"),
        (f"{TARGET}source = 'x.c'", "target a: there is no key 'source'", f"did you mean sources?; {MANUAL}"),
        ('[[targets]]\nname = "a"', "there is no key 'targets'", f"did you mean target?; {MANUAL}"),
        (f'[[target]]\nnam = "a"\n{TARGET}', "[[target]] number 1: there is no key 'nam'",
         f"did you mean name?; {MANUAL}"),
        (f"{TARGET}package = 'x'", "target a: there is no key 'package'", f"{ALL}, name, sources; {MANUAL}"),
        ('"\\u001b[31m\\n" = 1', "there is no key '\\\\n'",
         f"{ALL}, package, packages, files, sources, target; {MANUAL}"),
        (f"{TARGET}sources = 'x.c'",
         'target a: sources is not a list of texts, such as sources = ["this", "that"]', CORRECT),
        (f"{TARGET}flags = ['x', 1]",
         'target a: flags is not a list of texts, such as flags = ["this", "that"]', CORRECT),
        ("include = [['x']]", 'include is not a list of texts, such as include = ["this", "that"]', CORRECT),
        ("sanitizers = true", 'sanitizers is not a list of texts, such as sanitizers = ["this", "that"]', CORRECT),
        ("package = 1", 'package is not a text, such as package = "NAME"', CORRECT),
        (f"{TARGET}[[target]]\nname = 1979-05-27",
         '[[target]] number 2: name is not a text, such as name = "NAME"', CORRECT),
        (f"{TARGET}[[target]]\n", "[[target]] number 2: it has no name", CORRECT),
        ('[target]\nname = "a"', "a target begins with the line [[target]], and its keys follow", CORRECT),
        ("target = 1", "a target begins with the line [[target]], and its keys follow", CORRECT),
        ("target = [1]", "[[target]] number 1: it is no table", CORRECT),
        ("target = [[]]", "[[target]] number 1: it is no table", CORRECT),
        ("package", "it is no TOML: Expected '=' after a key in a key/value pair (at end of document)",
         "correct it: https://toml.io"),
        ('package = "a"\npackage = "b"\n', "it is no TOML: Cannot overwrite a value (at line 2, column 14)",
         "correct it: https://toml.io"),
        (b"package = '\xff'", "it is not written in UTF-8", CORRECT),
        (bytes(range(256)), "it is not written in UTF-8", CORRECT),
        (f"{TARGET}{TARGET}", "two targets have the name a", "rename one of them"),
        (f"{TARGET}sources = ['']", "target a: sources: '' cannot be one",
         "name files in C or C++; words for the compiler are given as flags"),
        (f"sources = ['-x']\n{TARGET}", "target a: sources: '-x' cannot be one",
         "name files in C or C++; words for the compiler are given as flags"),
        (f"{TARGET}libraries = ['-lz']", "target a: libraries: '-lz' cannot be one",
         'name libraries as after -l, such as "z"; words for the linker are given as flags'),
        (f"{TARGET}sanitizers = ['']", "target a: sanitizers: '' cannot be one",
         'name them as after -fsanitize=, such as "address"; [] is none'),
        ("packages = ['a b']", "packages: 'a b' is no name of a package of Debian", CORRECT),
        ("packages = ['../a']", "packages: '../a' is no name of a package of Debian", CORRECT),
        ("packages = ['--now']", "packages: '--now' is no name of a package of Debian", CORRECT),
        ("files = ['']", "files: '' is no pattern of paths below the directory", CORRECT),
        ("files = ['/etc/*']", "files: '/etc/*' is no pattern of paths below the directory", CORRECT),
        ("files = ['a/../../b']", "files: 'a/../../b' is no pattern of paths below the directory", CORRECT),
        ('files = ["a\\u0000"]', "files: there is a NUL in 'a'", CORRECT),
        (f'{TARGET}flags = ["a\\u0000"]', "target a: flags: there is a NUL in 'a'", CORRECT),
    ],
)  # fmt: skip
def test_what_is_said_about_a_wrong_file(here: Path, content: str | bytes, message: str, hint: str) -> None:
    assert refusal(here, content) == (message, hint)


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "../a", "/a", "", "-a", " a", "a b", "a\\n", "größe", "x" * 101, "a.txt", "\\u0000"]
)
def test_a_name_becomes_the_name_of_a_directory(here: Path, name: str) -> None:
    message, hint = refusal(here, f'[[target]]\nname = "{name}"')
    assert message.startswith("name: ")
    assert message.endswith(" cannot be the name of a target")
    assert hint.startswith("use up to 100 letters, digits and ")
    if name not in ("", "a.txt"):
        message, _ = refusal(here, f'package = "{name}"')
        assert message.startswith("package: ")


@pytest.mark.parametrize("name", ["a", "0", "_x", "a.b", "suite@Some.test", "a+b=c~d-e", "x" * 100])
def test_names_that_can_be(here: Path, name: str) -> None:
    found = reading(here, f'package = "{name}"\n[[target]]\nname = "{name}"')
    assert (found.package, found.targets[0].name) == (name, name)


def test_what_is_too_much(here: Path) -> None:
    assert refusal(here, b"#" * (1 << 20) + b"#")[0] == "it is larger than 1 MiB"
    assert reading(here, b"#" * (1 << 20)).package == "expat"
    many = "".join(f'[[target]]\nname = "t{number}"\n' for number in range(MOST_TARGETS))
    assert len(reading(here, many).targets) == MOST_TARGETS
    assert refusal(here, many + TARGET)[0] == "it has more than 1000 targets"
    assert refusal(here, f"flags = {'[' * 5000}{']' * 5000}")[0] == "it is nested too deeply"
    message, _ = refusal(here, f"{'k' * 10_000} = 1")
    assert len(message) < 120
    assert len(refusal(here, f"package = '{'p' * 10_000}'")[0]) < 500


@pytest.mark.parametrize(
    "content", ["[[target]]\nname = 'a'\n" * 45_000, "x." * 1000 + "x = 1", f"x = {'9' * 100_000}", "'" * 900_000]
)
def test_hostile_content_costs_little_time(here: Path, content: str) -> None:
    begun = time.process_time()
    refusal(here, content)
    assert time.process_time() - begun < 20


def test_a_file_that_cannot_be_read(here: Path) -> None:
    (here / NAME).mkdir(parents=True)
    with pytest.raises(SettingsError, match="it cannot be read: Is a directory"):
        read(here)
    (here / NAME).rmdir()
    (here / NAME).symlink_to(NAME)
    with pytest.raises(SettingsError, match="it cannot be read: Too many levels of symbolic links"):
        read(here)


KEYS = st.sampled_from(["package", "packages", "files", "flags", "sources", "sanitizers", "name", "x"])
VALUES = st.recursive(
    st.text(max_size=5).map(lambda text: f"'''{text}'''") | st.sampled_from(["1", "true", '"a"', "1.5", "'-x'"]),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
)
LINES = st.builds("{} = {}".format, KEYS, VALUES) | st.sampled_from(
    ["[[target]]", "[target]", "[x]", '[[target]]\nname = "b"']
)


@given(st.lists(LINES, max_size=6).map("\n".join) | st.binary(max_size=40))
def test_whatever_it_says_there_is_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes
) -> None:
    directory = tmp_path_factory.getbasetemp() / "any-sources"
    with suppress(SettingsError):
        found = reading(directory, content)
        assert all(target.sources for target in found.targets)


def test_our_own_file() -> None:
    found = read(demo.TARGETS)
    assert found.package == "example-fuzzers"
    assert {"crash_fuzzer", "noop_fuzzer"} <= {target.name for target in found.targets}
    assert all((demo.TARGETS / source).is_file() for target in found.targets for source in target.sources)
