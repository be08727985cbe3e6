"""The user that QEMU becomes if root starts it."""

import os
import pwd

from pipeline.errors import SettingsError


def require_user(name: str | None) -> None:
    """Raise SettingsError unless a QEMU that this process starts can become this user; None means no change of user.

    QEMU itself changes its user, after it has opened its files and sockets and before it lets the guest run. So that
    user needs no right to any file. Whoever breaks out of the guest can reach only what QEMU has open (the images, the
    instance's own disk and logs, its sockets) and what every user may read. As QEMU was root before, no other process
    of that user, such as another guest's QEMU, can look into it; they could only send signals to each other. QEMU has
    no capabilities then, and gains none.
    """
    if name is None:
        return
    try:
        uid = pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError) as error:
        raise SettingsError(
            f"[qemu] user = {name}, but this host has no user of that name",
            hint=f"make one that nothing else uses: useradd --system --shell /usr/sbin/nologin {name}",
        ) from error
    if uid == 0:
        raise SettingsError(f"[qemu] user = {name}, but that is root itself", hint="name a user that nothing else uses")
    if os.geteuid() != 0:
        raise SettingsError(
            f"[qemu] user = {name}, but only root can start a QEMU that becomes another user",
            hint="run Topcoat as root; or leave [qemu] user out: QEMU then has no other rights than you",
        )
