import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pytest

import tasks
from pipeline.errors import SettingsError, StoreError
from pipeline.settings import (
    RESOURCE_KEYS,
    TCG_SCALE,
    BootSettings,
    NamedTargets,
    QemuSettings,
    Settings,
    Timeouts,
    ToolSettings,
    load,
)

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write luigi.cfg in a directory of its own and return that directory."""

    def write(text: str) -> Path:
        directory = tmp_path / "work"
        directory.mkdir(exist_ok=True)
        (directory / "luigi.cfg").write_text(text, encoding="utf-8")
        return directory

    return write


def value_of(settings: Settings, name: str) -> Any:
    found: Any = settings
    for part in name.split("."):
        found = found[part] if isinstance(found, Mapping) else getattr(found, part)
    return found


def test_without_any_file_all_is_default(tmp_path: Path) -> None:
    settings = load({}, tmp_path)
    assert settings.store.root == tmp_path / "out"
    assert (settings.build_kind, settings.resources, settings.tools) == ("auto", {}, ToolSettings(600.0, proof=True))
    assert settings.qemu == QemuSettings("auto", "auto", None, None, None, True, None, ())
    assert settings.boot == BootSettings("ssh", None, None)
    assert settings.demo_packages is None


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("[build] kind = local", "build_kind", "local"),
        ("[build] kind = clusterfuzz", "build_kind", "clusterfuzz"),
        ("[build] kind = demo", "build_kind", "demo"),
        ("[build] kind = linux", "build_kind", "linux"),
        ("[tools] timeout = 2.5", "tools", ToolSettings(timeout=2.5)),
        ("[tools] proof = off", "tools", ToolSettings(proof=False)),
        ("[tools] zbi = build", "tools", ToolSettings(zbi="build")),
        ("[tools] fvm = builtin", "tools", ToolSettings(fvm="builtin")),
        ("[tools] fvm = auto", "tools", ToolSettings()),
        ("[tools] fvm = ./my-fvm", "tools", ToolSettings(fvm="build")),
        ("[build] zbitool = /x/zbi", "tools", ToolSettings(zbi="build")),
        ("[qemu] user = topcoat", "qemu.user", "topcoat"),
        ("[qemu] accel = kvm", "qemu.accel", "kvm"),
        ("[qemu] accel = tcg", "qemu.accel", "tcg"),
        ("[qemu] tcg_threads = multi", "qemu.tcg_threads", "multi"),
        ("[qemu] memory = 4096", "qemu.memory", 4096),
        ("[qemu] smp = 2", "qemu.smp", 2),
        ("[qemu] cpu = host,+invtsc", "qemu.cpu", "host,+invtsc"),
        ("[qemu] restrict = on", "qemu.restrict", True),
        ("[qemu] restrict = OFF", "qemu.restrict", False),
        ("[qemu] restrict = no", "qemu.restrict", False),
        ("[qemu] restrict = true", "qemu.restrict", True),
        ("[qemu] arguments = -name 'a b' -s", "qemu.arguments", ("-name", "a b", "-s")),
        ("[boot] ready = marker", "boot.ready", "marker"),
        ("[boot] timeout = 90", "boot.timeout", 90.0),
        ("[boot] scale = 0.5", "boot.scale", 0.5),
        ("[qemu] arguments =", "qemu.arguments", ()),
        ("[pool] size = 3", "pool.size", 3),
        ("[pool] fresh = always", "pool.fresh", "always"),
        ("[campaign] budget = 10m", "campaign.budget", 600.0),
        ("[campaign] slice = 90", "campaign.slice", 90.0),
        ("[campaign] allocation = even", "campaign.allocation", "even"),
        ("[campaign] strikes = 5", "campaign.strikes", 5),
        ("[campaign] unit_size = 4K", "campaign.unit_size", 4096),
        ("[campaign] tolerance = 0", "campaign.tolerance", 0.0),
        ("[campaign] canary = warn", "campaign.canary", "warn"),
        ("[campaign] canary_crash = a/b", "campaign.canary_crash", "a/b"),
        ("[Qemu] memory = much", "qemu.memory", None),
    ],
)
def test_a_value_is_taken(write: Write, line: str, name: str, value: object) -> None:
    assert value_of(load({}, write(line.replace("] ", "]\n"))), name) == value


@pytest.mark.parametrize("key", RESOURCE_KEYS)
def test_each_resource_can_be_overridden(write: Write, key: str) -> None:
    directory = write(f"[build]\n{key} = files/mine\n")
    assert load({}, directory).resources == {key: directory / "files/mine"}


@pytest.mark.parametrize(
    ("section", "key", "value", "hint"),
    [
        ("build", "kind", "remote", "use one of: auto, local, clusterfuzz, linux, demo"),
        ("tools", "timeout", "0", "give a number greater than 0"),
        ("tools", "timeout", "long", "give a number greater than 0"),
        ("qemu", "accel", "KVM", "use one of: auto, kvm, tcg"),
        ("qemu", "tcg_threads", "1", "use one of: auto, single, multi"),
        ("qemu", "memory", "-1", "give a number greater than 0"),
        ("qemu", "memory", "512.5", "give a whole number"),
        ("qemu", "memory", "3G", "give a number greater than 0"),
        ("qemu", "smp", "0", "give a number greater than 0"),
        ("qemu", "smp", "nan", "give a number greater than 0"),
        ("qemu", "restrict", "maybe", "use on or off"),
        ("qemu", "arguments", "-name 'open", "correct its quotes (No closing quotation)"),
        ("boot", "ready", "never", "use one of: ssh, marker"),
        ("boot", "timeout", "inf", "give a number greater than 0"),
        ("boot", "scale", "-2", "give a number greater than 0"),
        ("pool", "size", "0", "give a number greater than 0"),
        ("pool", "fresh", "sometimes", "use one of: auto, on_crash, always, never"),
        ("campaign", "slice", "1w", "write seconds, or a number with s, m, h or d, such as 10m"),
        ("campaign", "tolerance", "1", "give a number of at least 0 and less than 1, such as 0.02"),
        ("campaign", "tolerance", "-0.1", "give a number of at least 0 and less than 1, such as 0.02"),
    ],
)
def test_a_wrong_value_is_named_with_file_section_and_key(
    write: Write, section: str, key: str, value: str, hint: str
) -> None:
    directory = write(f"[{section}]\n{key} = {value}\n")
    with pytest.raises(SettingsError) as caught:
        load({}, directory)
    assert str(caught.value) == f"{directory}/luigi.cfg: [{section}] {key} = {value} cannot be used"
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("section", "key", "hint"),
    [
        ("qemu", "memmory", "did you mean memory?"),
        ("build", "llvm_symbolizer", "did you mean llvm-symbolizer?"),
        ("boot", "wait", "[boot] knows: ready, timeout, scale, warm, attempts, log_size"),
        ("store", "xyz", "[store] knows: root"),
    ],
)
def test_an_unknown_key_is_refused_with_the_likely_one(write: Write, section: str, key: str, hint: str) -> None:
    directory = write(f"[{section}]\n{key} = 1\n")
    with pytest.raises(SettingsError) as caught:
        load({}, directory)
    assert str(caught.value) == f"{directory}/luigi.cfg: [{section}] has no setting named {key}"
    assert caught.value.hint == hint


def test_sections_of_others_are_ignored(write: Write) -> None:
    text = "[core]\nworkers = many\n[BootInstance]\nname = x\n[hypervisor]\nmemory = -1\n"
    settings = load({}, write(text))
    assert settings.qemu == QemuSettings()


@pytest.mark.parametrize(
    ("section", "meant"),
    [
        ("bot", "boot"),
        ("biuld", "build"),
        ("tool", "tools"),
        ("sotre", "store"),
        ("campain", "campaign"),
    ],
)
def test_a_section_that_is_almost_one_of_ours_is_refused(write: Write, section: str, meant: str) -> None:
    directory = write(f"[{section}]\ntimeout = 300\n")
    with pytest.raises(SettingsError) as caught:
        load({}, directory)
    assert str(caught.value) == f"{directory}/luigi.cfg: there is no section [{section}]"
    assert caught.value.hint.startswith(f"did you mean [{meant}]? ")


def test_sections_that_luigi_knows_pass(write: Write) -> None:
    """Those of its parts, in any version, and those with parameters of tasks."""
    parts = "batch_notifier core cors datadog email execution_summary hadoop hdfs hive kubernetes logging mysql pig"
    more = "postgres prometheus redis redshift resources retcode s3 scalding scheduler sendgrid smtp spark task_history"
    sections = [*f"{parts} {more} task_visualiser webhdfs worker DEFAULT".split(), *tasks.__all__]
    load({}, write("".join(f"[{section}]\n" for section in sections)))


def test_a_percent_sign_is_nothing_special(write: Write) -> None:
    assert load({}, write("[qemu]\ncpu = %(x)s\n")).qemu.cpu == "%(x)s"


def test_the_named_file_wins_key_by_key(write: Write, tmp_path: Path) -> None:
    directory = write("[qemu]\nmemory = 100\nsmp = 2\n")
    (tmp_path / "other.cfg").write_text("[qemu]\nmemory = 200\n")
    for named in (str(tmp_path / "other.cfg"), "../other.cfg"):
        assert load({"LUIGI_CONFIG_PATH": named}, directory).qemu == QemuSettings(memory=200, smp=2)


@pytest.mark.parametrize("name", ["nowhere.cfg", "."], ids=["missing", "directory"])
def test_a_named_file_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"^LUIGI_CONFIG_PATH names .*, which is no file$") as caught:
        load({"LUIGI_CONFIG_PATH": name}, tmp_path)
    assert caught.value.hint == "correct it or unset it"


def test_an_empty_luigi_config_path_counts_as_unset(write: Write) -> None:
    assert load({"LUIGI_CONFIG_PATH": ""}, write("[qemu]\nsmp = 2\n")).qemu.smp == 2


@pytest.mark.parametrize(
    "content",
    [b"[qemu]\ncpu = \xff\n", b"cpu = max\n", b"[qemu]\ncpu\n", b"[qemu]\nsmp = 1\nsmp = 2\n"],
    ids=["not UTF-8", "no section", "no value", "twice"],
)
def test_a_file_that_makes_no_sense_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "luigi.cfg").write_bytes(content)
    with pytest.raises(SettingsError, match=f"^{tmp_path}/luigi.cfg cannot be read: "):
        load({}, tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^/proc/self/mem cannot be read: .*Input/output error"):
        load({"LUIGI_CONFIG_PATH": "/proc/self/mem"}, tmp_path)


@pytest.mark.parametrize(
    ("environ", "text", "root"),
    [
        ({}, "", "work/out"),
        ({}, "[store]\nroot = made/../store\n", "work/store"),
        ({"TOPCOAT_ROOT": "here"}, "[store]\nroot = there\n", "work/here"),
        ({"TOPCOAT_ROOT": "/abs/./root"}, "", "/abs/root"),
        ({"TOPCOAT_ROOT": ""}, "[store]\nroot = there\n", "work/there"),
        ({}, "[store]\nroot = /abs\n", "/abs"),
    ],
    ids=["default", "file", "environment wins", "absolute environment", "empty environment", "absolute file"],
)
def test_store_root(write: Write, tmp_path: Path, environ: dict[str, str], text: str, root: str) -> None:
    assert load(environ, write(text)).store.root == tmp_path / root


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "\x1b", "\x7f", "a/\n/b"])
def test_a_store_whose_path_has_control_characters_is_refused(write: Write, tmp_path: Path, name: str) -> None:
    said = "the store cannot be in a directory with a newline or another control character in its path: '"
    with pytest.raises(SettingsError, match=f"^{said}") as caught:
        load({"TOPCOAT_ROOT": name}, tmp_path)
    assert not {*"\n\r\x1b\x7f"} & {*caught.value.message}
    assert "move the store: [store] root or TOPCOAT_ROOT" in caught.value.hint
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(SettingsError, match=f"^{said}"):
        load({}, tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / name)
    with pytest.raises(SettingsError, match=f"^{said}"):
        load({"TOPCOAT_ROOT": "link/out"}, tmp_path)
    assert load({"TOPCOAT_ROOT": str(tmp_path / "a\tb %=:;,'é\"")}, tmp_path / name).store.root.parent == tmp_path


def test_the_directories_of_the_store(tmp_path: Path) -> None:
    store, out = load({}, tmp_path).store, tmp_path / "out"
    assert (store.keys, store.demo, store.instances) == (out / "keys", out / "demo", out / "instances")
    assert (store.cache, store.images("local-x64")) == (out / "cache", out / "images/local-x64")


def test_a_store_can_be_used_where_it_could_be_made(tmp_path: Path) -> None:
    load({"TOPCOAT_ROOT": "far/below"}, tmp_path).store.require_writable()
    assert list(tmp_path.iterdir()) == [], "asking makes nothing"
    (tmp_path / "file").touch()
    for root in ("file", "file/below"):
        with pytest.raises(StoreError, match=r"^the store cannot be used: "):
            load({"TOPCOAT_ROOT": root}, tmp_path).store.require_writable()


def test_a_path_is_relative_to_the_file_it_stands_in(write: Write, tmp_path: Path) -> None:
    directory = write("[build]\nqemu = bin/qemu\n")
    (tmp_path / "other.cfg").write_text("[demo]\npackages = debs\n[build]\nfvm = /abs/fvm\n")
    settings = load({"LUIGI_CONFIG_PATH": "../other.cfg"}, directory)
    assert settings.resources == {"qemu": directory / "bin/qemu", "fvm": Path("/abs/fvm")}
    assert settings.demo_packages is not None
    assert settings.demo_packages.resolve() == tmp_path / "debs"


@pytest.mark.parametrize(
    ("environ", "text", "directory", "said"),
    [
        ({"TOPCOAT_TARGETS": "/abs/./out"}, "", "/abs/out", "TOPCOAT_TARGETS"),
        ({"TOPCOAT_TARGETS": "out"}, "", "work/out", "TOPCOAT_TARGETS"),
        ({"TOPCOAT_TARGETS": "../out/"}, "", "out", "TOPCOAT_TARGETS"),
        ({"TOPCOAT_TARGETS": "."}, "", "work", "TOPCOAT_TARGETS"),
        ({"TOPCOAT_TARGETS": "~/out"}, "", "work/~/out", "TOPCOAT_TARGETS"),
        ({}, "[build]\ntargets = out\n", "work/out", "[build] targets"),
        ({}, "[build]\ntargets = ../out\n", "out", "[build] targets"),
        ({"PLACE": "/abs"}, "[build]\ntargets = $PLACE/out\n", "/abs/out", "[build] targets"),
        ({"TOPCOAT_TARGETS": "env"}, "[build]\ntargets = file\n", "work/env", "TOPCOAT_TARGETS"),
        ({"TOPCOAT_TARGETS": ""}, "[build]\ntargets = file\n", "work/file", "[build] targets"),
    ],
)
def test_the_directory_of_targets(
    write: Write, tmp_path: Path, environ: dict[str, str], text: str, directory: str, said: str
) -> None:
    """A shell expands ~ in the environment; it need not be there to be named."""
    assert load(environ, write(text)).targets == NamedTargets(tmp_path / directory, said)


def test_no_directory_of_targets(write: Write) -> None:
    assert load({}, write("")).targets is None
    assert load({"TOPCOAT_TARGETS": ""}, write("")).targets is None
    with pytest.raises(SettingsError, match=r"\[build\] targets = +cannot be used") as caught:
        load({}, write("[build]\ntargets =\n"))
    assert caught.value.hint == "give it a value, or leave it out, which means the default"


def test_the_directory_of_targets_is_relative_to_the_file_that_names_it(write: Write, tmp_path: Path) -> None:
    (tmp_path / "other.cfg").write_text("[build]\ntargets = out\n")
    chosen = load({"LUIGI_CONFIG_PATH": "../other.cfg"}, write("[build]\ntargets = mine\n"))
    assert chosen.targets == NamedTargets(tmp_path / "out", "[build] targets")


def test_home_and_variables_are_expanded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    settings = load({"QEMUS": "/opt/qemus"}, write("[build]\nqemu = $QEMUS/q\nfvm = ~/fvm\nffx = ${QEMUS}x\n"))
    assert settings.resources == {"qemu": Path("/opt/qemus/q"), "fvm": Path("/home/me/fvm"), "ffx": Path("/opt/qemusx")}


def test_an_unset_variable_is_refused(write: Write) -> None:
    with pytest.raises(SettingsError, match=r"\[demo\] packages = \$NOT_SET_ANYWHERE/x cannot be used$") as caught:
        load({}, write("[demo]\npackages = $NOT_SET_ANYWHERE/x\n"))
    assert caught.value.hint == "there is no such variable or user: 'NOT_SET_ANYWHERE'"


def test_an_unknown_user_is_refused(write: Write) -> None:
    with pytest.raises(SettingsError):
        load({}, write("[store]\nroot = ~no-such-user/x\n"))


def test_scaled_stretches_all_limits_but_the_promise_to_stop_and_the_pause() -> None:
    plain, scaled = Timeouts(), Timeouts().scaled(3)
    factors = {field.name: getattr(scaled, field.name) / getattr(plain, field.name) for field in fields(Timeouts)}
    assert factors == pytest.approx(dict.fromkeys(factors, 3.0) | {"stop": 1.0, "retry": 1.0})


@pytest.mark.parametrize(
    ("boot", "accel", "limit", "connect"),
    [
        (BootSettings(), "kvm", 60, 5),
        (BootSettings(), "tcg", 60 * TCG_SCALE, 5 * TCG_SCALE),
        (BootSettings(scale=2), "tcg", 120, 10),
        (BootSettings(scale=2), "kvm", 120, 10),
        (BootSettings(timeout=7), "kvm", 7, 5),
        (BootSettings(timeout=7, scale=2), "tcg", 7, 10),
    ],
    ids=["kvm", "tcg", "scale for tcg", "scale for kvm", "timeout", "timeout is not scaled"],
)
def test_limits_of_a_boot(boot: BootSettings, accel: Literal["kvm", "tcg"], limit: float, connect: float) -> None:
    timeouts = boot.timeouts(accel)
    assert (timeouts.boot, timeouts.connect, timeouts.stop) == (limit, connect, 3.0)


class TestFilesOfOthers:
    """Settings name programs: whoever can write them runs what they like as us."""

    @pytest.fixture
    def foreign(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
        directory = write("[build]\nqemu = /tmp/evil\n")
        if os.geteuid() == 0:
            os.chown(directory / "luigi.cfg", 4242, 4242)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: 4242)
        return directory

    def test_one_that_lies_there_is_refused(self, foreign: Path) -> None:
        with pytest.raises(SettingsError, match=r"luigi.cfg is not followed: it belongs to another user") as caught:
            load({}, foreign)
        assert caught.value.hint.endswith(f"say LUIGI_CONFIG_PATH={foreign}/luigi.cfg")

    def test_luigi_s_old_name_counts_too(self, foreign: Path) -> None:
        (foreign / "luigi.cfg").rename(foreign / "client.cfg")
        with pytest.raises(SettingsError, match=r"client.cfg is not followed"):
            load({}, foreign)

    def test_a_link_counts_as_what_it_leads_to(self, foreign: Path, tmp_path: Path) -> None:
        (tmp_path / "luigi.cfg").symlink_to(foreign / "luigi.cfg")
        with pytest.raises(SettingsError, match="is not followed"):
            load({}, tmp_path)

    def test_one_that_is_named_is_its_user_s_choice(self, foreign: Path) -> None:
        assert load({"LUIGI_CONFIG_PATH": "luigi.cfg"}, foreign).resources == {"qemu": Path("/tmp/evil")}

    @pytest.mark.parametrize(
        ("mode", "group", "told"),
        [(0o646, "ours", True), (0o666, "ours", True), (0o664, "ours", False), (0o664, "another", True)],
    )
    def test_one_that_others_can_write_to(
        self, write: Write, monkeypatch: pytest.MonkeyPatch, mode: int, group: str, told: bool
    ) -> None:
        directory = write("[qemu]\nsmp = 2\n")
        (directory / "luigi.cfg").chmod(mode)
        if group == "another":
            gid = os.getegid() + 1
            monkeypatch.setattr(os, "getegid", lambda: gid)
        if not told:
            assert load({}, directory).qemu.smp == 2
            return
        with pytest.raises(SettingsError, match=rf"others can write to it \(mode {mode:04o}\)"):
            load({}, directory)
