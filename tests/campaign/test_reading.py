"""How a campaign stands, whatever its process has come to: what is told is true, and no total ever falls."""

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.campaign import ledger, reading
from pipeline.campaign.display import Lines, Reporter
from pipeline.campaign.ledger import Ended, Harvested, LedgerEntry, Opened, Proved, Subject
from pipeline.campaign.plan.definition import Definition
from pipeline.campaign.proofs import Claim, Proofs
from pipeline.campaign.runner import Runner
from pipeline.campaign.schedule import Only
from pipeline.campaign.status import Author, Status
from pipeline.campaign.supervised import SupervisedSlice
from pipeline.errors import BootError, CampaignBusy, InstanceBusy, NotProved, StoreError
from pipeline.settings import CampaignSettings
from tests.campaign.bench import A, B, Bench, C, Killed, interrupted, kill, plan
from tests.campaign.scripted import Behaviour, ScriptedSite

OLD = (
    b'{"at": "2026-11-25T14:00:00Z", "definition": {"allocation": "gain", "fuzzers": [{"budget": {"seconds": '
    b'60}, "dictionary": null, "digest": "b3:plan", "name": "fuzzers/a", "options": {}, "seeds": [], "slice": '
    b'20}], "name": "nightly", "schema": 1, "seed": 1}, "host": "bot", "kind": "opened", "pid": 7, "schema": 1}\n'
    b'{"arguments": [], "at": "2026-11-25T14:00:00Z", "attempt": 1, "boot_id": "6ed5", "instance": "pool-0", '
    b'"kind": "started", "schema": 1, "seed": 4711, "slice": 1, "subject": {"build": "b3:build", "fuzzer": '
    b'"fuzzers/a", "plan": "b3:plan"}}\n'
    b'{"added": 1, "at": "2026-11-25T14:00:09Z", "attempt": 1, "edges": 3, "executions": 900, "features": 4, '
    b'"kind": "harvested", "schema": 1, "seconds": 9.0, "slice": 1, "subject": {"build": "b3:build", "fuzzer": '
    b'"fuzzers/a", "plan": "b3:plan"}}\n'
)
"""Frozen: a ledger as it was before Opened told of builds and processes."""

OPENED = (
    b'{"at": "2026-11-29T05:00:00Z", "builds": {"fuzzers/a": "b3:build"}, "definition": {"allocation": "gain", '
    b'"fuzzers": [{"budget": {"seconds": 60}, "dictionary": null, "digest": "b3:plan", "environment": {"MODE": "x"}, '
    b'"name": "fuzzers/a", "options": {}, "seeds": [], "slice": 20}], "name": "nightly", "schema": 1, "seed": 1}, '
    b'"host": "bot", "kind": "opened", "part": false, "pid": 7, "process": {"host_boot_id": "85b7", "pid": 7, '
    b'"start_ticks": 815}, "proof": "b3:proof", "schema": 1, "started": "2026-11-29T04:59:59Z", "workers": 2}\n'
)
"""Frozen, as it is written today."""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def directory(bench: Bench) -> Path:
    return bench.store.campaigns / "nightly"


def told(bench: Bench) -> Status:
    return Status.decode((directory(bench) / "status.json").read_bytes())


def reporting(bench: Bench, before: Callable[[Runner], object] = lambda _: None) -> Callable[[Runner], None]:
    """A tick that writes status.json, after what is to happen in it."""
    reporter = Reporter(Lines(), directory(bench) / "status.json", lambda _: None)

    def tick(runner: Runner) -> None:
        reporter.report(runner.status())
        before(runner)

    return tick


def spent(bench: Bench) -> tuple[float, int]:
    ended: list[Any] = bench.of(Ended)
    return sum(one.seconds for one in ended), sum(one.executions for one in ended)


