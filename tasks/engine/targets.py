"""The targets of the tasks, whose existence luigi asks about: files and instances."""

from pathlib import Path

import luigi

from pipeline.vm.instance import Instance


class ArtifactTarget(luigi.Target):
    """A file of the store, or one that a build brings."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether the file is there. A file of the store appears only once it is complete."""
        return self.path.is_file()

    def __str__(self) -> str:
        return str(self.path)


class InstanceTarget(luigi.Target):
    """A running guest."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance

    def exists(self) -> bool:
        """Whether the instance has a readable handle, and the very QEMU that this was written for still lives."""
        return self.instance.live_handle() is not None

    def __str__(self) -> str:
        return f"instance {self.instance.name}"
