"""The one exception tree of Topcoat. A class says in which phase something failed and whose fault it is.

::

    TopcoatError
    ├── UsageError              user   a command asks for something that makes no sense
    │   ├── SettingsError       user   luigi.cfg or the environment holds a wrong value
    │   ├── BadHandle           user   a handle of undercoat is not there, or cannot be understood
    │   ├── UnknownFuzzer       user   no fuzzer of the build has this name
    │   ├── BadArguments        user   a fuzzer is given arguments with which it cannot be run
    │   ├── NotSupported        user   the original launcher can do it, Topcoat cannot
    │   ├── UnknownInstance     user   no instance has this name
    │   └── NoMatch             user   no file has a name that the pattern asks for
    ├── MissingResource         user   the build lacks a file that the task needs
    │   └── ResourceDamaged     user   the file is there, but not what it should be
    ├── StoreError              host   the store cannot be read or written
    ├── ToolError               tool   a host program did not do its work
    │   ├── ToolMissing         user   it is not there or cannot be run
    │   ├── ToolFailed          tool   it exited with an error
    │   ├── ToolTimeout         tool   it did not end in time and was killed
    │   └── ToolLied            tool   it exited with 0 but its output is not there or not right
    ├── InputChanged            user   what an artifact is made of changed while it was being made
    ├── ImageError              user   an image is not what it should be, or cannot become what is asked for
    │   ├── WrongFormat         user   it is another kind of file than the one that is wanted
    │   ├── ImageDamaged        user   it is cut off, or what it says of itself cannot be true
    │   └── ImageTooLarge       user   it claims to hold more than Topcoat unpacks, or than its format allows
    ├── PackageError            host   a Debian package for the demo guest is not to be had
    ├── BootError               -      a boot failed: `stage` says how far it came, `cause` names why
    │   ├── QemuRefused         user   QEMU does not take its arguments or its images
    │   ├── HostFault           host   the host could not carry the boot: KVM, port, memory, disk, load
    │   ├── GuestDied           guest  the guest panicked, reset, or powered itself off
    │   ├── BootTimeout         guest  the guest was not ready in time
    │   └── ConnectError        guest  SSH to the guest does not work
    │       ├── KeyRefused      guest  the guest does not take our key
    │       ├── KeyGone         guest  our key is not there any more: the guest was stopped
    │       └── WrongServer     guest  something else answers on the guest's port
    ├── StartFailed             -      undercoat has started no guest, for a reason that was told
    ├── InstanceBusy            user   another process works on the instance
    │   ├── AlreadyRunning      user   it is running, so it cannot be started
    │   └── CampaignBusy        user   another process works at the campaign
    ├── StaleInstance           user   the instance runs with other images or settings than today's
    ├── BrokenInstance          host   QEMU lives, but its handle cannot be understood or does not fit it
    │   └── HandleEdited        user   somebody else than Topcoat has written to the handle
    ├── KernelHalted            guest  QEMU lives, but the guest's kernel has panicked or halted
    ├── PidReused               host   the instance has ended, and its pid belongs to another process
    ├── StopError               host   QEMU survived SIGKILL
    ├── CampaignError           user   a campaign has ended, and not all of it was done
    │   └── NotProved           host   its canary was not found, so that nothing it says proves anything
    ├── FuzzerError             guest  a fuzzer could not be prepared, or did not end well
    │   ├── FuzzerTimeout       guest  it did not end in time and was killed
    │   ├── SymbolizerFailed    tool   the program that gives its stack traces names did not do its work
    │   └── OutputLost          user   nobody takes its output any more
    └── CommandError            guest  a command in the guest could not be run to its end
        ├── CommandExited       guest  it exited with an error
        ├── CommandTimeout      guest  it did not end in time
        └── TransferRefused     guest  the guest sends more than is allowed, or names that are not

Every error has a hint: the next thing that a person should do. `detail` holds the evidence, such as the end of a
console or of a tool's stderr; it is already free of control characters.
"""

from typing import ClassVar, Self


