"""The JSON Schemas in docs say of status.json and campaign.json what is true, and all of it."""

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import fastjsonschema
import pytest

from pipeline.campaign import result, status
from pipeline.campaign.ledger import Point, Result
from pipeline.campaign.plan import definition
from pipeline.campaign.plan.definition import Budget, Definition, FuzzerPlan
from pipeline.campaign.status import Activity, Author, CampaignState, FuzzerStatus, Status
from pipeline.fuzz.crashes.crash import State
from pipeline.settings import Allocation, CampaignSettings
from pipeline.store.publish import publish_json
from tests.campaign import test_status
from tests.campaign.bench import A, B, Bench, C, plan
from tests.campaign.scripted import Behaviour

DOCS = Path(__file__).parents[2] / "docs"
STATUS, CAMPAIGN = "status.schema.json", "campaign.schema.json"

WORDS = {
    *("$ref", "$schema", "title", "description", "definitions", "type", "enum", "const", "format", "pattern"),
    *("minLength", "minimum", "maximum", "items", "minItems", "maxItems", "minProperties", "maxProperties"),
    *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
}
"""Of JSON Schema: a validator takes no offence at one that is misspelled."""

BY_NAME = {"builds", "campaigns", "crashes", "curve", "failed", "fuzzers", "lost", "options", "results", "why"}
"""Objects under these names have some names and not others, as the campaign went."""

Place = tuple[str | int, ...]


def schema(name: str) -> Any:
    return json.loads((DOCS / name).read_bytes())


@cache
def validator(name: str) -> Callable[[Any], Any]:
    """Raises JsonSchemaException. Other files are looked for beside the schema, and nowhere else."""
    return fastjsonschema.compile(schema(name), handlers={"": schema})


def part(name: str, place: str = "") -> Any:
    return schema(name)["definitions"][place] if place else schema(name)


def full_status() -> Any:
    """The frozen sample as it is written."""
    return json.loads(json.dumps(test_status.STATUS.encode()))


def full_campaign(tmp_path: Path) -> Any:
    """The frozen sample, with all that can be empty filled."""
    whole = test_status.result()
    (tmp_path / "seed").touch()
    one = FuzzerPlan("p/a", Budget(600), 60, (("max_len", "9"),), tmp_path / "seed", (tmp_path / "seed",))
    whole["definition"] = Definition("nightly", 1, "gain", (one,)).encode()
    return json.loads(json.dumps(whole))


@pytest.fixture(params=[STATUS, CAMPAIGN])
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any]:
    """A schema, and what it allows."""
    return request.param, full_status() if request.param == STATUS else full_campaign(tmp_path)


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Everything in it, itself too."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inner:
        yield from places(item, (*at, name))


def at(value: Any, place: Place) -> Any:
    for name in place:
        value = value[name]
    return value


def changed(value: Any, place: Place, to: Any) -> Any:
    """A copy with something else there."""
    if not place:
        return to
    copy = deepcopy(value)
    at(copy, place[:-1])[place[-1]] = to
    return copy


def without(value: Any, place: Place) -> Any:
    copy = deepcopy(value)
    del at(copy, place[:-1])[place[-1]]
    return copy


def allows(name: str, value: Any) -> bool:
    try:
        validator(name)(value)
    except fastjsonschema.JsonSchemaValueException:
        return False
    return True


def objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """All schemas in a schema."""
    yield value
    for word in ("properties", "patternProperties", "definitions"):
        for inner in value.get(word, {}).values():
            yield from objects(inner)
    for word in ("items", "additionalProperties", "propertyNames"):
        inner = value.get(word, False)
        for one in inner if isinstance(inner, list) else [inner]:
            if isinstance(one, dict):
                yield from objects(one)


class TestSamples:
    def test_the_frozen_status(self) -> None:
        validator(STATUS)(full_status())
        written = {"host": "here", "pid": 1, "updated": "2026-11-25T14:00:00Z"}
        validator(STATUS)(test_status.FROZEN | written)

    def test_the_frozen_result(self, tmp_path: Path) -> None:
        validator(CAMPAIGN)(json.loads(json.dumps(test_status.result())))
        validator(CAMPAIGN)(full_campaign(tmp_path))

    def test_a_budget_of_runs_and_no_canary(self) -> None:
        one = replace(test_status.FUZZER, budget={"runs": 5}, left=5.0)
        validator(STATUS)(replace(test_status.STATUS, proved=None, fuzzers=(one,)).encode())


