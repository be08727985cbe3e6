"""Whether an instance that is about to be spoken to is the one that its handle tells of.

The handle's seal and the locked pidfile with its pid and start time have been looked at before (Instance.require_live).
Here QEMU itself is asked: the process that listens on its monitor, the boot's id, and the port that it forwards. The
guest's side, its host key, is compared by pipeline.ssh.
"""

from pathlib import Path

from pipeline.errors import BrokenInstance, HandleEdited, UnknownInstance
from pipeline.host import is_frozen
from pipeline.instance import Handle
from pipeline.qemu.qmp import Monitor, MonitorError

LIMIT = 5.0
"""Seconds that QEMU may take for an answer. It takes a few milliseconds."""


_PAUSED = {
    "internal-error": "KVM cannot run it",
    "io-error": "its disk is full, or broken",
    "paused": "somebody has told it to",
    "prelaunch": "it was not begun",
}


def verify(handle: Handle) -> None:
    """Return if QEMU says of itself what the handle says of it.

    Raises HandleEdited if it does not, BrokenInstance if QEMU gives no answer, or its guest does not run, and
    UnknownInstance if QEMU has ended.
    """
    try:
        with Monitor(Path(handle.sockets) / "qmp", LIMIT) as monitor:
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
