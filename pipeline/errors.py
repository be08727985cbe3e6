"""The one exception tree of Topcoat: the class of an error says in which phase it arose, and whose fault it is.

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
    ├── PackageError            host   a Debian package for the Linux guest cannot be obtained
    ├── BootError               -      a boot failed: `stage` says how far it came, `cause` names why
    │   ├── QemuRefused         user   QEMU does not take its arguments or its images
    │   ├── HostFault           host   the host could not carry the boot: KVM, port, memory, disk, load
    │   ├── GuestDied           guest  the guest panicked, reset, or powered itself off
    │   ├── BootTimeout         guest  the guest was not ready in time
    │   ├── CloneUnsound        host   a clone of a new template is not what it should be
    │   └── ConnectError        guest  SSH to the guest does not work
    │       ├── KeyRefused      guest  the guest does not take our key
    │       ├── KeyGone         guest  our key is not there any more: the guest was stopped
    │       └── WrongServer     guest  something else answers on the guest's port
    ├── StartFailed             -      undercoat has left no guest running; the message says why
    ├── InstanceBusy            user   another process works on the instance
    │   ├── AlreadyRunning      user   it is running, so it cannot be started
    │   └── CampaignBusy        user   another process works on the campaign
    ├── StaleInstance           user   the instance runs with other images or settings than a boot would use now
    ├── BrokenInstance          host   QEMU lives, but its handle cannot be understood or does not fit it
    │   └── HandleEdited        user   something other than Topcoat has written to the handle
    ├── KernelHalted            guest  QEMU lives, but the guest's kernel has panicked or halted
    ├── PidReused               host   the instance has ended, and its pid belongs to another process
    ├── StopError               host   QEMU survived SIGKILL
    ├── CampaignError           user   a campaign has ended, and not all of it was done
    │   └── NotProved           host   its canary did not give the result that it must, so its results prove nothing
    ├── BundleRefused           user   a bundle of a crash is not what was written, or may not be written
    ├── FuzzerError             guest  a fuzzer could not be prepared, or did not end well
    │   ├── FuzzerTimeout       guest  it did not end in time and was killed
    │   ├── SymbolizerFailed    tool   the symbolizer is not there or did not do its work
    │   └── OutputLost          user   nobody reads its output any more
    └── CommandError            guest  a command in the guest could not be run to its end
        ├── CommandExited       guest  it exited with an error
        ├── CommandTimeout      guest  it did not end in time
        └── TransferRefused     guest  the guest sends more than is allowed, or names that are not

Every error has a `hint`, the next thing that a person should do. `detail` holds the evidence, such as the end of a
console or of a tool's stderr; it is already free of control characters.
"""

import re
from typing import ClassVar, Self

_PLACEHOLDER = re.compile(r"(?<![\w$/])NAME\b")  # in hints: the name of the instance that the error is about


class TopcoatError(Exception):
    """Base of all errors that Topcoat raises on purpose.

    `str(error)` is the one-line message; `explain` returns the whole block for a person.
    """

    phase: ClassVar[str] = "run"
    """What was being done when it failed, such as "boot" or "prepare"."""
    fault: ClassVar[str] = "bug"
    """Whose fault it is: "user", "host", "tool", "guest" or "bug"."""
    exit_code: ClassVar[int] = 30
    """The exit code of a program that ends with this error."""

    def __init__(self, message: str, *, hint: str, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__))

    def about(self, name: str) -> Self:
        """Put the name of the failed instance before the message, and into the hint for the word NAME. Returns self."""
        self.message = f"{name}: {self.message}"
        self.args = (self.message,)
        return self.hinting_at(name)

    def hinting_at(self, name: str) -> Self:
        """Name the instance in the hint only, where it has the word NAME."""
        self.hint = _PLACEHOLDER.sub(lambda _: name, self.hint)
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
    """The error to raise for an empty value: most likely it came from a variable that is not set."""
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
    """The original launcher can do what is asked for, and Topcoat cannot."""

    phase = "fuzz"


class UnknownInstance(UsageError):
    """No instance has this name."""

    phase = "instance"


class NoMatch(UsageError):
    """No file has a name that matches the pattern."""

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
    """The tool's exit code; minus the signal's number if a signal ended it."""


class ToolTimeout(ToolError):
    """A host program did not end in time; it and all its children were killed."""


class ToolLied(ToolError):
    """A host program exited with 0 but its output is not there or not right."""


class InputChanged(TopcoatError):
    """An input of an artifact changed while it was being made, so that it is not certain what was made."""

    phase = "prepare"
    fault = "user"


