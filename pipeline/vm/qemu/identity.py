"""Whether the instance that is about to be contacted is the one that its handle describes.

The handle's seal and the locked pidfile with its pid and start time have been checked before (Instance.require_live).
Here QEMU itself is asked: which process listens on its monitor, the boot's id, and the port that it forwards. The host
key of the guest is compared by pipeline.ssh.
"""

from pipeline.errors import BrokenInstance, HandleEdited, UnknownInstance
from pipeline.host.resources import is_frozen
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.qemu.qmp import Monitor, MonitorError

LIMIT = 5.0
"""Seconds that QEMU may take for each answer; as a rule it takes a few milliseconds."""


_PAUSED = {
    "internal-error": "KVM cannot run it",
    "io-error": "its disk is full, or broken",
    "paused": "somebody has told it to",
    "prelaunch": "it was not begun",
}


def verify(instance: Instance, handle: Handle) -> None:
    """Check that QEMU confirms what the handle says: its pid, the boot's id, and the SSH port.

    Raises HandleEdited if one of them differs, BrokenInstance if QEMU gives no answer or its guest does not run, and
    UnknownInstance if QEMU has ended.
    """
    try:
        with Monitor(instance.qmp_socket, LIMIT) as monitor:
            peer = monitor.peer
            found = {"boot id": monitor.boot_id(), "port": monitor.ssh_port()}
            status = monitor.status()
    except MonitorError as error:
        if not handle.process.alive:
            raise UnknownInstance(
                "it has just been stopped", hint="boot it: luigi --module tasks BootInstance --name NAME"
            ) from error
        frozen = is_frozen(handle.process)
        why = "it has been stopped by a signal" if frozen else str(error)
        hint = f"to let it run on: kill -CONT {handle.process.pid}" if frozen else "to end it: topcoat stop NAME"
        raise BrokenInstance(f"QEMU does not say whether it is the right one: {why}", hint=hint) from error
    for what, said in {"pid": handle.process.pid, "boot id": handle.boot_id, "port": handle.ssh.port}.items():
        if (real := {**found, "pid": peer}[what]) != said:
            raise HandleEdited(
                f"the handle does not tell of the QEMU that runs: its {what} is {said}, QEMU's is {real}",
                hint="end the instance and boot it again: topcoat stop NAME",
            )
    if status != "running":
        raise BrokenInstance(
            f"QEMU has paused the guest: {_PAUSED.get(status, status)}",
            hint="stop it: topcoat stop NAME; topcoat doctor looks at the disk",
        )