def test_interrupted_it_says_so_and_has_all_that_the_ledger_has(bench: Bench) -> None:
    bench.world.on_run = lambda _: bench.world.clock.pass_(7)
    with pytest.raises(KeyboardInterrupt):
        bench.runner(bench.definition(plan(A), plan(B))).run(reporting(bench, interrupted), 0.01)
    assert told(bench).state == "stopped"
    assert (told(bench).seconds, told(bench).executions) == spent(bench)
    assert reading.read(directory(bench)).status.fuzzers == told(bench).fuzzers


@pytest.mark.parametrize("error", [BootError, NotProved])
def test_what_ends_it_before_anything_runs_leaves_no_running_one(bench: Bench, error: type[Exception]) -> None:
    bench.run(bench.definition(plan()))
    bench.chosen = CampaignSettings(canary_crash=B, canary_clean=C)
    bench.world.unbootable = 9 if error is BootError else 0
    with pytest.raises(error):
        bench.runner(bench.definition(plan(seconds=90))).run(reporting(bench))
    assert (told(bench).state, told(bench).seconds) == ("stopped", 60)


def test_a_report_that_cannot_be_written_does_not_hide_why_it_ended(bench: Bench) -> None:
    def full(_: Runner) -> None:
        raise StoreError("No space left on device", hint="")

    bench.world.unbootable = 9
    bench.chosen = CampaignSettings(canary_crash=B, canary_clean=C)
    ticks: list[Callable[[Runner], None]] = [lambda _: None]
    with pytest.raises(BootError, match="it panicked"):
        bench.runner(bench.definition(plan())).run(lambda runner: (ticks.pop() if ticks else full)(runner))


def test_an_empty_ledger_has_a_hint_with_the_campaign_s_name(tmp_path: Path) -> None:
    (tmp_path / "nightly").mkdir()
    (tmp_path / "nightly/ledger.jsonl").touch()
    with pytest.raises(StoreError, match="tells of no campaign") as caught:
        reading.read(tmp_path / "nightly")
    assert caught.value.hint == "run it: luigi --module tasks FuzzCampaign --name nightly"


@pytest.mark.slow
@given(at=st.integers(1, 40), before=st.booleans())
@hypothesis_settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_killed_at_any_moment_the_ledger_tells(tmp_path_factory: pytest.TempPathFactory, at: int, before: bool) -> None:
    bench = Bench(tmp_path_factory.mktemp("killed"))
    runner = bench.runner(bench.definition(plan(A), plan(B)))
    kill(runner, at, before)
    with suppress(Killed):
        runner.run(reporting(bench))
    if not any(isinstance(one, Opened) for one in bench.entries):
        with pytest.raises(StoreError, match="tells of no campaign"):
            reading.read(directory(bench))
        return
    found = reading.read(directory(bench))
    fuzzer_states = map(found.state.fuzzer_state, found.present)
    over = [one.checkpoint for fuzzer_state in fuzzer_states for one in fuzzer_state.slices.values() if one.checkpoint]
    seconds, executions = spent(bench)
    assert found.status.state in ("stopped", "done")
    assert {one.state for one in found.status.fuzzers} <= {"waiting", "done", "benched"}
    assert found.status.seconds == seconds + sum(one.seconds for one in over)
    assert found.status.executions == executions + sum(one.executions for one in over)
    assert [one.fuzzer for one in found.status.fuzzers] == [A, B]


def test_a_status_of_a_process_that_lives_counts_and_of_one_that_is_gone_does_not(bench: Bench) -> None:
    bench.runner(bench.definition(plan(A))).run(reporting(bench))
    file = directory(bench) / "status.json"
    file.write_text(file.read_text().replace('"executions": 60000', '"executions": 70000'))
    with ledger.opened(directory(bench) / "ledger.jsonl"):
        assert reading.read(directory(bench)).status.fuzzers[0].executions == 70_000
        file.write_text(file.read_text().replace('"start_ticks": ', '"start_ticks": 1'))
        found = reading.read(directory(bench))
        assert (found.works, found.status.state, found.status.fuzzers[0].executions) == (True, "running", 60_000)
    assert reading.read(directory(bench)).status.executions == 60_000


