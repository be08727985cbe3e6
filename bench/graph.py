"""A graph of 1,000 artifacts with 2,500 inputs, for bench/freshness.py: the same for Topcoat, snakemake and doit.

500 artifacts A are made of three sources each, 500 artifacts B of one A and one source each.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.store.publish import write_new
from tasks.engine.artifact import ArtifactTask, Tasks, WrapperTask

import luigi  # isort: skip

COUNT = 500
ROOT = Path(os.environ.get("GRAPH_ROOT", "."))


class A(ArtifactTask):
    """Made of three sources."""

    i = luigi.IntParameter()

    def artifacts(self) -> tuple[Path]:
        return (ROOT / f"out/a{self.i}",)

    def inputs(self) -> dict[str, Path]:
        return {f"s{number}": ROOT / f"sources/a{self.i}-{number}" for number in range(3)}

    def make(self, made: Sequence[Path]) -> None:
        write_new(made[0], b"".join(path.read_bytes() for path in self.inputs().values()))


class B(ArtifactTask):
    """Made of one A and one source."""

    i = luigi.IntParameter()

    def requires(self) -> Tasks:
        return {"a": A(i=self.i)}

    def artifacts(self) -> tuple[Path]:
        return (ROOT / f"out/b{self.i}",)

    def inputs(self) -> dict[str, Path]:
        return {"a": ROOT / f"out/a{self.i}", "s": ROOT / f"sources/b{self.i}"}

    def make(self, made: Sequence[Path]) -> None:
        write_new(made[0], b"".join(path.read_bytes() for path in self.inputs().values()))


class All(WrapperTask):
    """Everything."""

    def requires(self) -> Tasks:
        return {f"b{i}": B(i=i) for i in range(COUNT)}


SNAKEFILE = f"""
rule all:
    input: expand("out/b{{i}}", i=range({COUNT}))
rule a:
    input: expand("sources/a{{{{i}}}}-{{n}}", n=range(3))
    output: "out/a{{i}}"
    shell: "cat {{input}} > {{output}}"
rule b:
    input: "out/a{{i}}", "sources/b{{i}}"
    output: "out/b{{i}}"
    shell: "cat {{input}} > {{output}}"
"""

DODO = f"""
def _a(targets, dependencies):
    open(targets[0], "wb").write(b"".join(open(path, "rb").read() for path in dependencies))
def task_a():
    for i in range({COUNT}):
        sources = [f"sources/a{{i}}-{{n}}" for n in range(3)]
        yield {{"name": str(i), "file_dep": sources, "targets": [f"out/a{{i}}"], "actions": [_a]}}
def task_b():
    for i in range({COUNT}):
        sources = [f"out/a{{i}}", f"sources/b{{i}}"]
        yield {{"name": str(i), "file_dep": sources, "targets": [f"out/b{{i}}"], "actions": [_a]}}
"""


def write_sources(root: Path) -> None:
    """Write all sources, aged enough to be remembered."""
    (root / "sources").mkdir(parents=True)
    (root / "out").mkdir()
    for i in range(COUNT):
        for name in (f"a{i}-0", f"a{i}-1", f"a{i}-2", f"b{i}"):
            (root / "sources" / name).write_text(f"{name}\n" * 20)
