"""The `topcoat` program: its commands and their options. What the commands do is in the other modules of pipeline.cli.

Exit codes: 0 done, 2 wrong usage, 10 another process works on it, 20 a file or program is missing, 30 failed, 130
interrupted, 141 nobody reads its output. `topcoat ssh` ends with the status of the command in the guest, or with 255 if
there is none, as ssh does. `topcoat plan --check` ends with 1 if anything would run, `topcoat image diff` with 1 if
anything differs, `topcoat crash check` with 1 if a crash is there that is new. `topcoat crash repro`, `minimise` and
`replay` end with 1 if the crash does not come again.

A command that only prints fails if it cannot print. A command that does something (boot, open, stop, force, clean, gc,
corpus import, export and restore, crash repro, minimise, bundle and replay) finishes that even if nobody reads its
output.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from pipeline import settings
from pipeline.cli import (
    artifacts,
    boots,
    campaigns,
    capsules,
    corpora,
    crash_matrix,
    crash_tries,
    crashes,
    host,
    images,
    instances,
    targets,
)
from pipeline.cli.luigi_command import shadow_of_tasks
from pipeline.errors import CommandError, ConnectError, KernelHalted, TopcoatError, empty_value
from pipeline.host import stdio
from pipeline.host.faults import paths_explained
from pipeline.host.interrupt import Interrupted
from pipeline.host.stdio import OutputError
from pipeline.settings import DAY, KEEP_LOGS, Settings

SSH_FAILED = 255
INTERRUPTED = 130
UNHEARD = 141
"""The exit code if nobody reads the output: the one that a shell shows for a program that SIGPIPE has ended."""
_KEEP = f"how long logs of ended guests stay ({KEEP_LOGS / DAY:g})"
_TOOLS = (["zbi"], ["fvm"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. Mistakes and failures are explained on stderr, without a traceback."""
    stdio.set_up(needed=True)
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            sys.stdout.flush()  # also what --help has printed before it ends the program
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        stdio.give_up_output()
        return UNHEARD
    except OutputError as error:
        stdio.give_up_output()
        return _failed(error.explained())


def _run(words: list[str]) -> int:
    options = _options(words)
    command: Callable[[Settings, argparse.Namespace], int] = options.run
    try:
        _refuse_empty_values(options)
        with paths_explained(f"topcoat {options.command}"):
            return command(settings.load(), options)
    except TopcoatError as error:
        in_guest = isinstance(error, (CommandError, ConnectError, KernelHalted))
        _failed(error)
        return SSH_FAILED if in_guest and options.command == "ssh" else error.exit_code
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "tasks" and (shadow := shadow_of_tasks()):
            return _failed(shadow)
        raise
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted):  # during a task of luigi
            print(f"error: {error.explain()}", file=sys.stderr)
        return INTERRUPTED


def _failed(error: TopcoatError) -> int:
    print(f"error: {error.explain()}", file=sys.stderr)
    return error.exit_code


