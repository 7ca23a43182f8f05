"""Listing and comparing trees: from a directory, from an ext4 image, against a manifest."""

import os
import subprocess
from pathlib import Path

import pytest

from thinfs.cli.demo_docker import carried_pool, find_container
from thinfs.cli.tree_listing import Entry, differences, list_directory, list_ext4, read_manifest
from thinfs.errors import BackingMissing, IOFailed


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One of each kind that an ordinary user can make, with the names that trip a parser up."""
    top = tmp_path / "source/tree"
    (top / "a dir/below").mkdir(parents=True)
    (top / "a dir/file").write_bytes(b"x" * 70_000)
    (top / "empty").touch(0o640)
    os.link(top / "a dir/file", top / "again")
    (top / "link").symlink_to("a dir/file")
    (top / "long link").symlink_to("/" + "t" * 100)
    os.mkfifo(top / "fifo", 0o600)
    return top


def manifest_of(tree: dict[str, Entry]) -> dict[str, Entry]:
    lines = []
    for path, e in tree.items():
        kind, contents = ("h", "a dir/file") if path == "again" else (e.kind, e.contents)
        lines.append(f"{path}\t{kind}\t{e.mode:o}\t{e.uid}\t{e.gid}\t{e.size_bytes}\t{contents}\n")
    return read_manifest(lines)


def test_an_ext4_image_lists_as_the_directory_it_was_made_from(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    subprocess.run(
        ["/sbin/mkfs.ext4", "-q", "-d", str(tree.parent), str(image), "8M"],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    listed = list_ext4(image, "/tree")
    assert differences(manifest_of(list_directory(tree)), listed) == []
    assert listed["again"].inode == listed["a dir/file"].inode


def test_debugfs_complaining_is_an_error_that_names_the_image(tmp_path: Path) -> None:
    image = tmp_path / "not-ext4"
    image.write_bytes(bytes(65536))
    with pytest.raises(IOFailed, match="not-ext4"):
        list_ext4(image, "/")


def test_every_kind_of_difference_is_found(tree: Path) -> None:
    manifest = manifest_of(list_directory(tree))
    (tree / "empty").unlink()
    (tree / "new").touch()
    (tree / "again").unlink()
    (tree / "again").write_bytes(b"x" * 70_000)
    (tree / "link").unlink()
    (tree / "link").symlink_to("elsewhere")
    (tree / "fifo").chmod(0o640)
    found = differences(manifest, list_directory(tree))
    assert sorted(line.split(":")[0] for line in found) == ["again", "empty", "fifo", "link", "new"]


def test_two_names_of_one_file_that_the_manifest_has_apart_are_a_difference(tree: Path) -> None:
    listed = list_directory(tree)
    manifest = {path: Entry(e.kind, e.mode, e.uid, e.gid, e.size_bytes, e.contents) for path, e in listed.items()}
    assert [line.split(",")[0] for line in differences(manifest, listed)] in (
        ["again: a hard link to a dir/file"],
        ["a dir/file: a hard link to again"],
    )


def test_a_docker_directory_without_containers_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BackingMissing, match=str(tmp_path)):
        find_container(tmp_path, None)


def test_the_project_carries_the_pool_that_docker_made() -> None:
    pool = carried_pool()
    assert pool is not None
    assert len(read_manifest((pool / "manifest-c2.tsv").read_text().splitlines())) == 138
