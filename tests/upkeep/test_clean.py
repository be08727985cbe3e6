"""`topcoat clean`: what can be deleted, and what it leaves alone."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.host.locks import locked
from pipeline.settings import Store
from pipeline.upkeep import clean
from pipeline.vm.instance import Instance
from tests.conftest import BIN, Workspace, qemus_of

MADE = "images/x/ssh.zbi"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with an image, a template, the Linux guest's parts, a key, and remains of a killed run."""
    root = tmp_path / "out"
    for name in (
        *(MADE, f"{MADE}.made.json", f"{MADE}.lock"),
        *("templates/x/template.json", "templates/x/template.json.made.json", "templates/x/template.json.lock"),
        *("demo/vmlinux", "demo/vmlinux.lock", "demo/packages/libc.deb"),
        *("keys/sshid", "keys/sshid.made.json", "keys/sshid.lock", "keys/.sshid.abcdefgh.tmp/sshid"),
        *("instances/i0/serial.log", "instances/i0/.handle.json.abcdefgh.tmp/handle.json"),
        "cache/digests.jsonl",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"" if name.endswith(".lock") else b"x" * 5000)
    return Store(root)


def names(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


@pytest.fixture
def running(bundle: Workspace) -> Workspace:
    """A scripted guest named i0, and something in the cache."""
    assert bundle.luigi("BootInstance").status == 0
    bundle.store.cache.mkdir(exist_ok=True)
    (bundle.store.cache / "kvm.json").write_text("{}")
    return bundle


def listed(store: Store) -> dict[str, str]:
    return {str(item.path.relative_to(store.root)): item.kept for item in clean.items(store)}


ALL = {"images/x": "", "templates/x": "", "demo": "", "cache": ""}


def test_what_there_is_to_delete(store: Store) -> None:
    before = names(store)
    assert listed(store) == ALL
    assert all(item.bytes >= 4096 for item in clean.items(store))
    assert names(store) == before


def test_deleting_leaves_keys_instances_and_locks(store: Store) -> None:
    (store.root / "images/x/.ssh.zbi.abcdefgh.tmp").mkdir()
    (store.root / "images/x/.ssh.zbi.abcdefgh.tmp/ssh.zbi").write_bytes(b"x")
    for item in clean.items(store):
        assert clean.delete(item) == item
    assert names(store) == [
        "demo/vmlinux.lock",
        "images/x/ssh.zbi.lock",
        "instances/i0/.handle.json.abcdefgh.tmp/handle.json",
        "instances/i0/serial.log",
        "keys/.sshid.abcdefgh.tmp/sshid",
        "keys/sshid",
        "keys/sshid.lock",
        "keys/sshid.made.json",
        "templates/x/template.json.lock",
    ]
    assert listed(store) == {}


def test_what_somebody_works_on_is_kept(store: Store) -> None:
    before = names(store)
    template = store.template("x") / "template.json"
    with locked(store.root / MADE), locked(store.keys / "sshid"), locked(store.demo / "vmlinux"), locked(template):
        kept = {str(item.path.relative_to(store.root)): clean.delete(item).kept for item in clean.items(store)}
    assert kept == {
        "images/x": "another process works on it",
        "templates/x": "another process works on it",
        "demo": "another process works on it",
        "cache": "",
    }
    assert names(store) == [name for name in before if not name.startswith("cache")]


def test_while_an_instance_is_booted_nobody_knows_of_what(store: Store) -> None:
    with locked(Instance.named(store, "i0").directory):
        assert listed(store) == {
            "images/x": "i0 is being booted",
            "templates/x": "i0 is being booted",
            "demo": "i0 is being booted",
            "cache": "i0 is being booted",
        }


def test_links_are_deleted_and_not_followed(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (store.demo / "link").symlink_to(outside)
    (store.demo / "file").symlink_to(outside / "precious")
    for item in clean.items(store):
        clean.delete(item)
    assert (outside / "precious").exists()
    assert not os.path.lexists(store.demo / "file")


def test_an_empty_store(tmp_path: Path) -> None:
    assert clean.items(Store(tmp_path / "nothing")) == []


class TestMake:
    """`make clean`, of a checkout in which there is something to lose."""

    @pytest.fixture
    def checkout(self, running: Workspace) -> Workspace:
        shutil.copy(Path(__file__).parents[2] / "Makefile", running.directory)
        (running.directory / ".venv").mkdir()
        (running.directory / ".venv/bin").symlink_to(BIN)
        for name in ("corpora/p/f/units/a", "crashes/p/f/x/1/input", "keys/sshid", "demo/vmlinux"):
            (running.store.root / name).parent.mkdir(parents=True, exist_ok=True)
            (running.store.root / name).write_bytes(b"x")
        return running

    def test_what_cannot_be_made_again_stays_and_it_says_so(self, checkout: Workspace) -> None:
        for _ in range(2):  # the second time there is no .venv
            done = subprocess.run(
                ["make", "clean"], cwd=checkout.directory, env=checkout.environment, capture_output=True, check=True
            )
            assert b"to delete that too, corpora and all: rm -r out\n" in done.stdout
        assert qemus_of(checkout.directory) == []
        assert not (checkout.directory / ".venv").exists()
        assert BIN.exists()
        left = {name.partition("/")[0] for name in checkout.files()}
        assert left == {"corpora", "crashes", "instances", "keys"}
        assert (checkout.store.root / "corpora/p/f/units/a").exists()
        assert (checkout.store.root / "crashes/p/f/x/1/input").exists()


class TestCommand:
    """As a program, with a scripted guest."""

    def test_it_shows_first_and_spares_what_is_used(self, running: Workspace) -> None:
        images = running.store.images("clusterfuzz")
        before = running.files()
        shown = running.topcoat("clean").stdout.decode().splitlines()
        assert shown[0].startswith(f"keep     {images} (")
        assert shown[0].endswith("): i0 runs on it")
        assert shown[1].startswith(f"delete   {running.store.cache} (")
        assert shown[2:] == ["nothing was deleted; to do it: topcoat clean --yes"]
        assert running.files() == before
        done = running.topcoat("clean", "--yes").stdout.decode().splitlines()
        assert done[1].startswith(f"deleted  {running.store.cache} (")
        assert running.instance().live_handle()
        assert running.topcoat("plan", "--check").status == 0
        running.topcoat("stop", "i0")
        assert running.topcoat("clean", "--yes").status == 0
        assert running.files() == [
            *(f"instances/i0/{name}" for name in ("qemu.log", "serial.log", "timeline.jsonl")),
            *(f"keys/{name}" for name in ("sshid", "sshid.made.json", "sshid.pub")),
        ]
        assert running.topcoat("clean").stdout == b""
        assert running.luigi("BootInstance").status == 0

    def test_a_guest_without_a_handle_keeps_all(self, running: Workspace) -> None:
        running.instance().handle_file.write_text("{")
        shown = running.topcoat("clean", "--yes").stdout.decode()
        assert "i0 runs without a handle; to end it: topcoat stop i0" in shown
        assert "deleted" not in shown

    def test_json(self, running: Workspace) -> None:
        listing = json.loads(running.topcoat("clean", "--json").stdout)
        assert (listing["schema"], listing["done"]) == (1, False)
        images, cache = listing["items"]
        assert images["path"] == str(running.store.images("clusterfuzz"))
        assert (images["kept"], cache["kept"]) == ("i0 runs on it", None)
        assert images["bytes"] > 0
