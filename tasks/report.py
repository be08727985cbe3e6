"""The report of a campaign: what its crashes are worth, once they have been tried again and made smaller."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import luigi

from pipeline.store.digest_cache import DigestCache
from pipeline.store.digests import digest_of_text
from pipeline.store.freshness import Key, Reason
from tasks.campaign import CampaignTask, FuzzCampaign
from tasks.crashes import MinimiseCrash, TriageCrash
from tasks.engine.artifact import ArtifactTask, Check, Tasks
from tasks.engine.context import context

if TYPE_CHECKING:
    from pipeline.campaign.reporting import CampaignResult
    from pipeline.fuzz.crashes.store import CrashStore


class CampaignReport(CampaignTask, ArtifactTask):
    """The report of a campaign that is done: report.json, and the same for code scanning and for what shows tests.

    All crashes of its fuzzers that were found with the present builds are tried again first, and those that come again
    are made smaller. Each of that is a task of its own, so that several are done at a time.
    """

    tries = luigi.IntParameter(default=10, significant=False, description="how often each input is run")

    def requires(self) -> Tasks:
        """The campaign itself."""
        return {"campaign": self.clone(FuzzCampaign)}

    def why(self, check: Check) -> Reason | None:
        """What is left to do of the campaign, or else the first reason why its report must be made."""
        return check.first_stale(self.requires()) or super().why(check)

    def artifacts(self) -> tuple[Path, ...]:
        """See ArtifactTask."""
        from pipeline.campaign.reporting import FILES

        directory = self.directory(self.definition())
        return tuple(directory / name for name in FILES)

    def files(self) -> Mapping[str, Path]:
        """See ArtifactTask; none while it is not known which campaign it is."""
        return super().files() if self.known() else {}

    def cost(self) -> float | None:
        """See FreshTask."""
        return super().cost() if self.known() else None

    def key(self, known: DigestCache, without: Collection[str] = ()) -> Key:
        """The key of the campaign's result, and of all that is known of its buckets, but how often they came."""
        from pipeline.campaign import reporting
        from pipeline.campaign.result import RESULT
        from pipeline.fuzz.crashes import rules

        versions = {"triage": TriageCrash.version, "minimise": MinimiseCrash.version}
        parameters = {"rule": rules.DEFAULT.versioned, "tries": self.tries, **versions}
        inputs = {RESULT: known.of(self.directory(self.definition()) / RESULT)}
        for bucket, files in reporting.made_of(self.crash_store, self.result()):
            told = [*sorted(bucket.builds), *sorted(one.sha256 for one in bucket.kept.values()), *map(known.of, files)]
            inputs[f"{bucket.fuzzer}/{bucket.slug}"] = digest_of_text("\n".join(told))
        texts = {name: str(value) for name, value in parameters.items()}
        return Key(self.task_family, self.version, texts, inputs, {})

    def run(self) -> Iterator[Sequence[luigi.Task]]:  # type: ignore[override]  # luigi takes either
        """Ask luigi for verdicts, then for smaller inputs, and then make the files."""
        yield self.triages()
        yield self.minimisings()
        super().run()

    def triages(self) -> list[TriageCrash]:
        """The tasks that try again what was found with the present builds, but for what was tried."""
        from pipeline.campaign import reporting

        lacking = reporting.untried(self.crash_store, self.result(), TriageCrash.version, self.tries)
        return [TriageCrash(fuzzer=one.fuzzer, bucket=one.slug, tries=self.tries) for one in lacking]

    def minimisings(self) -> list[MinimiseCrash]:
        """The tasks that make the inputs of crashes smaller that come again, but for those that are."""
        from pipeline.campaign import reporting

        lacking = reporting.unminimised(self.crash_store, self.result(), TriageCrash.version)
        return [MinimiseCrash(fuzzer=one.fuzzer, bucket=one.slug, tries=self.tries, settled=True) for one in lacking]

    def make(self, made: Sequence[Path]) -> Mapping[str, str | int]:
        """See ArtifactTask; prints a summary for people."""
        from pipeline.campaign import reporting

        whole = reporting.look(self.crash_store, self.result())
        reporting.write(made, whole)
        print("\n".join(reporting.summary(whole, self.directory(self.definition()))), flush=True)
        return {standing: count for standing, count in whole.counts.items() if count}

    @property
    def crash_store(self) -> "CrashStore":
        """The crashes of the store."""
        from pipeline.fuzz.crashes.store import CrashStore

        return CrashStore(context().settings.store.root)

    def result(self) -> "CampaignResult":
        """What the campaign has come to. Raises StoreError."""
        from pipeline.campaign import reporting

        return reporting.read(self.directory(self.definition()))
