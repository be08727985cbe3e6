"""Commands about boots: `topcoat boot`, and `topcoat argv`, which prints QEMU's command line."""

import argparse
import json
import shlex
import sys
from dataclasses import asdict

from pipeline.cli.artifacts import plan_lines
from pipeline.errors import UsageError
from pipeline.host.stdio import only_telling
from pipeline.settings import Settings
from pipeline.vm.instance import Instance


def argv(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat argv`: print the command line of the instance's QEMU, or else the one that a boot would have."""
    from pipeline.builds.build import load
    from pipeline.vm.qemu.plan import plan

    instance = Instance.named(chosen.store, options.name)
    handle = instance.live_handle()
    words = handle.argv if handle else plan(chosen, load(chosen), instance, chosen.boot.ready).argv
    print(json.dumps({"schema": 1, "argv": words}, indent=2) if options.json else shlex.join(words))
    return 0


def boot(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat boot`: boot an instance as luigi's task BootInstance does, or with --dry-run only print its plan."""
    Instance.named(chosen.store, options.name)
    words = ["BootInstance", "--name", options.name]
    words += ["--ready", options.ready] if options.ready else []
    words += ["--warm", options.warm] if options.warm else []
    words += ["--replace"] if options.replace else []
    if options.dry_run:
        return _dry_run(chosen, options, words)
    if options.json:
        raise UsageError("a boot has no --json", hint="add --dry-run; after a boot, see topcoat instances --json")
    from tasks.engine.command import run

    with only_telling():
        run(words)
    return 0


def _dry_run(chosen: Settings, options: argparse.Namespace, words: list[str]) -> int:
    from pipeline.builds.build import load
    from pipeline.vm.capacity import require_room
    from pipeline.vm.qemu.plan import plan
    from tasks import BootInstance
    from tasks.engine import explain

    chosen.store.require_writable()
    build, instance = load(chosen), Instance.named(chosen.store, options.name)
    for key in BootInstance.needs:
        build.require(key)
    graph, planned = explain.look(words), plan(chosen, build, instance, options.ready or chosen.boot.ready)
    cloned = BootInstance(name=options.name, ready=options.ready or "", warm=options.warm or "").would_clone()
    require_room(instance)
    if options.json:
        answer = {
            "schema": 1,
            "pending": graph.encode_plan()["pending"],
            "argv": planned.argv,
            "timeouts": asdict(planned.timeouts),
            "ready": planned.ready,
            "how": "clone" if cloned else "boot",
            "no_kvm": planned.slow or None,
        }
        print(json.dumps(answer, indent=2, sort_keys=True))
        return 0
    lines = list(plan_lines(graph))
    print(*(lines or [f"{options.name} is running, and is what a boot would make"]), sep="\n")
    if planned.slow:
        print(f"no KVM: {planned.slow}")
    usual = "" if planned.usual is None else f" (slow boots of this kind take {planned.usual:.1f} s here)"
    if cloned:
        print("it is made as a clone of the template; if that fails, it is booted:")
    print(f"ready by {planned.ready}, within {planned.timeouts.boot:.0f} s{usual}")
    print(shlex.join(planned.argv))
    print("nothing was made or started", file=sys.stderr)
    return 0