class Watched:
    """What a run of a scripted campaign writes."""

    def __init__(self, bench: Bench, *plans: FuzzerPlan) -> None:
        self._directory = bench.store.root
        self.states: set[str] = set()
        self.runner = bench.runner(bench.definition(*plans))
        bench.world.on_run = self._see

    def _see(self, _: str) -> None:
        whole = self._written(self.runner.status().encode())
        validator(STATUS)(whole)
        self.states |= {one["state"] for one in whole["fuzzers"]}

    def _written(self, value: object) -> Any:
        path = self._directory / "written.json"
        publish_json(path, value)
        return json.loads(path.read_bytes())

    def result(self) -> Any:
        """campaign.json, once it has run."""
        runner = self.runner
        runner.run()
        stands = runner.status()
        validator(STATUS)(self._written(stands.encode()))
        encoded = result.encode(
            stands, runner.definition, runner.state, runner.subjects, runner.buckets(), self._directory
        )
        return self._written(encoded)


class TestRuns:
    def test_all_that_can_go_wrong(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path)
        bench.world.behaviours |= {A: Behaviour(fate="dies", after=2), B: Behaviour(crash="boom", after=5)}
        bench.world.unbootable, bench.world.slow = 1, 0.25
        watched = Watched(bench, plan(A), plan(B), plan(C, runs=50_000))
        whole = watched.result()
        validator(CAMPAIGN)(whole)
        assert whole["fuzzers"][A]["results"] == {"guest died": 3}
        assert whole["fuzzers"][B]["results"] == {"crash": 12}
        assert [one["state"] for one in whole["status"]["fuzzers"]] == ["benched", "done", "done"]
        assert whole["definition"]["fuzzers"][2]["budget"] == {"runs": 50_000}
        assert whole["boots"]["failed"] == {"panic": 1}
        assert {"boot failed: panic", "boots", "before and after runs"} <= set(whole["lost"])
        assert [bucket["count"] for bucket in whole["crashes"]] == [12]
        assert {"waiting", "running", "merging"} <= watched.states

    def test_a_canary_that_is_not_found(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path)
        bench.chosen = CampaignSettings(canary="warn", canary_crash=B, canary_clean=C)
        whole = Watched(bench, plan(A)).result()
        validator(CAMPAIGN)(whole)
        assert (whole["status"]["proved"], whole["lost"]["canary"] > 0) == (False, True)

    def test_a_run_that_is_stopped(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path)
        watched = Watched(bench, plan(A))
        bench.world.on_run = lambda _: watched.runner.stop()
        whole = watched.result()
        validator(CAMPAIGN)(whole)
        assert (whole["status"]["state"], set(whole["fuzzers"][A]["results"])) == ("stopped", {"stopped"})


class TestDrift:
    @pytest.mark.parametrize(
        ("where", "names"),
        [
            ((STATUS,), set(test_status.STATUS.encode())),
            ((STATUS, "fuzzer"), {field.name for field in fields(FuzzerStatus)}),
            ((CAMPAIGN,), set(test_status.result())),
            ((CAMPAIGN, "definition"), {field.name for field in fields(Definition)} | {"schema"}),
            ((CAMPAIGN, "plan"), {field.name for field in fields(FuzzerPlan)} | {"digest"}),
            ((CAMPAIGN, "fuzzer"), set(test_status.result()["fuzzers"]["p/a"])),
            ((CAMPAIGN, "bucket"), set(test_status.result()["crashes"][0])),
            ((CAMPAIGN, "often"), {"first_seen", "last_seen", "count"}),
            ((CAMPAIGN, "boots"), set(test_status.result()["boots"])),
        ],
    )
    def test_all_names_are_properties_and_required(self, where: tuple[str, ...], names: set[str]) -> None:
        told = part(*where)
        assert (set(told["properties"]), set(told["required"])) == (names, names)
        assert told["required"] == sorted(names)

    def test_a_status_has_all_its_fields(self) -> None:
        names = {field.name for one in (Status, Author) for field in fields(one)} - {"by"}
        assert names <= set(part(STATUS)["properties"])

    def test_all_that_can_be_chosen(self) -> None:
        assert part(STATUS)["properties"]["state"]["enum"] == list(get_args(CampaignState))
        assert part(STATUS, "fuzzer")["properties"]["state"]["enum"] == list(get_args(Activity))
        assert part(CAMPAIGN, "definition")["properties"]["allocation"]["enum"] == list(get_args(Allocation))
        assert part(CAMPAIGN, "bucket")["properties"]["state"]["enum"] == list(get_args(State))
        assert set(part(CAMPAIGN, "results")["properties"]) == set(get_args(Result))
        assert set(part(STATUS, "budget")["properties"]) == {field.name for field in fields(Budget)}

    def test_the_types_are_those_of_the_fields(self) -> None:
        types = {str: "string", int: "integer", float: "number"}
        told = part(STATUS, "fuzzer")["properties"]
        plain = [field for field in fields(FuzzerStatus) if field.name not in ("budget", "state")]
        assert [told[field.name]["type"] for field in plain] == [types[field.type] for field in plain]  # type: ignore[index]
        point = part(CAMPAIGN, "point")
        assert [one["type"] for one in point["items"]] == [types[one] for one in get_args(Point)]
        assert (point["minItems"], point["maxItems"]) == (len(point["items"]), len(point["items"]))

    def test_the_versions(self) -> None:
        assert part(STATUS)["properties"]["schema"]["const"] == status.SCHEMA
        assert part(CAMPAIGN)["properties"]["schema"]["const"] == result.SCHEMA
        assert part(CAMPAIGN, "definition")["properties"]["schema"]["const"] == definition.SCHEMA

    @pytest.mark.parametrize("name", [STATUS, CAMPAIGN])
    def test_everything_is_described_and_nothing_misspelled(self, name: str) -> None:
        found = list(objects(schema(name)))
        assert [one for one in found if "description" not in one and set(one) != {"$ref"}] == []
        assert set().union(*found) <= WORDS
        assert [one for one in found if one.get("type") == "object" and "additionalProperties" not in one] == []

    def test_the_manual_names_both(self) -> None:
        assert [name for name in (STATUS, CAMPAIGN) if f"]({name})" not in test_status.MANUAL] == []


