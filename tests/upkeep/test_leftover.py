"""Sizes and deletion of files."""

from pathlib import Path

from pipeline.upkeep.leftover import delete, used


def test_sizes_do_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    (tmp_path / "small").mkdir()
    (tmp_path / "small/link").symlink_to(tmp_path)
    assert used(tmp_path / "small", tmp_path / "gone") < 50_000
    assert used(tmp_path) > 100_000
    delete(tmp_path / "small", tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["large"]
