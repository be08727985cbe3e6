"""The command `zbi`: the arguments of Fuchsia's own, as far as they concern whole images, BOOTFS files and items."""

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import UnsupportedOperation
from pathlib import Path

from pipeline.errors import StoreError, TopcoatError, UsageError
from pipeline.host.faults import hint_for
from pipeline.host.locks import lock_of, locked
from pipeline.images.reader import opened
from pipeline.images.zbi import container, extract, item_types, listing
from pipeline.images.zbi.compression import NONE, ZSTD, Method
from pipeline.images.zbi.merge import ZbiMerge
from pipeline.store.publish import publish, remove
from pipeline.text.printable import printable

USAGE = """\
Usage: zbi [-o OUT] INPUT... [-- PATTERN...]
  -o, --output=OUT          write an image; OUT may be one of the inputs
  -e, --entry=PATH=FILE     add FILE, or all that is in a directory, at PATH in the BOOTFS
  -r, --replace             what follows may replace files of the same name
  -T, --type=TYPE[:SIZE]    the files that follow become items of this type (their first SIZE bytes; only then may it
                            be a device), and so does the text of each -e TEXT
  -F, --files               the files that follow are images again
  -c, --compressed[=HOW]    how the BOOTFS is compressed: none, lz4f, zstd, zstd.LEVEL, zstd.max
                            (default: as it was; zstd where there was none)
  -u, --uncompressed        not at all
  -B, --bootable=ARCH       x64, arm64 or riscv64: refuse if the result does not start with its kernel
  -t, --list                list the items; with -v what is in them. A wrong CRC is told, and is no error
  -x, --extract             write the BOOTFS files of the inputs; those with the same content become hard links
  -D, --output-dir=DIR      into this directory (default: the current one)
  -v, --verbose, -h, --help
Inputs are taken in the order in which they stand, and -r and -T hold for what comes after them. A PATTERN chooses
files to extract (-- '*.so' '!lib/old/*'). Anything wrong ends it with exit code 1, and OUT is as it was before."""

_LONG = {
    "output": "o",
    "entry": "e",
    "replace": "r",
    "type": "T",
    "files": "F",
    "compressed": "c",
    "uncompressed": "u",
    "bootable": "B",
    "complete": "B",
    "list": "t",
    "extract": "x",
    "output-dir": "D",
    "verbose": "v",
    "help": "h",
}
_WITH_VALUE = "oeTBD"
_HINT = "zbi --help tells what there is"


@dataclass
class ZbiRequest:
    """What the arguments ask for. `steps` are the inputs in their order, each a function that adds it to a merge."""

    steps: list[Callable[[ZbiMerge], None]] = field(default_factory=list)
    output: Path | None = None
    method: Method | None = None
    kernel: int | None = None
    directory: Path | None = None
    switches: set[str] = field(default_factory=set)
    patterns: list[str] = field(default_factory=list)
    type: int | None = None
    type_size: int | None = None

    def take(self, option: str, value: str) -> None:
        """Take one option, by its letter, or an input, as the option "". Raises UsageError."""
        if option == "":
            self.steps.append(self._input(value))
        elif option == "e":
            self.steps.append(self._entry(value))
        elif option == "o":
            self.output = Path(value)
        elif option == "D":
            self.directory = Path(value)
        elif option in "cu":
            self.method = NONE if option == "u" else Method.parse(value) if value else ZSTD
        elif option == "B":
            self.kernel = _kernel(value)
        elif option in "TF":
            self._set_type(value)
        else:
            self.switches.add(option)

    @property
    def replace(self) -> bool:
        """Whether the inputs that follow may replace files."""
        return "r" in self.switches

    def _set_type(self, value: str) -> None:
        name, colon, size = value.partition(":")
        if colon and not re.fullmatch("[0-9]{1,10}", size):
            raise UsageError(f"--type={value}: {size!r} is no number of bytes", hint="write --type=TYPE:BYTES")
        kind = item_types.parse(name) if value else item_types.CONTAINER
        self.type = None if kind == item_types.CONTAINER else kind
        self.type_size = int(size) if colon else None

    def _input(self, name: str) -> Callable[[ZbiMerge], None]:
        path, replace, kind, size = Path(name), self.replace, self.type, self.type_size
        if kind is None:
            return lambda merge: _add_input(merge, path, replace)
        shown = printable(name)
        return lambda merge: merge.add_item(container.made(kind, _read(path, size), shown), replace=replace)

    def _entry(self, text: str) -> Callable[[ZbiMerge], None]:
        kind, replace = self.type, self.replace
        if kind is not None:
            return lambda merge: merge.add_item(container.made(kind, text.encode(errors="surrogateescape")))
        target, equals, source = text.partition("=")
        if not equals:
            raise UsageError(f"manifest entry has no '=' separator: {text}", hint="write -e PATH=FILE")
        self.switches.add("e")
        return lambda merge: merge.add_file(target, Path(source), replace=replace)


