"""`topcoat crash matrix` and `topcoat crash check`."""

import json
from dataclasses import replace

import pytest

from pipeline.fuzz.crashes import verdicts
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.fuzz.crashes.verdicts import CrashVerdict, InputVerdict
from pipeline.store.publish import publish_json
from tests.conftest import Workspace
from tests.fuzz.crashes.made_up import CRASH, FUZZER, SEEN, SLUG, elsewhere

OLD, NEW = CRASH.build, "b3:34cd"


def judge(store: CrashStore, slug: str, build: str, **counts: int) -> None:
    store.note_build(FUZZER, build)
    verdict = CrashVerdict(FUZZER, slug, build, "default/1", 1, 10, (InputVerdict("0", **counts),), made=SEEN)  # type: ignore[arg-type]
    publish_json(verdicts.path_of(store.directory(FUZZER, slug), build), verdict.encode())


@pytest.fixture
def store(workspace: Workspace) -> CrashStore:
    """Two buckets, of which a new build has fixed one."""
    made = CrashStore(workspace.store.root, now=lambda: SEEN)
    made.add(CRASH)
    other = made.add(elsewhere("g")).bucket
    judge(made, SLUG, OLD, same=10)
    judge(made, SLUG, NEW, none=10)
    judge(made, other, NEW, same=9, none=1)
    return made


def test_the_matrix(workspace: Workspace, store: CrashStore) -> None:
    done = workspace.topcoat("crash", "matrix")
    assert (done.status, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines() == [
        FUZZER,
        "crash   B1           B2          bad  good",
        "segv-f  still 10/10  fixed       B1   B2",
        "segv-g  seen         still 9/10  B1   -",
        "",
        "B1  b3:12ab  first seen 2026-11-25 14:00",
        "B2  b3:34cd  first seen 2026-11-25 14:00",
        "bad: the first bad build; good: the first good build after the last bad one",
    ]
    assert workspace.topcoat("crash", "matrix", "segv-g*").stdout.count(b"segv-f") == 0


def test_the_matrix_for_machines(workspace: Workspace, store: CrashStore) -> None:
    done = workspace.topcoat("crash", "matrix", "--json", SLUG)
    assert (done.status, done.stderr) == (0, b"")
    nothing = {"masked_by": None}
    assert json.loads(done.stdout) == {
        "schema": 1,
        "fuzzers": [
            {
                "fuzzer": FUZZER,
                "builds": [
                    {"label": "B1", "digest": OLD, "first_seen": SEEN},
                    {"label": "B2", "digest": NEW, "first_seen": SEEN},
                ],
                "buckets": [
                    {
                        "slug": SLUG,
                        "title": "SEGV in f",
                        "first_bad": OLD,
                        "first_good": NEW,
                        "cells": [
                            {
                                "build": OLD,
                                "text": "still 10/10",
                                "seen": 1,
                                "same": 10,
                                "tries": 10,
                                **nothing,
                                "word": "still there 10 of 10",
                            },
                            {
                                "build": NEW,
                                "text": "fixed",
                                "seen": 0,
                                "same": 0,
                                "tries": 10,
                                **nothing,
                                "word": "fixed",
                            },
                        ],
                    }
                ],
            }
        ],
    }


def test_old_crashes_do_not_fail_the_check_and_new_ones_do(workspace: Workspace, store: CrashStore) -> None:
    done = workspace.topcoat("crash", "check")
    assert (done.status, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines() == [
        "state  fuzzer             crash                now",
        "still  example-fuzzers/a  segv-g-70b4efa137f5  still 9/10",
        f"fixed  example-fuzzers/a  {SLUG}  fixed",
        "",
        "example-fuzzers/a: b3:34cd, first seen 2026-11-25 14:00; against b3:12ab, first seen 2026-11-25 14:00",
        "0 new, 0 back, 1 still, 1 fixed, 0 not known",
    ]
    store.add(replace(elsewhere("h"), build=NEW))
    done = workspace.topcoat("crash", "check", FUZZER, "--json")
    assert done.status == 1
    told = json.loads(done.stdout)
    assert (told["schema"], told["passed"]) == (1, False)
    (fuzzer,) = told["fuzzers"]
    assert (fuzzer["fuzzer"], fuzzer["newest"], fuzzer["base"]) == (FUZZER, NEW, OLD)
    states = {one["title"]: (one["state"], one["now"]["text"]) for one in fuzzer["buckets"]}
    assert states == {
        "SEGV in f": ("fixed", "fixed"),
        "SEGV in g": ("still", "still 9/10"),
        "SEGV in h": ("new", "seen"),
    }
    assert workspace.topcoat("crash", "check", "segv-g*").status == 0
    assert workspace.topcoat("crash", "check", "--against", "34cd").status == 0
    assert workspace.topcoat("crash", "check", "--against", "b1").status == 1


def test_what_was_not_tried_with_the_newest_build_is_told_with_what_to_do(
    workspace: Workspace, store: CrashStore
) -> None:
    store.note_build(FUZZER, "b3:56ef")
    done = workspace.topcoat("crash", "check")
    assert done.status == 0, "nothing is known to be new"
    assert b"0 new, 0 back, 0 still, 0 fixed, 1 not known" in done.stdout
    assert f"luigi --module tasks ProveFixes --fuzzers '{FUZZER}'".encode() in done.stdout


def test_where_no_build_was_before_nothing_is_new(workspace: Workspace) -> None:
    """So a fuzzer that nobody has changed does not fail the check of another."""
    CrashStore(workspace.store.root).add(CRASH)
    done = workspace.topcoat("crash", "check")
    assert done.status == 0
    assert b"; no build before it" in done.stdout
    assert b"0 new, 0 back, 0 still, 0 fixed, 0 not known; 1 there with a first build" in done.stdout


@pytest.mark.parametrize("command", ["matrix", "check"])
def test_nothing_is_there(workspace: Workspace, command: str) -> None:
    done = workspace.topcoat("crash", command)
    assert (done.status, done.stdout) == (0, b"")
    assert b"no crashes yet in " in done.stderr
    done = workspace.topcoat("crash", command, "[")
    assert done.status == 0 or b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["matrix", "check"])
def test_no_bucket_matches(workspace: Workspace, store: CrashStore, command: str) -> None:
    done = workspace.topcoat("crash", command, "net/*")
    assert (done.status, done.stdout) == (0, b"")
    assert done.stderr == b"no bucket matches; see which there are: topcoat crash list\n"
    assert workspace.topcoat("crash", command, "[").status == 2


def test_a_base_that_is_none(workspace: Workspace, store: CrashStore) -> None:
    done = workspace.topcoat("crash", "check", "--against", "b3:zz")
    assert done.status == 2
    assert b"hint: there is B1 (b3:12ab), B2 (b3:34cd)" in done.stderr
