"""From a build's images to images that we can enter: our SSH key inside, and room on the disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pipeline import prepare, settings, ssh_keys
from pipeline.freshness import Proof
from pipeline.publish import write_new
from tasks.base import ArtifactTask, Tasks
from tasks.build import BuildArtifactTask, current
from tasks.parameters import Choice, Size


class SSHKeyPair(ArtifactTask):
    """The key pair for all guests of the store: keys/sshid and keys/sshid.pub."""

    type = Choice(choices=("ed25519", "rsa"), default="ed25519", description="ed25519, or rsa (2048 bits, PKCS#1 PEM)")

    def artifacts(self) -> tuple[Path, Path]:
        keys = settings.load().store.keys
        return (keys / "sshid", keys / "sshid.pub")

    def make(self, made: Sequence[Path]) -> None:
        private, public = made
        private_key, public_key = ssh_keys.generate(cast(ssh_keys.KeyType, self.type))
        write_new(private, private_key, mode=0o600)
        write_new(public, public_key)


class InitrdWithKey(BuildArtifactTask):
    """The build's ZBI with our public key in it, by the build's `zbi` tool or Topcoat's own, and proved."""

    needs = ("zbi", "zbitool")
    uses = ("zbitool",)
    proved = True

    def prerequisites(self) -> Tasks:
        return {"key": SSHKeyPair()}

    def artifacts(self) -> tuple[Path]:
        chosen, build = current()
        return (prepare.initrd_path(chosen.store, build),)

    def make(self, made: Sequence[Path]) -> Proof | None:
        chosen, build = current()
        _, public = SSHKeyPair().artifacts()
        return prepare.make_initrd(build, public, made[0], chosen.tools)


class ExtendedBlk(BuildArtifactTask):
    """A copy of the build's disk, extended by the build's `fvm` tool or Topcoat's own, and proved."""

    needs = ("blk", "fvm")
    uses = ("fvm",)
    proved = True

    length = Size(default=prepare.DISK_LENGTH, description="bytes, or with a suffix K, M or G")

    def artifacts(self) -> tuple[Path]:
        chosen, build = current()
        return (prepare.disk_path(chosen.store, build),)

    def make(self, made: Sequence[Path]) -> Proof | None:
        chosen, build = current()
        return prepare.make_disk(build, self.length, made[0], chosen.tools)
