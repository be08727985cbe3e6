"""The tasks about crashes that campaigns have found: whether they come again, and with which smaller input."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import luigi

from pipeline.errors import CampaignError, TopcoatError, UsageError
from pipeline.host.faults import host_faults
from pipeline.store import freshness
from pipeline.store.digest_cache import DigestCache
from pipeline.store.digests import digest_of_text
from pipeline.store.freshness import Key, Reason
from pipeline.text.printable import one_line
from tasks.boot import key_of_boot, template_of_pool
from tasks.engine.artifact import ArtifactTask, Check, Tasks
from tasks.engine.context import context
from tasks.fuzzing import FuzzingTask, end_with_luigi

if TYPE_CHECKING:
    from pipeline.campaign.minimising import Facts
    from pipeline.campaign.triage import CrashInput, GuestsWith, Question, Triaged
    from pipeline.fuzz.crashes.bucket import Bucket
    from pipeline.fuzz.crashes.store import CrashStore
    from pipeline.fuzz.crashes.verdicts import CrashVerdict

log = logging.getLogger("topcoat")

_SHOWN = 3


class _CrashTask(FuzzingTask, ArtifactTask):
    """The base of the tasks about one bucket: what they make depends on the fuzzer's own build, and on no other's.

    So the images are prerequisites, and no inputs: most of what changes them changes other fuzzers.
    """

    fuzzer = luigi.Parameter(description="its full name, PACKAGE/NAME")
    bucket = luigi.Parameter(description="the name of the bucket: topcoat crash list")
    tries = luigi.IntParameter(default=10, description="how often each input is run")
    settled = luigi.BoolParameter(
        significant=False, description="whether a verdict with the present build counts, though inputs have come since"
    )

    @property
    def crash_store(self) -> "CrashStore":
        from pipeline.fuzz.crashes.store import CrashStore

        return CrashStore(context().settings.store.root)

    @property
    def found(self) -> "Bucket":
        """The bucket; while the task runs, as it was at the beginning: campaigns go on finding crashes meanwhile.

        Raises UsageError with what may be meant if there is none of this name.
        """
        return self._looked[0] if self._looked else self.find()

    @property
    def crash_inputs(self) -> "list[CrashInput]":
        """The inputs of the bucket that are kept; while the task runs, those that were at the beginning."""
        return self._looked[1] if self._looked else self.inputs_of(self.find())

    _looked = cast("tuple[Bucket, list[CrashInput]] | None", None)  # with an annotation, luigi's plugin of mypy fails

    def run(self) -> None:
        """Make the files, of what is known at the beginning."""
        found = self.find()
        self._looked = (found, self.inputs_of(found))
        super().run()

    def on_success(self) -> object:
        """Have it look again: what campaigns find meanwhile may have to be done later in the same process."""
        self._looked = None
        return super().on_success()  # type: ignore[no-untyped-call]

    def on_failure(self, exception: BaseException) -> object:
        """See `on_success`."""
        self._looked = None
        return super().on_failure(exception)  # type: ignore[no-untyped-call]

    def find(self) -> "Bucket":
        """Look for the bucket. Raises UsageError with what may be meant if there is none of this name."""
        self.require_tries()
        crash_store = self.crash_store
        if bucket := crash_store.bucket(self.fuzzer, self.bucket):
            return bucket
        if self.fuzzer not in (fuzzers := crash_store.fuzzers()):
            raise _unknown(f"no crash of a fuzzer {one_line(self.fuzzer)} is known", self.fuzzer, fuzzers)
        slugs = [one.slug for one in crash_store.buckets([self.fuzzer])]
        raise _unknown(f"{self.fuzzer} has no bucket {one_line(self.bucket)}", self.bucket, slugs)

    def require_tries(self) -> None:
        """Raise UsageError if nothing would be tried."""
        if self.tries < 1:
            raise UsageError(f"--tries {self.tries}: nothing would be tried", hint="let it be 1, or more")

    def inputs_of(self, bucket: "Bucket") -> "list[CrashInput]":
        """The inputs of the bucket that are kept."""
        from pipeline.campaign.triage import inputs_of

        return inputs_of(self.crash_store.crashes(bucket))

    @property
    def place(self) -> Path:
        """The directory of the bucket."""
        return self.crash_store.directory(self.fuzzer, self.bucket)

    def build(self) -> str:
        """The digest of the fuzzer as it is built now."""
        from pipeline.campaign import subjects

        here = context()
        return subjects.build_of(self.fuzzer, here.build, here.settings.store.demo, here.digests.of)

    def question(self) -> "Question":
        """What is asked of the bucket."""
        from pipeline.campaign.triage import Question

        return Question(self.found, self.build(), TriageCrash.version, self.tries)

    def why(self, check: Check) -> Reason | None:
        """The first reason why the files must be made. Raises UsageError if there is no such bucket."""
        _ = self.found  # a wrong name is refused before anything is made for it
        return self.unready(check) or super().why(check)

    def cost(self) -> float | None:
        try:
            return super().cost()
        except TopcoatError:  # it is not known yet which build it is
            return None

    def key_for(self, inputs: "Sequence[CrashInput]") -> Key:
        """The key of what is made of these inputs, with the fuzzer as it is built now."""
        from pipeline.fuzz.crashes import rules

        digests = {f"crash {one.sha256[:12]}": digest_of_text(f"{one.sha256} {one.conditions}") for one in inputs}
        given = {name: str(value) for name, value in self.param_kwargs.items() if name != "settled"}
        parameters = {**given, "rule": rules.DEFAULT.versioned}
        return Key(self.task_family, self.version, parameters, {"build": self.build(), **digests}, {})

    @contextmanager
    def guests(self) -> "Iterator[GuestsWith]":
        """Yield what lends guests in which inputs are tried."""
        from pipeline.campaign.triage import pooled

        end_with_luigi()
        here = context()
        what = (here.settings, here.build, lambda: key_of_boot(here.digests), template_of_pool())
        with pooled(*what, self.fuzzer, f"{self.task_family} of {self.bucket}") as guests_with:
            yield guests_with


class TriageCrash(_CrashTask):
    """The verdict on a bucket with the present build: whether its inputs still crash there, and how often.

    Inputs that were tried before with this build are not tried again.
    """

    def why(self, check: Check) -> Reason | None:
        """See _CrashTask; None if a verdict counts as it is."""
        if self.settled and not self.unready(check) and self._is_there():
            return None
        return super().why(check)

    def _is_there(self) -> bool:
        """Whether there is a verdict with the present build, with as many tries."""
        from pipeline.campaign import proving

        found = proving.current(self.crash_store, self.fuzzer, self.bucket, self.build(), self.version)
        return found is not None and found.wanted >= self.tries

    def artifacts(self) -> tuple[Path, ...]:
        from pipeline.fuzz.crashes import verdicts

        path = verdicts.path_of(self.place, self.build())
        return path, path.with_suffix(".txt")

    def key(self, known: DigestCache, without: Collection[str] = ()) -> Key:
        """The key of the inputs that are kept, the fuzzer's build, and the rule."""
        return self.key_for(self.crash_inputs)

    def discover(self) -> None:
        """Look at the verdict that is there: its counts are gone on with, unless somebody has changed its files."""
        self._before: Triaged | None = None
        try:
            record = freshness.read(self.artifacts()[0])
        except ValueError:  # it is told as the reason why the verdict is made
            return
        if record and freshness.damaged(record, self.files(), context().digests) is None:
            self._before = _present(self.artifacts()[0])

    def make(self, made: Sequence[Path]) -> Mapping[str, str | int]:
        from pipeline.campaign.triage import triage
        from pipeline.fuzz.crashes import verdicts
        from pipeline.store.publish import publish_json

        question = self.question()
        self.crash_store.note_build(self.fuzzer, question.build)
        order = [one.digest for one in self.crash_store.builds(self.fuzzer).builds]
        others = [one for one in verdicts.read_all(self.place, order) if one.build != question.build]
        with self.guests() as guests_with:
            found = triage(question, self.crash_inputs, guests_with, before=self._before, others=others)
        publish_json(made[0], found.verdict.encode())
        made[1].write_text(found.evidence)
        log.info("%s: %s (%s)", self.bucket, found.verdict.word, found.verdict.told)
        if found.verdict.outcome == "not run":
            run = f"luigi --module tasks RunFuzzer --fuzzer {self.fuzzer}"
            log.warning("does it run at all? %s; then have it tried again: %s", run, self.again)
        return {"word": found.verdict.word, "rate": found.verdict.rate}

    @property
    def again(self) -> str:
        """The command after which the next run tries all inputs again."""
        return f"topcoat force TriageCrash --fuzzer {self.fuzzer} --bucket {self.bucket}"

    def verdict(self) -> "CrashVerdict | None":
        """The verdict for the present build; None if there is none."""
        from pipeline.fuzz.crashes import verdicts

        return verdicts.read(self.artifacts()[0])