class TopcoatError(Exception):
    """Base of all errors that Topcoat raises on purpose.

    `str(error)` is the one-line message; `explain` is the whole block for a person.
    """

    phase: ClassVar[str] = "run"
    fault: ClassVar[str] = "bug"
    exit_code: ClassVar[int] = 30

    def __init__(self, message: str, *, hint: str, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__))

    def about(self, name: str) -> Self:
        """Name the instance that failed: before the message, and for NAME in the hint."""
        self.message = f"{name}: {self.message}"
        self.hint = self.hint.replace("NAME", name)
        self.args = (self.message,)
        return self

    def explain(self) -> str:
        """The message, the evidence indented below it, and the hint, without a final newline."""
        evidence = [f"  | {line}" for line in self.detail.splitlines()]
        return "\n".join([self.message, *evidence, f"  hint: {self.hint}"])


def _rebuild(cls: type[TopcoatError], state: dict[str, object]) -> TopcoatError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    error.args = (state["message"],)
    return error


class UsageError(TopcoatError):
    """A command asks for something that makes no sense."""

    phase = "usage"
    fault = "user"
    exit_code = 2


def empty_value(name: str) -> UsageError:
    """What to raise about an empty value: nobody means "the default" by it, but a variable that is not set."""
    return UsageError(
        f"{name} has an empty value", hint="give it one, or leave it out; was it meant to come from a variable?"
    )


class SettingsError(UsageError):
    """luigi.cfg or the environment holds a value that cannot be used."""

    phase = "settings"


class BadHandle(UsageError):
    """A handle of undercoat is not there, or cannot be understood."""

    phase = "handle"


class UnknownFuzzer(UsageError):
    """No fuzzer of the build has this name."""

    phase = "fuzz"


class BadArguments(UsageError):
    """A fuzzer is given arguments with which it cannot be run."""

    phase = "fuzz"


class NotSupported(UsageError):
    """What is asked for is something that the original launcher can do, and Topcoat cannot."""

    phase = "fuzz"


class UnknownInstance(UsageError):
    """No instance has this name."""

    phase = "instance"


class NoMatch(UsageError):
    """No file has a name that the pattern asks for."""

    phase = "command"


class MissingResource(TopcoatError):
    """The build lacks a file that a task needs."""

    phase = "build"
    fault = "user"
    exit_code = 20


class ResourceDamaged(MissingResource):
    """A file of the build is there, but not what it should be."""


class StoreError(TopcoatError):
    """The store cannot be read or written."""

    phase = "store"
    fault = "host"


class ToolError(TopcoatError):
    """A host program did not do its work."""

    phase = "prepare"
    fault = "tool"


class ToolMissing(ToolError):
    """A host program is not there or cannot be run."""

    fault = "user"
    exit_code = 20


class ToolFailed(ToolError):
    """A host program exited with an error; the end of its stderr is in `detail`."""

    code: int = 0
    """Its exit code; of one that was ended by a signal, minus the signal's number."""


class ToolTimeout(ToolError):
    """A host program did not end in time; it and all its children were killed."""


class ToolLied(ToolError):
    """A host program exited with 0 but its output is not there or not right."""


class InputChanged(TopcoatError):
    """What an artifact is made of changed while it was being made, so that nobody knows what it would be."""

    phase = "prepare"
    fault = "user"


class ImageError(TopcoatError):
    """An image is not what it should be, or cannot become what is asked for.

    `file` names it, once that is known, `offset` is the byte at which something is wrong, `expected` says what should
    be there. The message has all three.
    """

    phase = "image"
    fault = "user"

    def __init__(
        self, problem: str, *, hint: str, offset: int | None = None, expected: str = "", detail: str = ""
    ) -> None:
        where = "" if offset is None else f"at byte {offset:#x}: "
        super().__init__(f"{where}{problem}" + (f", expected {expected}" if expected else ""), hint=hint, detail=detail)
        self.file = ""
        self.offset = offset
        self.expected = expected

    def about(self, name: str) -> Self:
        """Name the file, unless it has been named."""
        if not self.file:
            super().about(name)
            self.file = name
        return self


class WrongFormat(ImageError):
    """It is another kind of file than the one that is wanted."""


class ImageDamaged(ImageError):
    """It is cut off, or what it says of itself cannot be true."""


class ImageTooLarge(ImageError):
    """It claims to hold more than Topcoat unpacks, or than its format allows."""


class PackageError(TopcoatError):
    """A Debian package for the demo guest is not to be had."""

    phase = "demo"
    fault = "host"