def test_a_piece_by_itself_does_not_take_the_place_of_the_campaign(bench: Bench) -> None:
    whole = bench.definition(plan(A), plan(B))
    bench.runner(whole).run(reporting(bench))
    more = bench.definition(plan(B, seconds=100))
    bench.runner(more, only=Only(B, 4)).run()
    reading.renew(directory(bench))
    assert [(one.fuzzer, one.seconds) for one in told(bench).fuzzers] == [(A, 60), (B, 80)]
    assert told(bench).state == "stopped", "what it has found is not merged yet"
    assert told(bench) == reading.read(directory(bench)).status


def test_a_piece_without_a_campaign_makes_no_status_file(bench: Bench) -> None:
    bench.runner(bench.definition(plan(A)), only=Only(A, 2)).run()
    reading.renew(directory(bench))
    assert not (directory(bench) / "status.json").exists()
    (one,) = reading.read(directory(bench)).status.fuzzers
    assert (one.seconds, one.state) == (20, "waiting")


def test_of_a_new_build_only_that_counts_as_soon_as_it_is_known(bench: Bench) -> None:
    bench.run(bench.definition(plan(A)))
    bench.builds[A] = "new"
    runner = bench.runner(bench.definition(plan(A)))
    kill(runner, 1)
    with pytest.raises(Killed):
        runner.run()
    (one,) = reading.read(directory(bench)).status.fuzzers
    assert (one.seconds, one.state) == (0, "waiting")