class MinimiseCrash(_CrashTask):
    """The smallest and plainest input that stays in the bucket, with the one that it was made of."""

    def prerequisites(self) -> Tasks:
        return {**super().prerequisites(), "verdict": self.triage()}

    def triage(self) -> TriageCrash:
        """The task that tells which inputs crash again, and how often."""
        return TriageCrash(fuzzer=self.fuzzer, bucket=self.bucket, tries=self.tries, settled=self.settled)

    @property
    def verdict(self) -> "CrashVerdict":
        """The verdict that the task has given. Raises CampaignError if it cannot be read."""
        if found := self.triage().verdict():
            return found
        raise CampaignError(f"the verdict on {self.bucket} cannot be read", hint="the same command again makes it anew")

    def artifacts(self) -> tuple[Path, ...]:
        from pipeline.campaign.minimising import DIRECTORY, FILES

        return tuple(self.place / DIRECTORY / name for name in FILES)

    def chosen(self) -> "CrashInput":
        """The input to be minimised. Raises CampaignError if none has crashed again."""
        from pipeline.campaign.minimising import choose

        verdict = self.verdict
        return choose(self.triage().crash_inputs, verdict, self.facts(verdict.build))

    def facts(self, build: str) -> "Facts | None":
        """What is known of the present result, if it was made with this build."""
        from pipeline.campaign import minimising

        try:
            found = minimising.read(self.place)
        except (OSError, ValueError):  # then it is made anew
            return None
        return found if found and found.build == build else None

    def key(self, known: DigestCache, without: Collection[str] = ()) -> Key:
        """The key of the chosen input, if there is any, the fuzzer's build, and the rule."""
        try:
            return self.key_for([self.chosen()])
        except CampaignError:  # `make` says the same
            return self.key_for([])

    def make(self, made: Sequence[Path]) -> Mapping[str, str | int]:
        from pipeline.campaign.minimising import smaller

        chosen = self.chosen()
        with self.guests() as guests_with:
            found = smaller(self.question(), chosen, self.verdict, guests_with)
        with host_faults("writing a minimised input"):
            found.write(made)
        facts = found.facts
        size = f"{facts.original.size} -> {facts.result.size} bytes"
        log.info("%s: %s, %s, in %d runs", self.bucket, size, facts.why, facts.tried)
        return {"bytes": facts.result.size, "confirmed": f"{facts.confirmed} of {facts.of}", "why": facts.why}


def _unknown(message: str, name: str, known: Sequence[str]) -> UsageError:
    from pipeline.text.spelling import nearest

    near = nearest(name, known, _SHOWN) or known[:_SHOWN]
    more = " ..." if len(known) > len(near) else ""
    hint = (
        f"there is {', '.join(near)}{more}"
        if near
        else "campaigns put crashes there: luigi --module tasks FuzzCampaign"
    )
    return UsageError(message, hint=hint)


def _present(file: Path) -> "Triaged | None":
    """The verdict that is there, with its evidence."""
    from pipeline.campaign.triage import Triaged
    from pipeline.fuzz.crashes import verdicts

    verdict, evidence = verdicts.read(file), file.with_suffix(".txt")
    with host_faults("reading what runs have said"):
        return Triaged(verdict, evidence.read_text()) if verdict and evidence.is_file() else None
