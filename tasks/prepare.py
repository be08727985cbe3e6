"""The tasks that prepare a build's images for a boot: our SSH key is put in, and the disk gets room."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pipeline.builds import prepare, ssh_keys
from pipeline.store.freshness import Proof
from pipeline.store.publish import write_new
from tasks.engine.artifact import ArtifactTask, Tasks
from tasks.engine.context import context
from tasks.engine.parameters import Choice, Size
from tasks.engine.resources import BuildArtifactTask


class SSHKeyPair(ArtifactTask):
    """The SSH key pair for all guests of the store: keys/sshid and keys/sshid.pub."""

    type = Choice(choices=("ed25519", "rsa"), default="ed25519", description="ed25519, or rsa (2048 bits, PKCS#1 PEM)")

    def artifacts(self) -> tuple[Path, Path]:
        keys = context().settings.store.keys
        return (keys / "sshid", keys / "sshid.pub")

    def make(self, made: Sequence[Path]) -> None:
        private, public = made
        private_key, public_key = ssh_keys.generate(cast(ssh_keys.KeyType, self.type))
        write_new(private, private_key, mode=0o600)
        write_new(public, public_key)


class InitrdWithKey(BuildArtifactTask):
    """The build's ZBI with our public key in it, made by the build's `zbi` tool or Topcoat's own, and then checked."""

    needs = ("zbi", "zbitool")
    uses = ("zbitool",)
    proved = True

    def prerequisites(self) -> Tasks:
        return {"key": SSHKeyPair()}

    def artifacts(self) -> tuple[Path]:
        chosen, build = context().settings, context().build
        return (prepare.initrd_path(chosen.store, build),)

    def make(self, made: Sequence[Path]) -> Proof | None:
        chosen, build = context().settings, context().build
        _, public = SSHKeyPair().artifacts()
        return prepare.make_initrd(build, public, made[0], chosen.tools)


class ExtendedBlk(BuildArtifactTask):
    """A copy of the build's disk, extended by the build's `fvm` tool or Topcoat's own, and then checked."""

    needs = ("blk", "fvm")
    uses = ("fvm",)
    proved = True

    length = Size(default=prepare.DISK_LENGTH, description="bytes, or with a suffix K, M or G")

    def artifacts(self) -> tuple[Path]:
        chosen, build = context().settings, context().build
        return (prepare.disk_path(chosen.store, build),)

    def make(self, made: Sequence[Path]) -> Proof | None:
        chosen, build = context().settings, context().build
        return prepare.make_disk(build, self.length, made[0], chosen.tools)
