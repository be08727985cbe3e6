"""The frozen samples: what was written once stays readable, and what comes of it stays the same."""

import hashlib
import json
import shutil
from typing import Any

import pytest

from pipeline.images import zbi
from tests.images import zbis
from tests.images.zbi import device, samples
from tests.images.zbi.conftest import Desk

CASES: dict[str, dict[str, Any]] = json.loads((samples.ROOT / "cases.json").read_text())
SOUND = ["raw.zbi", "lz4.zbi", "zstd.zbi"]


@pytest.fixture
def stocked(desk: Desk) -> Desk:
    shutil.copytree(samples.ROOT, desk.path, dirs_exist_ok=True)
    return desk


@pytest.mark.parametrize("case", CASES["results"].values(), ids=CASES["results"])
def test_results(stocked: Desk, case: dict[str, Any]) -> None:
    image = stocked.make(*case["args"])
    assert (len(image), hashlib.sha256(image).hexdigest()) == (case["size"], case["sha256"])


@pytest.mark.parametrize("case", CASES["kept"].values(), ids=CASES["kept"])
def test_compression_that_is_kept(stocked: Desk, case: dict[str, Any]) -> None:
    image = stocked.make(*case["args"])
    assert {name: hashlib.sha256(data).hexdigest() for name, data in device.files(image).items()} == case["files"]
    assert device.items(image)[-1].compression == case["compression"]
    assert image[: image.index(b"BFSB")][32:] == (samples.ROOT / "raw.zbi").read_bytes()[32 : image.index(b"BFSB")]


@pytest.mark.parametrize("case", CASES["refusals"].values(), ids=CASES["refusals"])
def test_refusals(stocked: Desk, case: dict[str, Any]) -> None:
    assert case["problem"] in stocked.refusal("-o", "OUT", *case["args"])


def test_the_same_files_in_any_compression() -> None:
    found = [zbi.inspect(samples.ROOT / name).parts[-1].parts for name in SOUND]
    assert found[0] == found[1] == found[2]
    for name in SOUND:
        assert device.files((samples.ROOT / name).read_bytes()) == samples.FILES


def test_the_samples_are_what_makes_them() -> None:
    assert json.loads(json.dumps(samples.cases())) == CASES
    assert {path.name for path in samples.ROOT.iterdir()} == {"cases.json", "key", *samples.IMAGES}
    for name, image in samples.IMAGES.items():
        stored = (samples.ROOT / name).read_bytes()
        if name in ("raw.zbi", "kernel.zbi", "empty.zbi", "cut.zbi", "past-end.zbi"):
            assert stored == image
        assert zbis.CONTAINER.to_bytes(4, "little") == stored[:4]
