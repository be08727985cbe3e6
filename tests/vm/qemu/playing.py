"""Boots in this process, with the scripted QEMU and the real launcher: quick, and its objects can be looked at."""

import json
import os
from typing import Any

import pytest

from pipeline import settings
from pipeline.builds import build, ssh_keys
from pipeline.host import resources
from pipeline.images import cpio
from pipeline.settings import Ready
from pipeline.store.publish import publish_bytes
from pipeline.vm.qemu.launcher import QemuLauncher
from tests.conftest import Workspace

PATIENT = "[qemu]\naccel = tcg\n[boot]\ntimeout = 100\n"
"""For all that is found out before time is up."""

HASTY = "[qemu]\naccel = tcg\n[boot]\ntimeout = 4\nscale = 0.2\n"
"""For what is found out when time is up: the scripted QEMU comes up within it, also on a busy machine."""


class Played:
    """An instance of a bundle whose images are there already."""

    def __init__(self, bundle: Workspace, monkeypatch: pytest.MonkeyPatch, configuration: str = PATIENT) -> None:
        self.bundle, self.monkeypatch = bundle, monkeypatch
        bundle.configure(configuration)
        monkeypatch.setattr(resources.Starvation, "share", lambda _: 0.0)  # what this machine's load is does not count
        images = bundle.store.images("clusterfuzz")
        publish_bytes(images / "ssh-fuchsia.zbi", cpio.encode([]))
        publish_bytes(images / "extended-fvm.blk", bytes(1 << 20))
        private, self.public_key = ssh_keys.generate("ed25519")
        publish_bytes(bundle.store.keys / "sshid", private, 0o600)
        for name in os.environ:
            if name.startswith(("FUCHSIA_", "TOPCOAT_", "LUIGI_")):
                monkeypatch.delenv(name)
        monkeypatch.setenv("FUCHSIA_RESOURCES_DIR", bundle.environment["FUCHSIA_RESOURCES_DIR"])

    def play(self, part: str, port: int = 1) -> None:
        """What the next QEMU does."""
        self.monkeypatch.setenv("QEMU_FAKE", part)
        self.monkeypatch.setenv("QEMU_FAKE_PORT", str(port))

    def launcher(self, ready: Ready = "marker", name: str = "i0") -> QemuLauncher:
        found = settings.load(directory=self.bundle.directory)
        return QemuLauncher(found, build.load(found), self.bundle.instance(name), ready)

    def remains(self) -> list[str]:
        """All files of the instance that are no logs."""
        directory = self.bundle.instance().directory
        kept = ("serial.log", "qemu.log", "timeline.jsonl")
        found = [path.name for path in directory.iterdir()] if directory.exists() else []
        return [name for name in found if not name.startswith(kept)]

    def timeline(self) -> list[dict[str, Any]]:
        """The events of the last boot."""
        lines = self.bundle.instance().timeline.read_text().splitlines()
        return [json.loads(line) for line in lines][1:]