class BootError(TopcoatError):
    """A boot failed.

    `stage` is the last thing that was waited for, `cause` the name of the verdict (see pipeline/qemu/causes.py),
    `transient` whether the same boot may well succeed when it is tried again.
    """

    phase = "boot"
    fault = "guest"

    def __init__(
        self, message: str, *, hint: str, stage: str, detail: str = "", cause: str = "", transient: bool = False
    ) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.stage = stage
        self.cause = cause
        self.transient = transient


class QemuRefused(BootError):
    """QEMU does not take its arguments or its images."""

    fault = "user"


class HostFault(BootError):
    """The host could not carry the boot."""

    fault = "host"


class GuestDied(BootError):
    """The guest panicked, reset, or powered itself off before it was ready."""


class BootTimeout(BootError):
    """The guest was not ready in time."""


class ConnectError(BootError):
    """SSH to the guest does not work."""

    phase = "connect"


class KeyRefused(ConnectError):
    """The guest's SSH server answers, and does not take our key: trying again does not help."""


class KeyGone(ConnectError):
    """The private key is not there any more: whoever stops an instance deletes it."""


class WrongServer(ConnectError):
    """What answers on the guest's port is not the guest: another host key, or another boot's id."""


class StartFailed(TopcoatError):
    """Undercoat has started no guest, for a reason that was told."""

    phase = "boot"


class InstanceBusy(TopcoatError):
    """Another process works on the instance."""

    phase = "instance"
    fault = "user"
    exit_code = 10


class AlreadyRunning(InstanceBusy):
    """The instance is running, so it cannot be started."""


class CampaignBusy(InstanceBusy):
    """Another process works at the campaign."""


class StaleInstance(TopcoatError):
    """The instance runs with other images, another QEMU or other settings than today's."""

    phase = "instance"
    fault = "user"


class BrokenInstance(TopcoatError):
    """QEMU lives, but its handle cannot be understood, or what it says does not fit this QEMU."""

    phase = "instance"
    fault = "host"


class HandleEdited(BrokenInstance):
    """Somebody else than Topcoat has written to the handle, so nothing in it can be relied upon."""

    fault = "user"


class KernelHalted(TopcoatError):
    """QEMU lives, but the guest's kernel has panicked or halted (see pipeline/halt.py): nothing in it answers."""

    phase = "instance"
    fault = "guest"


class PidReused(TopcoatError):
    """The instance has ended, and its pid belongs to another process now."""

    phase = "instance"
    fault = "host"


class StopError(TopcoatError):
    """QEMU survived SIGKILL."""

    phase = "stop"
    fault = "host"


class CampaignError(TopcoatError):
    """A campaign has ended, and not all of it was done: fuzzers were benched, or there is no budget left for it."""

    phase = "campaign"
    fault = "user"


class NotProved(CampaignError):
    """The canary of a campaign was not found as it must be, so that whatever the campaign says proves nothing."""

    fault = "host"


class FuzzerError(TopcoatError):
    """A fuzzer could not be prepared, or its run did not end well."""

    phase = "fuzz"
    fault = "guest"


class FuzzerTimeout(FuzzerError):
    """A fuzzer did not end in time and was killed."""


class SymbolizerFailed(FuzzerError):
    """The program that gives stack traces their names is not there, or did not do its work."""

    fault = "tool"


class OutputLost(FuzzerError):
    """Nobody takes the fuzzer's output any more, so the fuzzer was ended."""

    fault = "user"


class CommandError(TopcoatError):
    """A command in the guest could not be run to its end."""

    phase = "command"
    fault = "guest"


class CommandExited(CommandError):
    """A command in the guest exited with an error: its exit status, its words, and the end of what it said of it."""

    def __init__(
        self,
        message: str,
        *,
        hint: str,
        detail: str = "",
        status: int = 1,
        command: str = "",
        stderr: bytes = b"",
    ) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.status = status
        self.command = command
        self.stderr = stderr


class CommandTimeout(CommandError):
    """A command in the guest, or a file from it, did not come to its end in time.

    `ended` tells whether the guest has confirmed that nothing of the command runs any more.
    """

    def __init__(self, message: str, *, hint: str, detail: str = "", ended: bool = False) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.ended = ended


class TransferRefused(CommandError):
    """The guest sends more than is allowed, names that could leave the directory meant for them, or no sense."""