def _options(words: list[str]) -> argparse.Namespace:
    known = parser()
    words, for_gdb = _split(words) if words[:1] == ["open"] else (words, [])
    # The arguments of zbi and fvm are read by these, and most begin with a dash
    options, parameters = known.parse_known_args(words[:1] if words[:1] in _TOOLS else words)
    if "files" in options:  # argparse takes no files that follow an option between them
        options.files += [word for word in parameters if not word.startswith("-")]
        parameters = [word for word in parameters if word.startswith("-")]
    if parameters and "task" not in options:
        known.error(f"unrecognized arguments: {' '.join(parameters)}")
    options.for_gdb = for_gdb
    options.parameters = words[1:] if words[:1] in _TOOLS else parameters
    return options


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first `--`, and what after it."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _refuse_empty_values(options: argparse.Namespace) -> None:
    """Raise UsageError for an empty argument, except in a command for a guest, whose words arrive as they are."""
    for name, value in vars(options).items():
        if name not in ("words", "for_gdb") and (value == "" or (isinstance(value, list) and "" in value)):
            raise empty_value(name if name != "parameters" else "a parameter")


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; in its result, `run` is the function that does the chosen command."""
    parser = argparse.ArgumentParser(prog="topcoat", description="Boot guests, look at them, enter them, stop them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    listing = commands.add_parser("instances", help="list all instances")
    listing.add_argument("--json", action="store_true", help="for machines")
    listing.set_defaults(run=instances.instances)

    found = commands.add_parser("targets", help="list the fuzz targets of TOPCOAT_TARGETS, and what is none")
    found.add_argument("patterns", nargs="*", metavar="PATTERN", help="of full names, PACKAGE/NAME")
    found.add_argument("--all", action="store_true", help="tell of every other file too why it is no target")
    found.add_argument("--json", action="store_true", help="for machines")
    found.set_defaults(run=targets.targets)

    ssh = commands.add_parser("ssh", help="run a command in a guest, or log in")
    ssh.add_argument("name")
    ssh.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="-- CMD",
        help="several words arrive as they are; one is a shell line",
    )
    ssh.set_defaults(run=instances.ssh)

    logs = commands.add_parser("logs", help="print what a guest wrote to its serial port")
    logs.add_argument("name")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the guest ends")
    logs.set_defaults(run=instances.logs)

    stop = commands.add_parser("stop", help="end a guest; its logs stay")
    stop.add_argument("name", nargs="?")
    stop.add_argument("--all", action="store_true", help="all instances of the store")
    stop.add_argument("--gently", action="store_true", help="press the guest's power button first")
    stop.add_argument("--json", action="store_true", help="for machines")
    stop.set_defaults(run=instances.stop)

    why = commands.add_parser("why", help="which artifacts are fresh, which are stale, and why")
    why.set_defaults(run=artifacts.why)
    plan = commands.add_parser("plan", help="what a run would make")
    plan.add_argument("--check", action="store_true", help="exit code 1 if anything would be made")
    plan.set_defaults(run=artifacts.plan)
    force = commands.add_parser("force", help="have the next run make an artifact again")
    force.set_defaults(run=artifacts.force)
    force.add_argument("task", help="and its parameters, as for luigi")
    for about_a_task in (why, plan):
        about_a_task.add_argument("task", nargs="?", default="BootInstance", help="and its parameters, as for luigi")
    for listing in (why, plan):
        listing.add_argument("--json", action="store_true", help="for machines")

    clean = commands.add_parser("clean", help="delete prepared images, the Linux guest's parts and caches")
    clean.add_argument("--yes", action="store_true", help="do it; without, only show what would be deleted")
    clean.add_argument("--json", action="store_true", help="for machines")
    clean.set_defaults(run=artifacts.clean)

    boot = commands.add_parser("boot", help="boot an instance, as luigi --module tasks BootInstance does")
    boot.add_argument("name", nargs="?", default="i0")
    boot.add_argument("--dry-run", action="store_true", help="look at everything, start and make nothing")
    boot.add_argument("--replace", action="store_true", help="stop it first if it runs and is stale")
    boot.add_argument("--ready", choices=("ssh", "marker"), help="what proves it ready")
    boot.add_argument("--warm", choices=("auto", "always", "never"), help="whether it is made as a clone")
    boot.add_argument("--json", action="store_true", help="with --dry-run, for machines")
    boot.set_defaults(run=boots.boot)

    console = commands.add_parser("console", help="talk to a guest over its serial port")
    console.add_argument("name")
    console.add_argument("--safe", action="store_true", help="without the escape codes that the guest writes")
    console.set_defaults(run=instances.console)

    doctor = commands.add_parser("doctor", help="look whether this host can run guests, and what to do if not")
    doctor.add_argument("--json", action="store_true", help="for machines")
    doctor.set_defaults(run=host.doctor)

    gc = commands.add_parser("gc", help="reclaim what killed runs have left behind")
    gc.add_argument("--yes", action="store_true", help="do it; without, only show what would be reclaimed")
    gc.add_argument("--keep", type=float, default=KEEP_LOGS / DAY, metavar="DAYS", help=_KEEP)
    gc.add_argument("--json", action="store_true", help="for machines")
    gc.set_defaults(run=host.gc)

    image = commands.add_parser(
        "image",
        usage="topcoat image [--json] [--all] [--no-digests] FILE\n       topcoat image [...] diff A B",
        help="what is in an image and whether it is sound; with diff, what differs between two",
        description="Tell what an image is (ZBI, FVM, cpio, ELF, qcow2), whether it is sound, and what is in it: exit "
        "code 0 if it is sound, 30 if not. After the word diff, tell what differs between two images: 0 if nothing, "
        "1 if something. To look at a file that is named diff, write ./diff.",
    )
    image.add_argument("files", nargs="+", metavar="FILE", help="the image; or diff and two images")
    image.add_argument("--all", action="store_true", help="all parts, not only the first 40 of each level")
    image.add_argument("--no-digests", action="store_true", help="leave out digests: less to read, less to compare")
    image.add_argument("--json", action="store_true", help="for machines")
    image.set_defaults(run=images.image)

    for name, run in (("zbi", images.zbi), ("fvm", images.fvm)):
        tool = commands.add_parser(
            name, help=f"Topcoat's own {name}, with the arguments of Fuchsia's: topcoat {name} --help"
        )
        tool.set_defaults(run=run)

    campaign = commands.add_parser("campaign", help="many fuzzers, each with a budget: look at what is to be run")
    about_campaigns = campaign.add_subparsers(dest="about", required=True, metavar="COMMAND")
    check = about_campaigns.add_parser("check", help="what a campaign's file says, and all that is wrong with it")
    check.add_argument("file", metavar="FILE", help="see docs/campaign.md")
    check.add_argument("--json", action="store_true", help="for machines")
    check.set_defaults(run=campaigns.check)

    status = about_campaigns.add_parser("status", help="how a campaign stands, also while another shell runs it")
    status.add_argument("name", metavar="NAME", nargs="?", help="default: all")
    status.add_argument("--json", action="store_true", help="for machines")
    status.set_defaults(run=campaigns.status)

    corpus = commands.add_parser("corpus", help="what fuzzers have found: list it, bring more, take it elsewhere")
    about_corpora = corpus.add_subparsers(dest="about", required=True, metavar="COMMAND")
    listed = about_corpora.add_parser("list", help="what each corpus of the store holds")
    listed.add_argument("patterns", metavar="PATTERN", nargs="*", help="of full names, such as 'net/*'; default: all")
    listed.add_argument("--json", action="store_true", help="for machines")
    listed.set_defaults(run=corpora.list_all)
    brought = about_corpora.add_parser("import", help="add plain libFuzzer directories to a corpus")
    brought.add_argument("fuzzer", metavar="FUZZER", help="its full name, PACKAGE/NAME")
    brought.add_argument("directories", metavar="DIRECTORY", nargs="+")
    brought.set_defaults(run=corpora.bring)
    taken = about_corpora.add_parser("export", help="copy a corpus into a plain libFuzzer directory")
    taken.add_argument("fuzzer", metavar="FUZZER", help="its full name, PACKAGE/NAME")
    taken.add_argument("directory", metavar="DIRECTORY", help="it is made; what is there is never overwritten")
    taken.set_defaults(run=corpora.take)
    restored = about_corpora.add_parser("restore", help="bring back the units that merges took out of a corpus")
    restored.add_argument("fuzzer", metavar="FUZZER", help="its full name, PACKAGE/NAME")
    restored.set_defaults(run=corpora.restore)

    crash = commands.add_parser("crash", help="what crashes there are, in all campaigns, and what is known of each")
    about_crashes = crash.add_subparsers(dest="about", required=True, metavar="COMMAND")
    buckets = about_crashes.add_parser("list", help="all buckets: crashes of a fuzzer that are the same")
    buckets.add_argument(
        "patterns", metavar="PATTERN", nargs="*", help="of full names, such as 'net/*', or of buckets; default: all"
    )
    buckets.add_argument("--json", action="store_true", help="for machines")
    buckets.set_defaults(run=crashes.list_all)
    shown = about_crashes.add_parser("show", help="all that is known of one bucket")
    shown.add_argument("bucket", metavar="BUCKET", help="its name or FUZZER/NAME, or the beginning; or its directory")
    shown.add_argument("--json", action="store_true", help="for machines")
    shown.set_defaults(run=crashes.show)
    for name, run, told in (
        ("repro", crash_tries.repro, "run the inputs of a bucket again, and tell whether the crash comes again"),
        ("minimise", crash_tries.minimise, "make the input of a bucket smaller, as long as the crash stays the same"),
    ):
        tried = about_crashes.add_parser(name, help=told)
        tried.add_argument("bucket", metavar="BUCKET", help="as for show")
        tried.add_argument("--tries", type=int, default=10, metavar="N", help="how often each input is run (10)")
        tried.add_argument("--json", action="store_true", help="for machines")
        tried.set_defaults(run=run)
    regrouped = about_crashes.add_parser("rebucket", help="what another rule would join and split; changes nothing")
    regrouped.add_argument("--rule", required=True, metavar="RULE", help="default, frames:N or dedup-token")
    regrouped.add_argument("--diff", action="store_true", help="name the buckets, too")
    regrouped.add_argument("--json", action="store_true", help="for machines")
    regrouped.set_defaults(run=crashes.rebucket)
    bundled = about_crashes.add_parser("bundle", help="write all that others need to see a crash again into a file")
    bundled.add_argument("bucket", metavar="BUCKET", help="as for show")
    bundled.add_argument("-o", "--output", required=True, metavar="FILE", help="where it is written")
    bundled.add_argument("--json", action="store_true", help="for machines")
    bundled.set_defaults(run=crashes.bundle)
    replayed = about_crashes.add_parser("replay", help="run what is in a bundle, and tell whether the crash comes here")
    replayed.add_argument("file", metavar="FILE", help="what topcoat crash bundle has written")
    replayed.add_argument("--tries", type=int, default=10, metavar="N", help="how often each input is run (10)")
    replayed.add_argument("--json", action="store_true", help="for machines")
    replayed.set_defaults(run=crash_tries.replay_bundle)
    by_build = about_crashes.add_parser("matrix", help="all buckets with all builds: still there, fixed, masked")
    checked = about_crashes.add_parser("check", help="what the newest builds brought and fixed; 1 if a crash is new")
    checked.add_argument("--against", metavar="BUILD", help="its label or digest; by default, the build before")
    for command, run in ((by_build, crash_matrix.matrix), (checked, crash_matrix.check)):
        command.add_argument("patterns", metavar="PATTERN", nargs="*", help="as of topcoat crash list")
        command.add_argument("--json", action="store_true", help="for machines")
        command.set_defaults(run=run)

    opened = commands.add_parser(
        "open",
        usage="topcoat open [--json]\n       topcoat open [--name NAME] [--json] CRASH\n"
        "       topcoat open [--name NAME] CRASH --gdb [-- WORDS]",
        help="have a guest go on as it was when a fuzzer had crashed in it",
        description="Open the capsule of a crash, or list all crashes that have one: see docs/capsules.md.",
    )
    opened.add_argument(
        "crash", metavar="CRASH", nargs="?", help="its directory, or the name of its bucket or campaign"
    )
    opened.add_argument("--name", help="of the instance; by default, that of the crash")
    opened.add_argument("--gdb", action="store_true", help="become gdb at the process that has crashed")
    opened.add_argument("--json", action="store_true", help="for machines")
    opened.set_defaults(run=capsules.open_crash)

    argv = commands.add_parser("argv", help="print QEMU's command line; before a boot, the one that it would have")
    argv.add_argument("name")
    argv.add_argument("--json", action="store_true", help="as a list of words")
    argv.set_defaults(run=boots.argv)
    return parser


if __name__ == "__main__":
    sys.exit(main())
