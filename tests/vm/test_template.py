"""Templates as files: what is believed, what is refused, and what stays open."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.builds import build
from pipeline.builds.build import Build
from pipeline.errors import BootError, GuestDied, HostFault, KeyGone, QemuRefused, UsageError, WrongServer
from pipeline.host.locks import locked
from pipeline.settings import Ready, Settings, Warm
from pipeline.store import publish
from pipeline.vm import template as module
from pipeline.vm.qemu import disk
from pipeline.vm.template import (
    DISK,
    RAM,
    SERIAL,
    STATE,
    NoTemplateError,
    OpenTemplate,
    PublishedTemplate,
    Template,
    TemplateFacts,
    saved_files,
    warm,
)

SAMPLE: dict[str, Any] = {
    "schema": 1,
    "build": "demo",
    "boot_id": "6ed5b97c4d0d497abbc50ccdd8f53e66",
    "host_key": "ssh-ed25519 AAAAC3Nz",
    "renews": True,
    "qemu": "7.2.22 Debian 1:7.2+dfsg-7+deb12u18",
    "seconds": 2.5,
    "saved": "2026-11-30T15:02:34Z",
    "ram": 536870912,
    "files": {
        "disk.qcow2": {"bytes": 196656, "digest": "b3s:bd11"},
        "serial.log": {"bytes": 196, "digest": "b3:d0c2"},
        "state": {"bytes": 603233, "digest": "b3:4f19"},
    },
}
"""Frozen: what earlier versions have written must be understood. A change of the format is a new schema."""

CONTENT = {RAM: b"memory" + bytes(100_000), STATE: b"devices", DISK: b"QFI\xfb written", SERIAL: b"{{{reset}}}\n"}
DOUBT = '{"schema": 1, "state": "DIGEST", "why": "it hangs", "when": "2026-11-30T15:02:34Z"}'


def test_the_frozen_sample_is_what_is_written_and_understood() -> None:
    facts = TemplateFacts.decode(json.dumps(SAMPLE).encode())
    assert facts.encode() == SAMPLE
    assert facts.files[STATE].bytes == 603233
    with pytest.raises(ValueError, match="schema"):
        TemplateFacts.decode(json.dumps(SAMPLE | {"schema": 2}).encode())


@pytest.fixture
def template(tmp_path: Path) -> Template:
    made = Template(tmp_path / "demo")
    made.directory.mkdir(mode=0o700)
    save(made)
    return made


def save(template: Template, content: dict[str, bytes] = CONTENT) -> None:
    """As the task does: the files are made beside, and then take the place of those that are there."""
    with publish.replacing(template.files) as made:
        directory = made[0].parent
        for name, data in content.items():
            (directory / name).write_bytes(data)
        facts = TemplateFacts.decode(json.dumps(SAMPLE).encode())
        facts = replace(facts, ram=len(content[RAM]), files=saved_files(directory, STATE, DISK, SERIAL))
        made[0].write_text(json.dumps(facts.encode()))


def published(template: Template, unfit: str | None = None) -> PublishedTemplate:
    return PublishedTemplate(template, lambda: unfit)


def read(opened: OpenTemplate, place: Path) -> dict[str, bytes]:
    opened.copy_disk(place)
    memory = os.pread(opened.ram, 1 << 20, 0)
    return {RAM: memory, STATE: b"".join(opened.state()), DISK: place.read_bytes(), SERIAL: opened.serial()}


def test_an_open_template_stays_what_it_was(template: Template, tmp_path: Path) -> None:
    with published(template).open() as opened:
        save(template, {name: b"another" + data for name, data in CONTENT.items()})
        assert read(opened, tmp_path / "disk") == CONTENT
    with published(template).open() as opened:
        assert opened.state() == (b"anotherdevices",)


def test_the_files_are_for_their_owner_only(template: Template) -> None:
    assert {path.stat().st_mode & 0o777 for path in template.files} == {0o600}


def edit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


def made_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "edited": edit,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "enlarged": lambda path: os.truncate(path, path.stat().st_size + 1),
    "missing": lambda path: path.unlink(),
    "a directory": made_a_directory,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [RAM, STATE, DISK, SERIAL, "template.json"])
def test_a_damaged_file_is_refused(template: Template, tmp_path: Path, name: str, damage: str) -> None:
    """An edited memory is found by its record, which is the task's: to hash it takes long."""
    DAMAGES[damage](template.directory / name)
    if (name, damage) == (RAM, "edited"):
        return
    with pytest.raises(NoTemplateError) as refused, published(template).open() as opened:
        read(opened, tmp_path / "disk")
    assert "\n" not in str(refused.value)


def test_no_descriptor_stays_open(template: Template) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    published(template).open().close()
    (template.directory / STATE).unlink()
    with pytest.raises(NoTemplateError):
        published(template).open()
    os.truncate(template.directory / RAM, 7)
    with pytest.raises(NoTemplateError):
        published(template).open()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_what_is_unfit_is_not_used(template: Template) -> None:
    unfit = published(template, "its template is stale: input initrd changed")
    assert not unfit.has_one()
    with pytest.raises(NoTemplateError, match="its template is stale: input initrd changed"):
        unfit.open()


