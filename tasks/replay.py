"""The task about the bundle of a crash, which may come from another host: whether it comes again here."""

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import luigi

from pipeline.errors import UsageError
from pipeline.store.digest_cache import DigestCache
from pipeline.store.digests import digest_of_text
from pipeline.store.freshness import Key
from tasks.crashes import TriageCrash
from tasks.engine.context import context

if TYPE_CHECKING:
    from pipeline.campaign.triage import CrashInput
    from pipeline.fuzz.crashes.bucket import Bucket
    from pipeline.fuzz.crashes.bundle import Bundle


class ReplayBundle(TriageCrash):
    """The verdict on the crash in a bundle with the present build. What is in the bundle never comes into the crashes.

    `fuzzer` and `bucket` must be those of the bundle: `topcoat crash replay` sees to that.
    """

    file = luigi.Parameter(description="the path of the bundle")

    @cached_property
    def bundle(self) -> "Bundle":
        """The bundle, verified. Raises BundleRefused, StoreError, and UsageError if it is of another crash."""
        from pipeline.campaign import bundling
        from pipeline.fuzz.crashes import bundle

        found = bundle.read(Path(self.file))
        if (found.fuzzer, bundling.bucket_of(found).slug) != (self.fuzzer, self.bucket):
            raise UsageError(
                f"the bundle is not of {self.bucket} of {self.fuzzer}",
                hint="topcoat crash replay FILE takes both from the bundle",
            )
        return found

    def find(self) -> "Bucket":
        """The bucket as the bundle tells of it."""
        from pipeline.campaign import bundling

        self.require_tries()
        return bundling.bucket_of(self.bundle)

    def inputs_of(self, bucket: "Bucket") -> "list[CrashInput]":
        """The input of the bundle, and the smaller one that was made of it, if there is one."""
        from pipeline.campaign import bundling

        return bundling.tried_inputs(self.bundle)

    @property
    def place(self) -> Path:
        """The directory of the verdicts on what is in the bundle: see `docs/crashes.md`."""
        inputs = " ".join([self.fuzzer, self.bucket, *(f"{one.sha256} {one.conditions}" for one in self.crash_inputs)])
        return context().settings.store.root / "replays" / digest_of_text(inputs).partition(":")[2][:12]

    def key(self, known: DigestCache, without: Collection[str] = ()) -> Key:
        """The key of the inputs, the fuzzer's build and the rule: where the bundle lies does not matter."""
        found = super().key(known, without)
        return Key(
            *(found.task, found.version, {name: found.parameters[name] for name in found.parameters if name != "file"}),
            *(found.inputs, found.tools),
        )