def _kernel(arch: str) -> int:
    if arch not in item_types.KERNELS:
        raise UsageError(f"{arch!r} is no architecture", hint=f"use one of: {', '.join(item_types.KERNELS)}")
    return item_types.KERNELS[arch]


def _add_input(merge: ZbiMerge, path: Path, replace: bool) -> None:
    if path.is_dir():
        merge.add_directory(path, replace=replace)
    else:
        merge.add_image(path, replace=replace)


_MOST_OF_A_FILE = 1 << 28  # bytes of an item made from a file; kernels and ramdisks have a tenth of that


def _read(path: Path, size: int | None) -> bytes:
    """The content of a file, or its first `size` bytes; only then may it be a device, whose end is not known."""
    shown = printable(str(path))
    if size is None:
        with opened(path) as source:
            if source.size > _MOST_OF_A_FILE:
                raise UsageError(f"{shown} is too large for an item", hint=f"use at most {_MOST_OF_A_FILE} bytes")
            return source.at(0, source.size)
    if size > _MOST_OF_A_FILE:
        raise UsageError(f"{size} bytes are too many for an item", hint=f"use at most {_MOST_OF_A_FILE}")
    try:
        data = _start(path, size)
    except OSError as error:
        raise UsageError(f"{shown}: {error.strerror}", hint="is the path right, and may it be read?") from error
    if len(data) < size:
        raise UsageError(f"{shown} has {len(data)} bytes, not {size}", hint="ask for no more than there is")
    return data