def test_while_it_is_made_again_nobody_waits_for_it(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    with locked(template.file), pytest.raises(NoTemplateError, match="being made"):
        published(template).open()


def failed(source: PublishedTemplate, error: BootError) -> None:
    with source.open() as opened:
        source.failed(opened, error)


def test_a_clone_that_fails_is_remembered_until_there_is_another_template(template: Template) -> None:
    source = published(template)
    assert source.has_one()
    failed(source, GuestDied("it hangs", stage="banner", hint="wait"))
    assert not source.has_one()
    with pytest.raises(NoTemplateError, match=r"^a clone of it failed at 20\S+: it hangs$"):
        source.open()
    save(template, CONTENT | {STATE: b"other devices"})
    assert source.has_one()
    assert template.doubt() == ""


def test_what_the_host_did_to_a_clone_is_not_held_against_the_template(template: Template) -> None:
    source = published(template)
    failed(source, HostFault("QEMU was killed", stage="restore", hint="do not"))
    assert source.has_one()


@pytest.mark.parametrize(
    "error",
    [
        QemuRefused("QEMU refuses its arguments", stage="spawn", hint="look"),
        KeyGone("the key is gone", stage="auth", hint="boot it"),
        WrongServer("another server answers", stage="host key", hint="boot it"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_nor_is_what_has_nothing_to_do_with_it(template: Template, error: BootError) -> None:
    source = published(template)
    failed(source, error)
    assert source.has_one()


def test_a_clone_that_fails_late_is_not_held_against_the_next_template(template: Template) -> None:
    source = published(template)
    with source.open() as opened:
        save(template, CONTENT | {STATE: b"other devices"})
        source.failed(opened, GuestDied("it hangs", stage="banner", hint="wait"))
    assert source.has_one()


def test_a_doubt_that_cannot_be_noted_stops_nothing(
    template: Template, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    source = published(template)
    with source.open() as opened, locked(template.file):
        source.failed(opened, GuestDied("it hangs", stage="banner", hint="wait"))
    assert "could not be noted" in caplog.text


def test_a_disk_that_does_not_lead_to_the_image_is_refused(tmp_path: Path) -> None:
    image, first = tmp_path / "images/x/disk", tmp_path / "instances/a/overlay.qcow2"
    for path in (image, first):
        path.parent.mkdir(parents=True)
    image.write_bytes(bytes(1 << 20))
    disk.make_overlay(Path("/usr/bin/qemu-img"), image, first)
    made = Template(tmp_path / "templates/x")
    made.directory.mkdir(parents=True)
    save(made, CONTENT | {DISK: first.read_bytes()})
    second, deeper = tmp_path / "instances/b/overlay.qcow2", tmp_path / "instances/deep/er/overlay.qcow2"
    with published(made).open() as opened:
        disk.copy_overlay(opened, image, second)
        assert second.read_bytes() == first.read_bytes()
        with pytest.raises(NoTemplateError, match="does not lead to the image"):
            disk.copy_overlay(opened, image, deeper)
    assert not deeper.exists()


def test_the_frozen_doubt_is_understood(template: Template) -> None:
    digest = template.facts().files[STATE].digest
    place = template.directory / "doubt.json"
    place.write_text(DOUBT.replace("DIGEST", digest))
    assert template.doubt() == "a clone of it failed at 2026-11-30T15:02:34Z: it hangs"
    for other in (DOUBT, DOUBT[:20], "", "[]", DOUBT.replace("DIGEST", digest).replace("1,", "2,")):
        place.write_text(other)
        assert template.doubt() == ""


def test_a_doubt_is_written_as_it_is_understood(template: Template) -> None:
    failed(published(template), GuestDied("it \x1b[1mhangs", stage="banner", hint="wait"))
    written = json.loads((template.directory / "doubt.json").read_bytes())
    assert sorted(written) == sorted(json.loads(DOUBT))
    assert "\x1b" not in template.doubt()


def chosen(tmp_path: Path, text: str = "") -> tuple[Settings, Build]:
    (tmp_path / "luigi.cfg").write_text(text)
    found = settings.load({}, tmp_path)
    return found, build.load(found, {})


@pytest.mark.parametrize(
    ("wanted", "ready", "user", "kind", "outcome"),
    [
        ("auto", "ssh", "", "demo", "auto"),
        ("always", "ssh", "", "demo", "always"),
        ("never", "ssh", "", "demo", "never"),
        ("auto", "marker", "", "demo", "never"),
        ("auto", "ssh", "nobody", "demo", "never"),
        ("never", "marker", "nobody", "demo", "never"),
        ("auto", "ssh", "", "clusterfuzz", "never"),
        ("auto", "ssh", "", "local", "never"),
        ("always", "ssh", "", "local", "always"),
    ],
)
def test_when_clones_are_made(
    tmp_path: Path, wanted: Warm, ready: Ready, user: str, kind: build.Kind, outcome: str
) -> None:
    found, demo = chosen(tmp_path, f"[qemu]\nuser = {user}\n" if user else "")
    made = demo.made if kind == "demo" else frozenset()
    assert warm(wanted, ready, found, replace(demo, kind=kind, made=made)) == outcome


@pytest.mark.parametrize(("ready", "text", "why"), [("marker", "", "SSH"), ("ssh", "[qemu]\nuser = nobody\n", "user")])
def test_always_is_refused_where_it_cannot_be(tmp_path: Path, ready: Ready, text: str, why: str) -> None:
    found, demo = chosen(tmp_path, text)
    with pytest.raises(UsageError, match=f"^no clone can be made: .*{why}") as refused:
        warm("always", ready, found, demo)
    assert "--warm" in refused.value.hint


def test_facts_are_plain_values(template: Template) -> None:
    assert json.loads(template.file.read_bytes()) == {"schema": 1, **asdict(template.facts())}