def test_an_old_ledger_is_understood(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(OLD)
    found = reading.read(tmp_path)
    (one,) = found.status.fuzzers
    assert (one.seconds, one.executions, one.left, one.state) == (9, 900, 51, "waiting")
    assert (found.status.state, found.status.by.pid, found.status.by.started) == ("stopped", 7, "")


def test_what_a_process_tells_of_itself_is_frozen(tmp_path: Path) -> None:
    entry = ledger.decode(OPENED)
    assert isinstance(entry, Opened)
    assert ledger.encode(entry, "2026-11-29T05:00:00Z") == OPENED
    (tmp_path / "ledger.jsonl").write_bytes(OPENED)
    found = reading.read(tmp_path)
    assert found.status.by == Author("bot", 7, "2026-11-29T04:59:59Z", 815, "85b7")
    assert (found.status.workers, found.present) == (2, (Subject("fuzzers/a", "b3:build", "b3:plan"),))
    assert Definition.decode(entry.definition).fuzzers[0].environment == (("MODE", "x"),)


@pytest.mark.parametrize(
    "definition", [{}, {"fuzzers": 1}, {"fuzzers": [{}]}, {"fuzzers": [None]}, {"fuzzers": {"a": 1}}]
)
def test_a_ledger_whose_definition_cannot_be_understood_is_told(tmp_path: Path, definition: dict[str, object]) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(ledger.encode(Opened("bot", 7, definition), ""))
    with pytest.raises(StoreError, match="a field of the definition is missing or wrong"):
        reading.read(tmp_path)


@pytest.mark.parametrize("halted", [False, True])
def test_no_total_ever_falls(bench: Bench, monkeypatch: pytest.MonkeyPatch, halted: bool) -> None:
    """Also while what a run has brought is fetched, and between two runs."""
    runner = bench.runner(bench.definition(plan(A), plan(B)))
    seen: list[tuple[float, int]] = []
    note, fetch, run = runner.note, ScriptedSite.fetch, ScriptedSite.run

    def look() -> None:
        status = runner.status()
        seen.append((status.seconds, status.executions))

    def noted(entry: LedgerEntry) -> None:
        look()
        note(entry)
        look()

    def fetched(*arguments: Any) -> None:
        look()
        bench.world.clock.pass_(3)
        look()
        fetch(*arguments)

    def ran(guest_fuzzer: ScriptedSite, *arguments: Any, **named: Any) -> None:
        run(guest_fuzzer, *arguments, **named)
        look()
        if halted and len(seen) > 30:
            runner.stop()
            bench.world.clock.pass_(9)
            look()

    monkeypatch.setattr(runner, "note", noted)
    monkeypatch.setattr(ScriptedSite, "fetch", fetched)
    monkeypatch.setattr(ScriptedSite, "run", ran)
    runner.run()
    look()
    assert seen == sorted(seen)
    assert [one[1] for one in seen] == sorted(one[1] for one in seen)
    assert seen[-1] == spent(bench)


def test_crashes_of_earlier_builds_are_counted_by_themselves(bench: Bench) -> None:
    bench.world.behaviours[A] = Behaviour(crash="boom", after=5)
    bench.run(bench.definition(plan(A)))
    bench.builds[A] = "new"
    bench.run(bench.definition(plan(A, seconds=10)))
    found = reading.read(directory(bench))
    (crashes,) = (found.state.fuzzer_state(subject).crashes for subject in found.present)
    assert list(crashes.values()) == [2]
    again = bench.runner(bench.definition(plan(A)))
    again.run()
    (bucket,) = again.buckets()
    assert (bucket.bucket.count, bucket.present, bucket.earlier, bucket.state) == (24, 12, 12, "known")


class TestCanary:
    @pytest.fixture
    def proved(self, bench: Bench) -> Bench:
        bench.chosen = CampaignSettings(canary_crash=B, canary_clean=C)
        bench.world.behaviours[B] = Behaviour(crash="boom")
        bench.run(bench.definition(plan(A)))
        bench.world.runs.clear()
        return bench

    def test_another_campaign_does_not_look_for_it_again(self, proved: Bench) -> None:
        runner = proved.runner(proved.definition(plan(A), name="weekly"))
        runner.run()
        assert {fuzzer for fuzzer, _ in proved.world.runs} == {A}
        assert runner.status().proved is True
        (one,) = (one for one in ledger.read(runner.directory / "ledger.jsonl") if isinstance(one, Proved))
        assert (one.proved, one.seconds) == (True, 0)

    def test_what_it_was_proved_for_is_on_record(self, proved: Bench) -> None:
        data = json.loads((proved.store.root / "canary.json").read_bytes())
        ((key, record),) = data["proofs"].items()
        assert (data["schema"], key[:3], len(key)) == (1, "b3:", 67)
        assert {name: record[name] for name in ("build", "campaign", "clean", "crash")} == {
            "build": "whole",
            "campaign": "nightly",
            "clean": C,
            "crash": B,
        }
        assert record["host"]

    @pytest.mark.parametrize("changed", ["host", "build", "canary"])
    def test_it_is_looked_for_where_it_was_not_proved(
        self, proved: Bench, monkeypatch: pytest.MonkeyPatch, changed: str
    ) -> None:
        if changed == "host":
            monkeypatch.setattr("socket.gethostname", lambda: "another")
        if changed == "canary":
            proved.world.behaviours["fuzzers/d"] = Behaviour(crash="boom")
            proved.chosen = CampaignSettings(canary_crash="fuzzers/d", canary_clean=C)
        whole = "other" if changed == "build" else "whole"
        proved.runner(proved.definition(plan(A), name="weekly"), whole=whole).run()
        assert len({fuzzer for fuzzer, _ in proved.world.runs}) == 3

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 9, "proofs": {}}', b'{"schema": 1}'])
    def test_a_record_that_cannot_be_understood_proves_nothing(self, proved: Bench, content: bytes) -> None:
        (proved.store.root / "canary.json").write_bytes(content)
        proved.runner(proved.definition(plan(A), name="weekly")).run()
        assert {fuzzer for fuzzer, _ in proved.world.runs} == {A, B, C}


