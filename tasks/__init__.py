"""The workflow of Topcoat as luigi tasks: `luigi --module tasks BootInstance`.

Importing this module gives luigi safe defaults; see `tasks.engine.defaults`.
"""

import gc

from tasks.engine import defaults

defaults.install()

from tasks.boot import BootInstance, BootTemplate, StopInstance  # noqa: E402  luigi must know its defaults before it sees the first task
from tasks.campaign import FuzzCampaign, MergeCorpus, ProveFixes, RunFuzzer  # noqa: E402
from tasks.crashes import MinimiseCrash, TriageCrash  # noqa: E402
from tasks.demo import (  # noqa: E402
    DemoCompiler,
    DemoDisk,
    DemoInitramfs,
    DemoKernel,
    DemoPackages,
    DemoPrograms,
    DemoSystem,
)
from tasks.prepare import ExtendedBlk, InitrdWithKey, SSHKeyPair  # noqa: E402
from tasks.replay import ReplayBundle  # noqa: E402
from tasks.report import CampaignReport  # noqa: E402
from tasks.targets import CompiledTarget, TargetLibraries, TargetsImage  # noqa: E402

__all__ = [
    "BootInstance",
    "BootTemplate",
    "CampaignReport",
    "CompiledTarget",
    "DemoCompiler",
    "DemoDisk",
    "DemoInitramfs",
    "DemoKernel",
    "DemoPackages",
    "DemoPrograms",
    "DemoSystem",
    "ExtendedBlk",
    "FuzzCampaign",
    "InitrdWithKey",
    "MergeCorpus",
    "MinimiseCrash",
    "ProveFixes",
    "ReplayBundle",
    "RunFuzzer",
    "SSHKeyPair",
    "StopInstance",
    "TargetLibraries",
    "TargetsImage",
    "TriageCrash",
]

gc.freeze()  # what is imported stays, so the collector need not look at it (measured: 5 % of a short run)
