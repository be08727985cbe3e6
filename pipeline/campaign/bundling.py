"""What goes into the bundle of a crash: which of its inputs, how it was run, and the digests of what is here."""

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.builds.build import Build
from pipeline.campaign import minimising, subjects
from pipeline.campaign.minimising import Facts
from pipeline.campaign.triage import CrashInput, inputs_of
from pipeline.campaign.trying import replay_options
from pipeline.errors import BundleRefused, TopcoatError
from pipeline.fuzz.crashes import report as reports
from pipeline.fuzz.crashes import rules
from pipeline.fuzz.crashes.bucket import Bucket, Seen
from pipeline.fuzz.crashes.bundle import Bundle, BundledFile, Digests
from pipeline.fuzz.crashes.crash import KeptCrash
from pipeline.fuzz.crashes.known import KnownBucket
from pipeline.fuzz.crashes.report import UNKNOWN
from pipeline.fuzz.crashes.severity import severity
from pipeline.fuzz.crashes.store import CrashStore, is_slug
from pipeline.host.faults import host_faults

FUZZER = "fuzzer"
"""The group of digests with that of the fuzzer's own build: of the one that crashed, or of the one that is here."""

_IMAGES, _TOOLS, _QEMU = ("zbi", "blk", "kernel"), ("zbitool", "fvm", "symbolizer", "llvm-symbolizer"), ("qemu",)


def digests_here(build: Build, digest: Callable[[Path], str]) -> dict[str, dict[str, str]]:
    """The digests of what guests of this build would run with here, by group and name.

    `images` are as they were built, without the key that is put into them; with them is that of the Linux guest's
    targets. `tools` prepare images and name functions; `qemu` is the program. What is not there is left out. Raises
    StoreError.
    """
    groups = {"images": _IMAGES, "tools": _TOOLS, "qemu": _QEMU}
    files = {group: _files(build, keys) for group, keys in groups.items()}
    if build.targets:
        files["images"]["targets"] = build.targets.image
    with host_faults("reading what guests run with"):
        return {
            group: {name: digest(path) for name, path in there.items() if path.is_file()}
            for group, there in files.items()
        }


def _files(build: Build, keys: tuple[str, ...]) -> dict[str, Path]:
    return {key: build.path(key) for key in keys if key in build.resources}


def present_build(fuzzer: str, build: Build, demo: Path, digest: Callable[[Path], str]) -> str:
    """The digest of the fuzzer as it is built here; empty if it is not, or if its images are not made yet."""
    try:
        with host_faults("looking for the build of a fuzzer"):
            return subjects.build_of(fuzzer, build, demo, digest)
    except TopcoatError:
        return ""


def bundle_of(store: CrashStore, found: KnownBucket, digests: Digests, present: str) -> tuple[Bundle, KeptCrash]:
    """The bundle of a bucket, and the crash that it is made of; `present` is what `present_build` says.

    It is the crash of which a smaller input was made; else of those that came again the one with the smallest input;
    else that with the smallest input. The target's own files are those of the build that crashed, as far as they are
    kept. Raises BundleRefused if no input is kept, and StoreError.
    """
    made = _minimised(found.directory)
    crash = _chosen(found, made)
    facts, bucket = crash.facts, found.bucket
    files = _own_files(store, found, facts.build)
    smaller = made.result.sha256 != made.original.sha256 if made and made.original.sha256 == facts.sha256 else False
    program = next((path for path in files if PurePosixPath(path).name == bucket.fuzzer.rpartition("/")[2]), "")
    with host_faults(f"reading a crash of {bucket.fuzzer}"):
        bundle = Bundle(
            fuzzer=bucket.fuzzer,
            bucket=bucket.slug,
            rule=bucket.rule,
            facts=_facts(found, crash, present),
            argv=(program or bucket.fuzzer, *facts.options),
            environment=facts.environment,
            seed=facts.seed,
            options=facts.options,
            digests={FUZZER: {bucket.fuzzer: facts.build}, **digests},
            input=crash.input(),
            minimised=(found.directory / minimising.DIRECTORY / "input").read_bytes() if smaller else None,
            output=(crash.directory / "output.txt").read_bytes(),
            serial=(crash.directory / "serial.txt").read_bytes(),
            files=files,
        )
    return bundle, crash


def _chosen(found: KnownBucket, made: Facts | None) -> KeptCrash:
    there = [one for one in found.crashes if inputs_of([one])]
    if not there:
        raise BundleRefused(
            f"no input of {found.bucket.slug} is kept, so nobody could see the crash again",
            hint="a campaign only counted it, or the guest lost the input: topcoat crash show tells what is kept",
        )
    last = found.last_verdict
    came = {one.sha256 for one in last.inputs if one.same} if last else set()
    original = made.original.sha256 if made else ""

    def order(crash: KeptCrash) -> tuple[bool, bool, int, int]:
        facts = crash.facts
        return facts.sha256 != original, facts.sha256 not in came, facts.size, crash.number

    return min(there, key=order)


def _minimised(directory: Path) -> Facts | None:
    """What is known of the input that was made smaller; None if none was, or if it cannot be understood."""
    try:
        return Facts.decode((directory / minimising.DIRECTORY / minimising.FILES[-1]).read_bytes())
    except (OSError, ValueError):  # it is made anew by whoever minimises the crash
        return None


def _own_files(store: CrashStore, found: KnownBucket, build: str) -> dict[str, BundledFile]:
    known, kept = found.builds.find(build), store.files
    digests = {name: digest for name, digest in (known.files if known else {}).items() if kept.has([digest])}
    return {name: BundledFile.of(kept.path(digest)) for name, digest in digests.items()}


def _facts(found: KnownBucket, crash: KeptCrash, present: str) -> Mapping[str, Any]:
    """What is known of the bucket and of the crash, without paths of this host."""
    facts, report = crash.facts, crash.facts.report
    known = {name: value for name, value in found.encode().items() if name != "directory"}
    about = {name: getattr(facts, name) for name in ("build", "campaign", "slice", "attempt", "boot_id", "seen")}
    return known | {
        "crash": {**about, "artifact": facts.artifact, "number": crash.number},
        "severity": severity(report).sentence if report else None,
        "summary": report.summary if report else None,
        "build_here": present or None,
    }


def bucket_of(bundle: Bundle) -> Bucket:
    """The bucket of a bundle as it is here: by what the run has said, if another rule has made it."""
    report, rule = reports.parse(bundle.output) or UNKNOWN, rules.DEFAULT.versioned
    ours = bundle.rule == rule and is_slug(bundle.bucket)
    slug = bundle.bucket if ours else rules.slug(report, bundle.fuzzer)
    build = bundle.digests.get(FUZZER, {}).get(bundle.fuzzer, "")
    seen = {build: Seen("", "", 1)} if build else {}
    return Bucket(bundle.fuzzer, slug, report.kind, rules.key_frames(report), rule, "", "", 1, seen)


def tried_inputs(bundle: Bundle) -> list[CrashInput]:
    """The inputs of a bundle, with the conditions under which they are run again, in the order of their SHA-256s."""
    contents = dict.fromkeys([bundle.input, *([] if bundle.minimised is None else [bundle.minimised])])
    options, environment = replay_options(bundle.options), dict(bundle.environment)
    return sorted((CrashInput(one, options, environment) for one in contents), key=lambda one: one.sha256)