def _start(path: Path, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as stream:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            raise UsageError(f"{printable(str(path))} is neither a file nor a device", hint="copy it to a file first")
        data = bytearray()
        while len(data) < size and (piece := stream.read(size - len(data))):
            data += piece
        return bytes(data)


def parse(arguments: Sequence[str]) -> ZbiRequest:
    """Read the arguments in their order. Raises UsageError."""
    request = ZbiRequest()
    for option, value in _tokens(list(arguments), request.patterns):
        request.take(option, value)
    return request


def _tokens(left: list[str], patterns: list[str]) -> Iterator[tuple[str, str]]:
    """Options, each by its letter and with its value, and inputs as the option "". argparse would lose their order."""
    while left:
        word = left.pop(0)
        if word == "--":
            patterns += left
            return
        if word.startswith("--"):
            yield _long(word, left)
        elif word.startswith("-") and word != "-":
            yield from _short(word[1:], left)
        else:
            yield "", word


def _long(word: str, left: list[str]) -> tuple[str, str]:
    name, equals, value = word[2:].partition("=")
    option = _LONG.get(name)
    if option is None or (equals and option not in _WITH_VALUE + "c"):
        raise UsageError(f"there is no option {word}", hint=_HINT)
    if equals or option not in _WITH_VALUE:
        return option, value
    return option, _value(word, left)


def _short(letters: str, left: list[str]) -> Iterator[tuple[str, str]]:
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter not in _LONG.values():
            raise UsageError(f"there is no option -{letter}", hint=_HINT)
        if letter in _WITH_VALUE:
            yield letter, letters or _value(f"-{letter}", left)
            return
        if letter == "c":
            yield letter, letters
            return
        yield letter, ""


def _value(option: str, left: list[str]) -> str:
    if not left:
        raise UsageError(f"option {option} needs a value", hint=_HINT)
    return left.pop(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0; 1 after an error, which is printed on stderr with a hint; 130 after Ctrl-C.

    If nobody reads its output any more, it returns 141.
    """
    try:
        request = parse(sys.argv[1:] if arguments is None else arguments)
        _run(request)
        sys.stdout.flush()
    except TopcoatError as error:
        return _failed(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        _forget_stdout()
        return 141
    except OSError as error:
        _forget_stdout()
        doing = error.filename or "reading an image, or printing"
        return _failed(StoreError(f"{doing}: {error.strerror}", hint=hint_for(error.errno, "file")))
    return 0


def _failed(error: TopcoatError) -> int:
    print(f"zbi: {printable(error.explain())}", file=sys.stderr)
    return 1


def _forget_stdout() -> None:
    """Lead stdout to /dev/null: what is still to be printed would fail once more when the interpreter ends."""
    with suppress(UnsupportedOperation):  # where it is no file, it cannot fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(request: ZbiRequest) -> None:
    if "h" in request.switches:
        print(USAGE)
        return
    _check(request)
    with _alone(request.output), ZbiMerge() as merge:
        for step in request.steps:
            step(merge)
        if request.output:
            _write(request.output, merge, request)
        if "t" in request.switches:
            _list(merge, verbose="v" in request.switches)
        if "x" in request.switches:
            extract.extract(merge.items, request.directory or Path(), extract.matcher(request.patterns))


def _check(request: ZbiRequest) -> None:
    """Raise UsageError for options that make no sense together: nothing that is asked for is ignored in silence."""
    for wrong, problem, hint in _contradictions(request, request.output, request.switches):
        if wrong:
            raise UsageError(problem, hint=hint)


def _contradictions(request: ZbiRequest, output: Path | None, switches: set[str]) -> Iterator[tuple[object, str, str]]:
    for switch, name in {"t": "--list (-t)", "x": "--extract (-x)"}.items():
        both = output and switch in switches
        yield both, f"--output (-o) is incompatible with {name}", "do the one, then the other"
    looked_at = switches & {"t", "x"}
    yield not output and not looked_at, "no output file", "give -o OUT, or --list or --extract. " + _HINT
    for asked, name in ((request.kernel, "--bootable (-B)"), (request.method, "--compressed (-c)")):
        yield asked and not output, f"{name} without an output file", "give -o OUT"
    added = "e" in switches and not output
    yield added, "--entry (-e) without an output file", "give -o OUT, and list or extract that"
    if "x" not in switches:
        yield request.patterns, "patterns choose what is extracted", "give -x, or leave out what follows --"
        yield request.directory, "--output-dir (-D) is for what is extracted", "give --extract (-x) with it"
    yield not request.steps and looked_at, "no input", "name an image. " + _HINT
    odd = output and output.exists() and not output.is_file()
    yield odd, f"{printable(str(output))} is there and is no file", "give the name of a file: -o OUT"


@contextmanager
def _alone(output: Path | None) -> Iterator[None]:
    """Let no other `zbi` write the same file during the body: the one that ends first would lose its work."""
    if output is None:
        yield
        return
    target = output.absolute()
    with locked(target):
        try:
            yield
        finally:
            remove(lock_of(target))


def _write(output: Path, merge: ZbiMerge, request: ZbiRequest) -> None:
    items = merge.outcome(request.method)
    if request.kernel is not None:
        items.sort(key=lambda item: not item_types.is_kernel(item.type))
        why = listing.unbootable(items, request.kernel)
        if why:
            raise UsageError(f"Not a bootable image: {why}", hint="add the image with the kernel of that architecture")
    with publish(output.absolute()) as made, made.open("w+b", buffering=0) as stream:
        container.write(stream, items)


def _list(merge: ZbiMerge, *, verbose: bool) -> None:
    _print(listing.headline(merge.items))
    position = container.HEADER.size
    for item in merge.items:
        for line in listing.lines(item, position, verbose=verbose):
            _print(line)
        if wrong := listing.wrong_crc(item):
            print(wrong, file=sys.stderr)
        position = listing.end_of(item, position)


def _print(line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))
