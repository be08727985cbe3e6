"""Campaigns as they are written: what each key does, and everything that can be wrong, with its line."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.demo.planted import PLANTED
from pipeline.builds.targets.places import OWN_PACKAGE
from pipeline.campaign.plan import draft
from pipeline.campaign.plan.definition import Budget, Definition, FuzzerPlan
from pipeline.errors import SettingsError
from pipeline.fuzz import flags, sanitizers
from pipeline.settings import CampaignSettings

DEFAULTS = CampaignSettings()
NAMES = (
    "example-fuzzers/crash_fuzzer",
    "example-fuzzers/maze_fuzzer",
    "example-fuzzers/noisy_fuzzer",
    "net/dns_fuzzer",
)
ROOT = Path(__file__).parents[3]
MANUAL = (ROOT / "docs/campaign.md").read_text()
SOURCES = ROOT / "pipeline/builds/demo/targets"
SHORT = ("0", "0.5", "'0.9s'", "1.5", "nan", "inf", "[]", "-1", "2147483648", "'90.5'")
LEAST = 'name = "n"\nfuzzers = ["*/maze_fuzzer"]\n'


def written(directory: Path, text: str) -> Path:
    path = directory / "nightly.toml"
    path.write_text(text)
    return path


def definition(directory: Path, text: str, defaults: CampaignSettings = DEFAULTS) -> Definition:
    return draft.read(written(directory, text), defaults).expand(NAMES)


def maze(directory: Path, text: str, defaults: CampaignSettings = DEFAULTS) -> FuzzerPlan:
    """The plan of the only fuzzer."""
    (plan,) = definition(directory, LEAST + text, defaults).fuzzers
    return plan


def problems(directory: Path, text: str, names: tuple[str, ...] = NAMES) -> list[str]:
    """Each as it is printed, without the directory."""
    found = draft.look(written(directory, text), DEFAULTS).problems_with(names)
    return [str(problem).replace(f"{directory}/", "") for problem in found]


class TestDemo:
    """The one of the demo."""

    def test_it_is_right_and_runs_every_fuzzer_that_has_a_planted_bug(self) -> None:
        names = [f"{OWN_PACKAGE}/{path.stem}" for path in SOURCES.glob("*_*.c")]
        made = draft.read(ROOT / "docs/demo-campaign.toml", DEFAULTS).expand(names)
        assert {plan.name for plan in made.fuzzers} >= {f"{OWN_PACKAGE}/{bug.fuzzer}" for bug in PLANTED}
        assert "docs/demo-campaign.toml" in (ROOT / "Makefile").read_text()


class TestExample:
    """The one of the manual."""

    def test_it_comes_to_what_the_manual_says(self, tmp_path: Path) -> None:
        (example,) = re.findall(r"```toml\n(.*?)```", MANUAL, re.DOTALL)
        (tmp_path / "maze.dict").write_text('"a"\n')
        (tmp_path / "seeds/maze").mkdir(parents=True)
        made = definition(tmp_path, example)
        common = (("max_len", "4096"),)
        assert made == Definition(
            "nightly",
            1,
            "gain",
            (
                FuzzerPlan(NAMES[0], Budget(runs=100_000), 60, common),
                FuzzerPlan(
                    NAMES[1],
                    Budget(seconds=1200),
                    30,
                    (*common, ("timeout", "5")),
                    tmp_path / "maze.dict",
                    (tmp_path / "seeds/maze",),
                ),
            ),
        )

    @pytest.mark.parametrize("key", [*draft.KEYS, *draft.FUZZER_KEYS, *flags.REFUSED])
    def test_the_manual_has_every_key(self, key: str) -> None:
        assert re.search(rf"`\[*{key}\]*`", MANUAL)

    def test_the_manual_knows_the_defaults(self) -> None:
        assert DEFAULTS.budget == 600
        assert DEFAULTS.slice == 60
        assert DEFAULTS.allocation == "gain"


class TestValues:
    """What is not wrong."""

    def test_what_is_not_said_is_as_luigi_cfg_says(self, tmp_path: Path) -> None:
        made = definition(tmp_path, LEAST, replace(DEFAULTS, budget=90.0, slice=20.0, allocation="even"))
        assert made == Definition("n", 1, "even", (FuzzerPlan(NAMES[1], Budget(seconds=90), 20),))

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [('"90"', 90), ("90", 90), ("90.0", 90), ('"1.5m"', 90), ('"0.07h"', 252), ('"2d"', 172800)],
    )
    def test_times(self, tmp_path: Path, value: str, seconds: int) -> None:
        assert maze(tmp_path, f"budget = {value}").budget == Budget(seconds=seconds)
        assert maze(tmp_path, f"budget = '9d'\nslice = {value}").slice == seconds

    def test_a_slice_is_no_longer_than_the_budget(self, tmp_path: Path) -> None:
        assert maze(tmp_path, "budget = 20").slice == 20
        assert maze(tmp_path, "budget = { runs = 20 }").slice == 60

    @pytest.mark.parametrize(("value", "text"), [("5", "5"), ("-1", "-1"), ("true", "1"), ("false", "0")])
    def test_options_that_are_numbers(self, tmp_path: Path, value: str, text: str) -> None:
        assert maze(tmp_path, f"options.timeout = {value}").options == (("timeout", text),)

    def test_options_that_are_texts(self, tmp_path: Path) -> None:
        assert maze(tmp_path, 'options.focus_function = "a b=c"').options == (("focus_function", "a b=c"),)

    def test_variables_are_those_of_the_campaign_and_of_the_fuzzer(self, tmp_path: Path) -> None:
        made = definition(
            tmp_path,
            'name = "n"\nfuzzers = ["*/*"]\nenvironment = { MODE = "a b", LEVEL = 1 }\n'
            '[[fuzzer]]\nname = "*/maze_fuzzer"\nenvironment = { LEVEL = 2, UBSAN_OPTIONS = "suppressions=x" }\n',
        )
        own = {plan.name: dict(plan.environment) for plan in made.fuzzers}
        assert own.pop(NAMES[1]) == {"LEVEL": "2", "MODE": "a b", "UBSAN_OPTIONS": "suppressions=x"}
        assert set(map(str, own.values())) == {"{'LEVEL': '1', 'MODE': 'a b'}"}

    def test_what_a_sanitizer_is_told_to_lose_is_warned_of(self, tmp_path: Path) -> None:
        text = LEAST + 'environment = { UBSAN_OPTIONS = "print_stacktrace=0:halt_on_error=false" }\n'
        warnings = draft.look(written(tmp_path, text), DEFAULTS).warnings
        assert {(warning.line, warning.key) for warning in warnings} == {(3, "environment.UBSAN_OPTIONS")}
        assert [warning.message for warning in warnings] == list(
            sanitizers.loses({"UBSAN_OPTIONS": "print_stacktrace=0:halt_on_error=false"})
        )
        assert "halt_on_error=false in UBSAN_OPTIONS: what is found is told, and its input lost" in str(warnings[1])

    def test_options_of_a_sanitizer_are_merged_and_those_of_one_fuzzer_prevail(self, tmp_path: Path) -> None:
        made = definition(
            tmp_path,
            'name = "n"\nfuzzers = ["*/*"]\nenvironment = { ASAN_OPTIONS = "redzone=64:exitcode=5" }\n'
            '[[fuzzer]]\nname = "*/maze_fuzzer"\nenvironment = { ASAN_OPTIONS = "exitcode=6" }\n',
        )
        (maze,) = (plan for plan in made.fuzzers if plan.name.endswith("maze_fuzzer"))
        chosen = sanitizers.environment(dict(maze.environment))["ASAN_OPTIONS"].split(":")
        assert {"redzone=64", "exitcode=6"} <= {*chosen}
        assert "exitcode=5" not in chosen

    def test_options_that_libfuzzer_does_not_have_are_passed_on_with_a_warning(self, tmp_path: Path) -> None:
        text = LEAST + 'options = { mx_len = 1.5, own_one_of_mine = "x" }\n'
        made = draft.read(written(tmp_path, text), DEFAULTS)
        assert made.expand(NAMES).fuzzers[0].options == (("mx_len", "1.5"), ("own_one_of_mine", "x"))
        assert [(warning.line, warning.key) for warning in made.warnings] == [
            (3, "options.mx_len"),
            (3, "options.own_one_of_mine"),
        ]
        assert "did you mean max_len?" in made.warnings[0].hint

    def test_a_byte_order_mark_is_passed_over(self, tmp_path: Path) -> None:
        assert definition(tmp_path, f"\ufeff{LEAST}budget = 7").fuzzers[0].budget == Budget(7)
        assert problems(tmp_path, f"\ufeff{LEAST}bugdet = 7")[0].startswith("nightly.toml:3: ")

    def test_the_later_of_two_overrides_prevails_key_by_key(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).write_text('"a"')
        made = definition(
            tmp_path,
            'name = "n"\nfuzzers = ["*/*"]\noptions = { timeout = 1, max_len = 1, reload = 1 }\n'
            '[[fuzzer]]\nname = "example-fuzzers/*"\nbudget = 100\nslice = 10\ndictionary = "a"\nseeds = ["a"]\n'
            "options = { timeout = 2, max_len = 2 }\n"
            '[[fuzzer]]\nname = "*/maze_fuzzer"\nbudget = 200\nseeds = []\noptions = { timeout = 3 }\n'
            '[[fuzzer]]\nname = "*/[cm]*"\ndictionary = "b"\n',
        )
        first = (("max_len", "2"), ("reload", "1"), ("timeout", "2"))
        seeds = (tmp_path / "a",)
        assert made.fuzzers == (
            FuzzerPlan(NAMES[0], Budget(100), 10, first, tmp_path / "b", seeds),
            FuzzerPlan(NAMES[1], Budget(200), 10, (*first[:2], ("timeout", "3")), tmp_path / "b"),
            FuzzerPlan(NAMES[2], Budget(100), 10, first, tmp_path / "a", seeds),
            FuzzerPlan(NAMES[3], Budget(600), 60, (("max_len", "1"), ("reload", "1"), ("timeout", "1"))),
        )

    def test_patterns_are_of_full_names_and_their_stars_stop_at_a_slash(self, tmp_path: Path) -> None:
        text = 'name = "n"\nfuzzers = ["net/*", "*/dns_fuzzer", "e*/?[!a]*"]\n'.replace("[!a]", "[^a]")
        made = definition(tmp_path, text + 'exclude = ["*/noisy*"]')
        assert [plan.name for plan in made.fuzzers] == [NAMES[0], NAMES[3]]
        assert "no fuzzer of the build is named *" in problems(tmp_path, 'name = "n"\nfuzzers = ["*"]')[0]

    def test_paths_are_relative_to_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner/n.toml").write_text(LEAST + '[[fuzzer]]\nname = "*/*"\nseeds = ["n.toml", "/dev/shm"]\n')
        (plan,) = draft.read(Path("inner/n.toml"), DEFAULTS).expand(NAMES).fuzzers
        assert plan.seeds == (tmp_path / "inner/n.toml", Path("/dev/shm"))


class TestProblems:
    """All that can be wrong, each with its line."""

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ('bugdet = "10m"', "3: there is no key bugdet here (did you mean budget?)"),
            ("zzz = 1", "3: there is no key zzz here (known are: name, fuzzers,"),
            ('dictionary = "x"', "3: there is no key dictionary here (it is of one fuzzer"),
            ('\n\nbudget = "10x"', "5: budget = '10x' cannot be used (write seconds, or a number with s, m, h or d"),
            *((f"slice = {value}", f"3: slice = {value} cannot be used (write") for value in SHORT),
            ('budget = "0"', "3: budget = '0' cannot be used (write at least 1 seconds)"),
            ("slice = true", "3: slice = True cannot be used (write"),
            ("slice = 0x" + "f" * 5000, "3: slice cannot be used (write"),
            ("budget = {}", "3: runs is missing (write runs = 100000)"),
            ("budget = { runs = 1, run = 5 }", "3: there is no key run here (did you mean runs?)"),
            ("budget = { runs = 0 }", "3: runs = 0 cannot be used (write a whole number from 1 to 2147483647)"),
            ("budget = { runs = true }", "3: runs = True cannot be used (write a whole number"),
            ("budget = [\n1,\n2]", "3: budget = [1, 2] cannot be used"),
            *((f"seed = {value}", f"3: seed = {value} cannot be used") for value in ("0", "-1", "1.0", "4294967296")),
            ('allocation = "fair"', "3: allocation = 'fair' cannot be used (write one of: gain, even)"),
            ("allocation = []", "3: allocation = [] cannot be used"),
            ('exclude = "*/noisy_fuzzer"', "3: exclude = '*/noisy_fuzzer' cannot be used (exclude is a list)"),
            ("exclude = [1]", "3: exclude is a list of texts (put each of them in quotes)"),
            ('exclude = [""]', "3: exclude is empty"),
            ('exclude = ["["]', "3: "),
            ('exclude = ["*/nosy_fuzzer"]', "3: no fuzzer of the build is named */nosy_fuzzer (did you mean ex"),
            ('exclude = ["*/*"]', "3: no fuzzer is left (exclude fewer of them)"),
            ("options = 5", "3: options = 5 cannot be used (options is a table)"),
            ('[options]\ntimeout = "5"', "4: the option timeout takes a whole number (write it without"),
            ("[options]\ntimeout = 0.5", "4: the option timeout takes a whole number"),
            ("[options]\ntimeout = 2147483648", "4: the option timeout takes a whole number"),
            ("[options]\nfocus_function = 1", "4: the option focus_function takes text"),
            ("[options]\nown = []", "4: the option own cannot have this value"),
            ("[options]\nown = 0x" + "f" * 5000, "4: the option own cannot have this value"),
            ('[options]\nown = "\\u001b"', "4: the option own has control characters"),
            ("environment = 5", "3: environment = 5 cannot be used (environment is a table)"),
            ('[environment]\n"A-B" = "x"', "4: 'A-B' is no name of a variable (write it as a shell does"),
            ("[environment]\nA = []", "4: the variable A cannot have this value (write it in quotes"),
            ("[environment]\nA = true", "4: the variable A cannot have this value (write it in quotes"),
            ('[environment]\nA = "\\u0000"', "4: the variable A has control characters"),
            (
                '[environment]\nASAN_OPTIONS = "a=1:log_path=/x"',
                "4: log_path cannot be set in ASAN_OPTIONS (Topcoat reads reports from the output of the fuzzer",
            ),
            ("[options]\n-max_len = 5", "4: '-max_len' is no name of an option"),
            *((f"[options]\n{name} = 1", f"4: the option {name} cannot be set (") for name in flags.REFUSED),
            ("fuzzer = 5", "3: fuzzer = 5 cannot be used (fuzzer is a list)"),
            ("fuzzer = [5]", "3: fuzzer is a list of tables (write [[fuzzer]], and its keys below)"),
            ("[fuzzer]", "3: fuzzer = {} cannot be used (fuzzer is a list)"),
            ("[[fuzzer]]\nbudget = 5", "3: name is missing"),
            ('[[fuzzer]]\nname = "*/*"\nnme = 5', "5: there is no key nme here (did you mean name?)"),
            ('[[fuzzer]]\nname = "*/*"\nseed = 5', "5: there is no key seed here (it is of the whole campaign"),
            ('[[fuzzer]]\nname = "net/*"', "4: net/* is no part of the campaign, so nothing can be said of it"),
            ('[[fuzzer]]\nname = "nte/*"', "4: no fuzzer of the build is named nte/*"),
            ('[[fuzzer]]\nname = "*/*"\n[[fuzzer]]\nname = "*/*"\n\nslice = 0', "8: slice = 0 cannot be used"),
            ('[[fuzzer]]\nname = "*/*"\nseeds = ["nightly.toml", "gone"]', "5: the seeds gone cannot be used: No"),
            ('[[fuzzer]]\nname = "*/*"\nseeds = ["/dev/null"]', "5: the seeds /dev/null cannot be used: it is neither"),
            ('[[fuzzer]]\nname = "*/*"\nseeds = ["a\\u0000b"]', "5: seeds has control characters"),
            ('[[fuzzer]]\nname = "*/*"\ndictionary = "gone"', "5: the dictionary gone cannot be used: No such file"),
            ('[[fuzzer]]\nname = "*/*"\ndictionary = "/dev/zero"', "5: the dictionary /dev/zero cannot be used: it"),
        ],
    )  # fmt: skip
    def test_it_is_told_with_its_line(self, tmp_path: Path, text: str, told: str) -> None:
        (problem,) = problems(tmp_path, LEAST + text)
        assert problem.startswith(f"nightly.toml:{told}")
        assert re.fullmatch(r".*: .+ \(.+\)", problem)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ('fuzzers = ["*/*"]', ":1: name is missing (write name ="),
            ('name = "n"', ":1: fuzzers is missing (write fuzzers ="),
            ('name = "n"\nfuzzers = []', ":2: fuzzers is empty (write"),
            ('name = "n"\nfuzzers = ["net/dns"]', ":2: no fuzzer of the build is named net/dns (did you mean net/d"),
            ('name = "n"\nfuzzers = ["§"]', ":2: no fuzzer of the build is named § (the build has exam"),
            *((f'fuzzers = ["*/*"]\nname = "{name}"', f":2: name = '{name}' cannot be used (use letters") for name in [
                *("a/b", ".", "..", ".a", "a" * 65, "ä", "a b"),
            ]),
            ("name = 5\nfuzzers = ['*/*']", ":1: name = 5 cannot be used (name is text, in quotes)"),
            ("a = 1\nb = \n", ":2: Invalid value, at column 5 (it is TOML"),
            ("a = 1\na = 2\n", ":2: Cannot overwrite a value, at column 6"),
            ('a = """\n\n', ":1: Unterminated string, at its end"),
            ("a = [\n1,\n\n", ":2: "),
            ("a = " + "[" * 100_000, ": it is nested too deeply"),
            *((text % ".".join(["a"] * 20_000), ": it is nested too deeply") for text in (
                *("%s = 1", "x = 1\n [%s]", "[[%s]]", "x = {y = 1, %s = 1}", 'x = 1\n"a b" . %s = 1'),
            )),
            ("a = " + "1" * 5000, ": Exceeds the limit"),
            ("#" * (1 << 20) + "\n", ": it is larger than 1 MiB"),
        ],
        ids=lambda text: text[:30],
    )  # fmt: skip
    def test_a_file_that_is_wrong_from_the_start(self, tmp_path: Path, text: str, told: str) -> None:
        (problem,) = problems(tmp_path, text)
        assert problem.startswith(f"nightly.toml{told}")

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "latin").write_bytes(b'name = "x"\n# \xe4\n')
        for name, told in (
            ("gone", "gone: No such file or directory"),
            ("fifo", "fifo: it is no regular file"),
            (".", ": it is no regular file"),
            ("latin", "latin:2: it is not UTF-8 (save it as UTF-8)"),
        ):
            (problem,) = draft.look(tmp_path / name, DEFAULTS).problems
            assert told in str(problem)

    def test_a_wrong_dictionary_is_told_with_its_own_lines(self, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        (tmp_path / "d/maze.dict").write_text('"a"\nb\n\n"\\y"\n')
        first, second = problems(tmp_path, LEAST + '[[fuzzer]]\nname = "*/*"\ndictionary = "d/maze.dict"\n' * 2)
        assert first.startswith("d/maze.dict:2: an entry of a dictionary is a text in double quotes (")
        assert second.startswith("d/maze.dict:4: there is a backslash that begins nothing (")

    def test_of_a_file_that_is_no_dictionary_the_first_lines_are_told(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("x\n" * 1000)
        told = problems(tmp_path, LEAST + '[[fuzzer]]\nname = "*/*"\ndictionary = "x"\n')
        assert len(told) == 11
        assert told[-1] == "x:11: from here on, 990 more lines are wrong (is it a dictionary at all?)"

    def test_seeds_that_may_not_be_read(self, tmp_path: Path) -> None:
        for name in ("file", "directory"):
            (tmp_path / name).mkdir() if name == "directory" else (tmp_path / name).touch()
            (tmp_path / name).chmod(0)
        told = problems(tmp_path, LEAST + '[[fuzzer]]\nname = "*/*"\nseeds = ["file", "directory"]\n')
        for name in ("file", "directory"):
            (tmp_path / name).chmod(0o700)
        assert len(told) == (0 if os.geteuid() == 0 else 2)

    def test_all_are_told_at_once_by_line(self, tmp_path: Path) -> None:
        text = 'fuzzers = ["nothing/*"]\nslice = 0\nname = ".n"\noptions = { seed = 1 }\nseed = 0\nx = 1\n'
        with pytest.raises(
            SettingsError, match=r"the campaign cannot be run: .*nightly\.toml has 5 problems"
        ) as caught:
            draft.read(written(tmp_path, text), DEFAULTS)
        lines = caught.value.detail.splitlines()
        assert [re.sub(r".*toml:(\d):.*", r"\1", line) for line in lines] == ["2", "3", "4", "5", "6"]
        with pytest.raises(SettingsError) as caught:
            draft.look(tmp_path / "nightly.toml", DEFAULTS).expand(NAMES)
        assert len(caught.value.detail.splitlines()) == 6

    def test_a_build_without_fuzzers(self, tmp_path: Path) -> None:
        assert problems(tmp_path, LEAST, ()) == [
            "nightly.toml:2: no fuzzer of the build is named */maze_fuzzer (the build has no fuzzers at all)"
        ]

    def test_defaults_of_luigi_cfg_are_wrong_only_where_they_count(self, tmp_path: Path) -> None:
        defaults = replace(DEFAULTS, slice=0.5)
        with pytest.raises(SettingsError) as caught:
            draft.read(written(tmp_path, LEAST), defaults)
        assert caught.value.detail.startswith("[campaign] slice: 0.5 seconds cannot be used (in luigi.cfg, write")
        assert maze(tmp_path, "slice = 5", defaults).slice == 5

    def test_what_is_told_can_be_printed(self, tmp_path: Path) -> None:
        text = LEAST + '"a\\u001b[31m\\nb" = 1\nbudget = "\\u001b]0;x"\nexclude = ["\\u0007"]\n'
        told = problems(tmp_path, text)
        assert len(told) == 3
        assert "".join(told).isprintable()

    @given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_no_content_does_harm(self, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
        path = tmp_path_factory.mktemp("drafts") / "x.toml"
        path.write_bytes(content)
        assert draft.look(path, DEFAULTS).problems_with(NAMES)

    @given(
        st.dictionaries(
            st.sampled_from([*draft.KEYS, *draft.FUZZER_KEYS, "x"]),
            st.sampled_from(["1", "'1'", "1.5", "nan", "true", "[]", "['*/*']", "{}", "{ runs = 1 }", "2020-01-01"])
            | st.sampled_from(
                ["[{ name = '*/*' }]", "[{ budget = 1 }]", "[[1], {}]", "'gain'", "'../x'", "{ a = [1] }"]
            ),
        )
    )
    def test_no_values_do_harm(self, tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]) -> None:
        directory = tmp_path_factory.mktemp("drafts")
        text = "".join(f"{key} = {value}\n" for key, value in values.items())
        found = draft.look(written(directory, text), DEFAULTS)
        told = found.problems_with(NAMES)
        assert all(problem.line and problem.message and problem.hint for problem in told)
        if not told:
            assert found.expand(NAMES).fuzzers


class TestParameters:
    """Campaigns without a file."""

    def test_what_is_not_given_is_as_luigi_cfg_says(self) -> None:
        made = draft.from_parameters(DEFAULTS, "n", "net/*").expand(NAMES)
        assert made == Definition("n", 1, "gain", (FuzzerPlan("net/dns_fuzzer", Budget(seconds=600), 60),))

    def test_all_of_them(self) -> None:
        made = draft.from_parameters(
            DEFAULTS,
            "n",
            "net/*, example-fuzzers/*",
            exclude="*/noisy_fuzzer */c*",
            budget="5m",
            slice_="20",
            seed=7,
            allocation="even",
        ).expand(NAMES)
        assert made == Definition("n", 7, "even", tuple(FuzzerPlan(NAMES[at], Budget(300), 20) for at in (1, 3)))

    def test_problems_name_the_parameter(self) -> None:
        with pytest.raises(SettingsError, match="x/y has 3 problems") as caught:
            draft.from_parameters(DEFAULTS, "x/y", "", budget="5x")
        first, second, third = caught.value.detail.splitlines()
        assert first == "--fuzzers: fuzzers is missing (write --fuzzers 'example-fuzzers/*')"
        assert second.startswith("--name: name = 'x/y' cannot be used (")
        assert third.startswith("--budget: budget = '5x' cannot be used (")
        with pytest.raises(SettingsError, match="n has a problem") as caught:
            draft.from_parameters(DEFAULTS, "n", "net/* net/dns").expand(NAMES)
        assert caught.value.detail.startswith(
            "--fuzzers: no fuzzer of the build is named net/dns (did you mean net/dns_"
        )
