"""Whoever changes what makes an artifact is reminded of its version."""

import inspect
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import tasks
from pipeline.builds import prepare, ssh_keys
from pipeline.builds.linux import apt, compiler, disk, gathering, initramfs, kernel, libraries, packages
from pipeline.builds.linux import programs as demo_programs
from pipeline.builds.targets import compiling, image, seeds, sources
from pipeline.builds.targets import libraries as target_libraries
from pipeline.campaign import bundling, minimising, reporting, triage, trying
from pipeline.campaign.report import junit, matrix, reported, sarif, whole
from pipeline.fuzz.crashes import minimise, severity, verdicts
from pipeline.images import cpio, fvm
from pipeline.vm.qemu import migration, proving, renewal, saving
from tasks.engine.artifact import ArtifactTask

PARTS: dict[str, tuple[Callable[..., object] | ModuleType, ...]] = {
    "SSHKeyPair": (ssh_keys,),
    "InitrdWithKey": (prepare.make_initrd,),
    "BootTemplate": (saving, proving, migration, renewal),
    "ExtendedBlk": (prepare.make_disk, prepare.copy_disk),
    "DemoPackages": (initramfs, gathering, apt, libraries, packages),
    "DemoKernel": (kernel,),
    "DemoSystem": (initramfs, libraries, packages, cpio.encode, ssh_keys.dropbear_host_key),
    "DemoCompiler": (compiler, gathering, apt, libraries, packages),
    "DemoPrograms": (demo_programs, compiler.Compiler, compiler.unpack, cpio.encode),
    "DemoInitramfs": (),
    "DemoDisk": (disk, fvm.create),
    "CompiledTarget": (compiling, sources, compiler.Compiler, compiler.unpack),
    "TargetLibraries": (target_libraries, apt, libraries, packages),
    "TargetsImage": (image, seeds, compiler.Compiler),
    "TriageCrash": (triage, trying, verdicts),
    "ReplayBundle": (triage, trying, verdicts, bundling.bucket_of, bundling.tried_inputs),
    "MinimiseCrash": (minimising, minimise, trying),
    "CampaignReport": (reporting, whole, matrix, reported, sarif, junit, severity),
}
"""What does the work of each task. Tools are in the record by their digest."""


def test_the_source_of_what_makes_an_artifact_is_known_with_the_version_of_its_task() -> None:
    """When this fails: is something else made of the same inputs now? Then raise the task's version."""
    found = {}
    for name in tasks.__all__:
        task = getattr(tasks, name)
        if issubclass(task, ArtifactTask):
            sources = [inspect.getsource(part) for part in (task.make, *PARTS[name])]
            found[name] = [task.version, sha256("".join(sources).encode()).hexdigest()[:8]]
    assert found == json.loads(Path(__file__).with_name("versions.json").read_text())