class ImageError(TopcoatError):
    """An image is not what it should be, or cannot become what is asked for.

    `file` is the name of the image, once that is known; `offset` is the byte at which something is wrong, or None;
    `expected` says what should be there. The message contains all three.
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
        """Put the name of the file before the message, unless one has been put there before. Returns self."""
        if not self.file:
            super().about(name)
            self.file = name
        return self


class WrongFormat(ImageError):
    """An image is another kind of file than the one that is wanted."""


class ImageDamaged(ImageError):
    """An image is cut off, or what it says about itself cannot be true."""


class ImageTooLarge(ImageError):
    """An image claims to hold more than Topcoat unpacks, or than its format allows."""


class PackageError(TopcoatError):
    """A Debian package for the Linux guest cannot be obtained."""

    phase = "demo"
    fault = "host"


class BootError(TopcoatError):
    """A boot failed.

    `stage` is the last thing that was waited for, `cause` is the name of the verdict (see pipeline/vm/qemu/causes.py),
    and `transient` says whether the same boot may well succeed when it is tried again.
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
    """The host lacked what the boot needed: KVM, a port, memory, disk space or CPU time."""

    fault = "host"


class GuestDied(BootError):
    """The guest panicked, reset, or powered itself off before it was ready."""


class BootTimeout(BootError):
    """The guest was not ready in time."""


class ConnectError(BootError):
    """SSH to the guest does not work."""

    phase = "connect"


class KeyRefused(ConnectError):
    """The guest's SSH server answers but refuses our key: trying again does not help."""


class KeyGone(ConnectError):
    """The private key is not there any more: it is deleted when its instance is stopped."""


class WrongServer(ConnectError):
    """Something else than the guest answers on its port: the host key differs, or the boot's id does."""


class CloneUnsound(BootError):
    """A clone of a template that was just made is not what it should be, so the template does not count."""

    fault = "host"


class StartFailed(TopcoatError):
    """The command `undercoat start_instance` has left no guest running; the message says why."""

    phase = "boot"


class InstanceBusy(TopcoatError):
    """Another process works on the instance."""

    phase = "instance"
    fault = "user"
    exit_code = 10


class AlreadyRunning(InstanceBusy):
    """The instance is running, so it cannot be started."""


class CampaignBusy(InstanceBusy):
    """Another process works on the campaign."""


class StaleInstance(TopcoatError):
    """The instance runs with other images, another QEMU or other settings than a boot would use now."""

    phase = "instance"
    fault = "user"


class BrokenInstance(TopcoatError):
    """QEMU lives, but its handle cannot be understood, or does not describe this QEMU."""

    phase = "instance"
    fault = "host"


class HandleEdited(BrokenInstance):
    """Something other than Topcoat has written to the handle, so nothing in it can be relied upon."""

    fault = "user"


class KernelHalted(TopcoatError):
    """QEMU lives, but the guest's kernel has panicked or halted (see pipeline/vm/halt.py): nothing in it answers."""

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
    """A campaign has ended with work undone: fuzzers were benched, or there is no budget left."""

    phase = "campaign"
    fault = "user"


class NotProved(CampaignError):
    """The canary of a campaign did not give the result that it must, so the campaign's results prove nothing."""

    fault = "host"


class BundleRefused(TopcoatError):
    """A bundle of a crash is damaged, changed, or no bundle at all; or what it should hold may not be given away."""

    phase = "bundle"
    fault = "user"


class FuzzerError(TopcoatError):
    """A fuzzer could not be prepared, or its run did not end well."""

    phase = "fuzz"
    fault = "guest"


class FuzzerTimeout(FuzzerError):
    """A fuzzer did not end in time and was killed."""


class SymbolizerFailed(FuzzerError):
    """The symbolizer, which gives stack traces their names, is not there or did not do its work."""

    fault = "tool"


class OutputLost(FuzzerError):
    """Nobody reads the fuzzer's output any more, so the fuzzer was ended."""

    fault = "user"


class CommandError(TopcoatError):
    """A command in the guest could not be run to its end."""

    phase = "command"
    fault = "guest"


class CommandExited(CommandError):
    """A command in the guest exited with an error.

    `status` is its exit status, `command` its command line, and `stderr` what is known of its standard error.
    """

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
    """A command in the guest, or a transfer of files, did not end in time.

    `ended` says whether the guest has confirmed that nothing of the command runs any more.
    """

    def __init__(self, message: str, *, hint: str, detail: str = "", ended: bool = False) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.ended = ended


class TransferRefused(CommandError):
    """The guest sends more than is allowed, names that lead out of the target directory, or data without sense."""