class TestRefused:
    def test_what_is_of_another_type(self, sample: tuple[str, Any]) -> None:
        name, whole = sample
        wrong: Any = {"?": []}  # nowhere is a list under any name
        assert [place for place in places(whole) if allows(name, changed(whole, place, wrong))] == []

    def test_what_is_more(self, sample: tuple[str, Any]) -> None:
        name, whole = sample
        found = [place for place in places(whole) if isinstance(at(whole, place), dict)]
        assert [place for place in found if allows(name, changed(whole, (*place, "more"), []))] == []
        by_name = [place for place in found if allows(name, changed(whole, (*place, "more"), 1))]
        assert {place[-1] for place in by_name} <= {"crashes", "failed", "why"}

    def test_what_is_missing(self, sample: tuple[str, Any]) -> None:
        name, whole = sample
        inner = [place for place in places(whole) if place and isinstance(at(whole, place[:-1]), dict)]
        unneeded = [place for place in inner if allows(name, without(whole, place))]
        assert {place[-2] for place in unneeded if len(place) > 1} <= BY_NAME
        assert all(len(place) > 1 for place in unneeded)

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("schema",), 1),
            (("status", "schema"), 2),
            (("status", "state"), "paused"),
            (("status", "fuzzers", 0, "state"), "stopped"),
            (("status", "fuzzers", 0, "executions"), -1),
            (("status", "fuzzers", 0, "executions"), True),
            (("status", "fuzzers", 0, "executions"), 1.5),
            (("status", "fuzzers", 0, "budget"), {"seconds": 1, "runs": 1}),
            (("status", "fuzzers", 0, "budget"), {}),
            (("status", "fuzzers"), []),
            (("status", "updated"), "yesterday"),
            (("status", "left"), -0.5),
            (("definition", "name"), ".hidden"),
            (("definition", "seed"), 0),
            (("definition", "fuzzers", 0, "dictionary"), "maze.dict"),
            (("definition", "fuzzers", 0, "budget"), {"seconds": 0}),
            (("definition", "fuzzers", 0, "options", "max_len"), 9),
            (("fuzzers", "p/a", "results"), {"bored": 1}),
            (("fuzzers", "p/a", "crashes"), {"../up": 1}),
            (("fuzzers", "p/a", "curve", 0), [1.0, 50, 2, 3]),
            (("fuzzers", "p/a", "curve", 0), [1.0, 50, 2, 3, 4, 5]),
            (("crashes", 0, "directory"), "crashes/../../segv-f-00"),
            (("crashes", 0, "directory"), "crashes/segv-f-00"),
            (("crashes", 0, "state"), "old"),
            (("lost",), {"tea": 1.0}),
            (("lost",), {"canary": -1.0}),
        ],
    )
    def test_what_cannot_be(self, tmp_path: Path, place: Place, value: Any) -> None:
        assert not allows(CAMPAIGN, changed(full_campaign(tmp_path), place, value))
