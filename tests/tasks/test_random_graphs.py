"""What runs equals what an oracle says is out of date, and fits what was foretold, over random graphs and edits."""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import luigi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.store.publish import write_new
from tasks.engine.artifact import ArtifactTask, Check, Tasks, WrapperTask
from tasks.engine.context import context


@dataclass
class World:
    """One graph on disk: node n is made of its source and of the nodes that it needs, all with smaller numbers."""

    root: Path
    needs: list[set[int]]
    made: list[int] = field(default_factory=list)

    def source(self, node: int) -> Path:
        return self.root / f"source{node}"

    def output(self, node: int) -> Path:
        return self.root / f"out{node}"

    def content(self, node: int, outputs: list[bytes]) -> bytes:
        """What a node is made of, cut so short that different sources often yield the same."""
        whole = self.source(node).read_bytes() + b"".join(outputs[need] for need in sorted(self.needs[node]))
        return bytes([sum(whole) % 3])

    def all_contents(self) -> list[bytes]:
        """Everything made from scratch, in memory."""
        outputs: list[bytes] = []
        for node in range(len(self.needs)):
            outputs.append(self.content(node, outputs))
        return outputs


class RandomNode(ArtifactTask):
    """One node of the world under test."""

    world: ClassVar[World]
    number = luigi.IntParameter()

    def requires(self) -> Tasks:
        return {str(need): RandomNode(number=need) for need in sorted(self.world.needs[self.number])}

    def artifacts(self) -> tuple[Path]:
        return (self.world.output(self.number),)

    def inputs(self) -> dict[str, Path]:
        return {**super().inputs(), "source": self.world.source(self.number)}

    def make(self, made: Sequence[Path]) -> None:
        self.world.made.append(self.number)
        outputs = [
            self.world.output(node).read_bytes() if node in self.world.needs[self.number] else b""
            for node in range(self.number)
        ]
        write_new(made[0], self.world.content(self.number, outputs))


class RandomRoot(WrapperTask):
    """All nodes."""

    def requires(self) -> Tasks:
        return {str(node): RandomNode(number=node) for node in range(len(RandomNode.world.needs))}


def foretold(world: World) -> tuple[set[int], set[int]]:
    """Which nodes would be made for certain, and which at the most."""
    RandomNode.world = world
    check = Check(context().digests)
    reasons = {node: check.why(RandomNode(number=node)) for node in range(len(world.needs))}
    certain = {node for node, reason in reasons.items() if reason and reason.certain}
    return certain, {node for node, reason in reasons.items() if reason}


def run(world: World) -> set[int]:
    """Run luigi; which nodes were made."""
    world.made.clear()
    RandomNode.world = world
    assert luigi.build([RandomRoot()], local_scheduler=True, log_level="CRITICAL")
    assert len(world.made) == len(set(world.made)), "each at most once"
    return set(world.made)


@st.composite
def graphs(draw: st.DrawFn) -> list[set[int]]:
    count = draw(st.integers(1, 6))
    return [draw(st.sets(st.integers(0, node - 1), max_size=3)) if node else set() for node in range(count)]


class Failing(World):
    """One in which nothing can be made: each node writes half, and fails."""

    def content(self, node: int, outputs: list[bytes]) -> bytes:
        raise OSError("no")


HARMFUL = ("output", "lost output", "record", "corrupt record", "newer record")
"""Whoever suffers them must be made again, whatever its source is."""

KINDS = ("source", "touch", "other need", *HARMFUL)


@pytest.mark.slow
@settings(max_examples=40)
@given(graphs(), st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.binary(max_size=2)), max_size=4))
def test_what_runs_is_what_is_out_of_date(needs: list[set[int]], edits: list[tuple[str, int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.environ["TOPCOAT_ROOT"] = directory
        try:
            check(World(Path(directory), needs), edits)
        finally:
            del os.environ["TOPCOAT_ROOT"]


def check(world: World, edits: list[tuple[str, int, bytes]]) -> None:
    count = len(world.needs)
    for node in range(count):
        world.source(node).write_bytes(bytes([node]))
    assert run(world) == set(range(count))
    outputs = world.all_contents()
    before = [set(needs) for needs in world.needs]
    dirty = {number % count for kind, number, _ in edits if kind in HARMFUL}
    for kind, number, data in edits:
        apply(world, kind, number % count, data)
    dirty |= {node for node in range(count) if world.needs[node] != before[node]}
    expected = oracle(world, outputs, dirty)
    certain, possible = foretold(world)
    assert certain <= expected <= possible
    fail(world)
    assert run(world) == expected
    assert [world.output(node).read_bytes() for node in range(count)] == world.all_contents()
    assert foretold(world) == (set(), set())
    assert run(world) == set()


def fail(world: World) -> None:
    """Run luigi while nothing can be made. What was there stays as it is."""
    before = [path.read_bytes() if path.exists() else None for path in map(world.output, range(len(world.needs)))]
    RandomNode.world = Failing(world.root, world.needs)
    _, stale = foretold(RandomNode.world)
    assert luigi.build([RandomRoot()], local_scheduler=True, log_level="CRITICAL") == (not stale)
    after = [path.read_bytes() if path.exists() else None for path in map(world.output, range(len(world.needs)))]
    assert after == before


def apply(world: World, kind: str, node: int, data: bytes) -> None:
    output, record = world.output(node), world.root / f"out{node}.made.json"
    edits: dict[str, Callable[[], object]] = {
        "source": lambda: world.source(node).write_bytes(data),
        "touch": lambda: os.utime(world.source(node), (1, 1)),
        "other need": lambda: world.needs[node].symmetric_difference_update({node - 1} if node else ()),
        "output": lambda: output.write_bytes(b"tampered" + data),
        "lost output": lambda: output.unlink(missing_ok=True),
        "record": lambda: record.unlink(missing_ok=True),
        "corrupt record": lambda: record.write_bytes(data),
        "newer record": lambda: record.write_text('{"schema": 2}'),
    }
    edits[kind]()


def oracle(world: World, before: list[bytes], dirty: set[int]) -> set[int]:
    """A node must be made if it was damaged, its source has other bytes, or something it needs came out different."""
    after = world.all_contents()
    return {
        node
        for node, needs in enumerate(world.needs)
        if node in dirty
        or world.source(node).read_bytes() != bytes([node])
        or any(before[need] != after[need] for need in needs)
    }


def test_an_input_that_cannot_be_read_is_told_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPCOAT_ROOT", str(tmp_path))
    world = World(tmp_path, [set()])
    world.source(0).write_bytes(b"x")
    assert run(world) == {0}
    world.source(0).unlink()
    reason = Check(context().digests).why(RandomNode(number=0))
    assert str(reason) == f"an input cannot be read: No such file or directory: {world.source(0)}"
    with pytest.raises(StoreError, match=r"^reading what RandomNode\(number=0\) is made of: No such file"):
        RandomNode(number=0).run()
    assert world.output(0).exists()
