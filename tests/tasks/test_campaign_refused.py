"""What is refused before a campaign begins anything: exit codes and words, without a guest."""

import json
import logging
import os
from pathlib import Path

import pytest

from pipeline.campaign import ledger
from pipeline.campaign.ledger import Opened
from pipeline.campaign.run import guests_at_once
from pipeline.host.deadline import utc_now
from tests.cli.test_campaigns import fuzzers
from tests.conftest import Workspace

NOOP = "example-fuzzers/noop_fuzzer"
BUDGET = ("--budget", "60s", "--slice-length", "20s")


@pytest.fixture
def known(workspace: Workspace) -> Workspace:
    """A store in which nothing has been made, and a build whose fuzzers are known."""
    (workspace.directory / "fuzzers.json").write_text(fuzzers("noop_fuzzer"))
    (workspace.directory / "tests.json").write_text("[]")
    workspace.configure("[build]\nfuzzers.json = fuzzers.json\ntests.json = tests.json\n")
    return workspace


def made(workspace: Workspace) -> list[Path]:
    """What was made in the store."""
    return [path for path in workspace.store.root.rglob("*") if path.is_file() and "cache" not in path.parts]


@pytest.mark.parametrize("number", ["0", "-1", "4", "99"])
def test_a_slice_that_the_budget_has_not(known: Workspace, number: str) -> None:
    done = known.luigi("RunFuzzer", "--fuzzer", NOOP, *BUDGET, f"--slice={number}")
    assert done.status == 2, done.text
    assert f"--slice {number}: slices are counted from 1, and the budget of {NOOP} comes to 3" in done.text
    assert "hint: name one of them, or raise --budget" in done.text
    assert "Traceback" not in done.text
    assert made(known) == []


@pytest.mark.parametrize("task", ["RunFuzzer", "MergeCorpus"])
@pytest.mark.parametrize("wrong", ["*/noop_fuzzer", "*/*", f"{NOOP},{NOOP}"])
def test_a_pattern_where_one_fuzzer_must_be_named(known: Workspace, task: str, wrong: str) -> None:
    done = known.luigi(task, "--fuzzer", wrong, *BUDGET)
    assert done.status == 2, done.text
    assert f"--fuzzer {wrong} is no full name of a fuzzer of campaign" in done.text
    assert f"hint: give one, PACKAGE/NAME: {NOOP}\n" in done.text
    assert "Traceback" not in done.text
    assert made(known) == []


@pytest.mark.parametrize("task", ["RunFuzzer", "MergeCorpus"])
def test_a_fuzzer_that_the_file_leaves_out(known: Workspace, task: str) -> None:
    (known.directory / "fuzzers.json").write_text(fuzzers("noop_fuzzer", "other_fuzzer"))
    (known.directory / "nightly.toml").write_text(f'name = "nightly"\nfuzzers = ["{NOOP}"]\n')
    done = known.luigi(task, "--file", "nightly.toml", "--fuzzer", "example-fuzzers/other_fuzzer")
    assert done.status == 2, done.text
    assert "--fuzzer example-fuzzers/other_fuzzer is no full name of a fuzzer of nightly" in done.text
    assert "Traceback" not in done.text


def test_a_length_of_nothing_is_blamed_on_its_own_option(known: Workspace) -> None:
    done = known.luigi("FuzzCampaign", "--fuzzers", NOOP, "--slice-length", "0")
    assert done.status == 2, done.text
    assert "--slice-length: slice-length = '0' cannot be used (" in done.text


def test_a_campaign_at_which_a_process_works(known: Workspace) -> None:
    path = known.store.campaigns / "nightly/ledger.jsonl"
    plans = [{"name": NOOP, "digest": "b3:plan", "budget": {"seconds": 60}, "slice": 20}]
    more = [plan | {"options": {}, "dictionary": None, "seeds": []} for plan in plans]
    definition = {"name": "nightly", "seed": 1, "allocation": "gain", "fuzzers": more}
    with ledger.opened(path) as book:
        book.append(Opened("bot-7", os.getpid(), definition, utc_now()))
        done = known.luigi("FuzzCampaign", "--name", "nightly", "--fuzzers", NOOP, "--workers", "2")
        told = known.topcoat("campaign", "status", "nightly", "--json")
    assert done.status == 10, done.text
    assert f"error: process {os.getpid()} on bot-7 works at the campaign nightly, since " in done.text
    assert "hint: see how it stands: topcoat campaign status nightly" in done.text
    assert "Traceback" not in done.text
    assert [json.loads(told.stdout)[name] for name in ("state", "pid")] == ["running", os.getpid()]


def test_more_workers_than_the_pool_has_guests_are_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "topcoat")
    assert guests_at_once(4, 2) == 2
    assert caplog.messages == ["--workers 4: the pool has 2 guests at once, and no more are used: [pool] size"]
    assert guests_at_once(4, 4) == 4
    assert len(caplog.messages) == 1