def test_of_many_proofs_the_latest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, times = Proofs(tmp_path / "canary.json"), (f"2026-11-25T14:00:{number:02}Z" for number in range(5))
    monkeypatch.setattr("pipeline.campaign.proofs.MOST", 2)
    monkeypatch.setattr("pipeline.campaign.proofs.utc_now", lambda: next(times))
    claims = [Claim(f"bot-{number}", "build", B, C) for number in range(5)]
    for claim in claims:
        found.add(claim, f"on {claim.host}")
    assert [found.find(claim) for claim in claims] == [
        *[None] * 3,
        "on bot-3, 2026-11-25T14:00:03Z",
        "on bot-4, 2026-11-25T14:00:04Z",
    ]


def test_where_it_is_known_how_far_an_open_attempt_came_that_counts(bench: Bench) -> None:
    bench.chosen = CampaignSettings(canary="off", harvest=3600.0)
    runner = bench.runner(bench.definition(plan(A)))
    real = runner.note

    def note(entry: LedgerEntry) -> None:
        if isinstance(entry, Ended):
            real(Harvested(entry.subject, entry.slice, entry.attempt, 5.0, 500, 1, 2, 3))
            raise Killed
        real(entry)

    runner.note = note  # type: ignore[method-assign]
    with pytest.raises(Killed):
        runner.run()
    found = reading.read(directory(bench))
    (one,) = found.status.fuzzers
    assert (found.works, one.seconds, one.executions, one.features, one.units) == (False, 5.0, 500, 2, 3)


class TestBusy:
    def works(self, bench: Bench, state: str) -> Path:
        """A campaign that a process has begun, of which status.json says that it is in this state."""
        bench.runner(bench.definition(plan(A))).run(reporting(bench))
        file = directory(bench) / "status.json"
        file.write_text(file.read_text().replace('"state": "done",\n  "unproved', f'"state": "{state}",\n  "unproved'))
        return directory(bench) / "ledger.jsonl"

    @pytest.mark.slow
    def test_one_that_runs_is_told_at_once(self, bench: Bench) -> None:
        with ledger.opened(self.works(bench, "running")), pytest.raises(CampaignBusy) as busy:
            bench.run(bench.definition(plan(A)))
        assert re.fullmatch(rf"process {os.getpid()} on \S+ works at the campaign nightly, since \S+Z", str(busy.value))
        assert busy.value.hint == "see how it stands: topcoat campaign status nightly"
        assert busy.value.exit_code == 10

    @pytest.mark.slow
    def test_one_that_has_only_just_begun_is_told(self, bench: Bench) -> None:
        with ledger.opened(directory(bench) / "ledger.jsonl"), pytest.raises(CampaignBusy, match="begins the campaign"):
            bench.run(bench.definition(plan(A)))

    @pytest.mark.slow
    def test_one_that_is_ending_is_waited_for(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.campaign.runner._LOCK_LIMIT", 0.1)
        with ledger.opened(self.works(bench, "stopped")):
            reading.require_free(directory(bench))
            with pytest.raises(InstanceBusy, match=r"another process has been working on ledger\.jsonl for"):
                bench.run(bench.definition(plan(A)))

    def test_one_that_is_stopped_says_so_before_it_has_ended(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever goes on with it must be able to tell that it need only wait."""
        seen: list[str] = []
        halt = SupervisedSlice.halt

        def halted(supervised: SupervisedSlice) -> None:
            seen.append(told(bench).state)
            halt(supervised)

        monkeypatch.setattr(SupervisedSlice, "halt", halted)
        with pytest.raises(KeyboardInterrupt):
            bench.runner(bench.definition(plan(A))).run(reporting(bench, interrupted), 0.01)
        assert set(seen) <= {"stopped"}
        assert told(bench).state == "stopped"
