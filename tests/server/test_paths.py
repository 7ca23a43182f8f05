"""Which directory a server and its clients meet in."""

import os
from pathlib import Path

import pytest

from thinfs.server import paths


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THINFS_MOUNT", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_the_directory_given_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINFS_MOUNT", "/there")
    assert paths.mount_dir("/here") == "/here"
    assert paths.mount_dir() == "/there"


def test_a_relative_directory_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.mount_dir("dm") == f"{tmp_path}/dm"


def test_root_has_run_thinfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.mount_dir() == "/run/thinfs"


def test_another_user_has_a_place_in_the_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert paths.mount_dir() == "/run/user/1000/thinfs"


def test_a_private_directory_is_made_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "private"
    for _ in range(2):
        assert paths._private_dir(str(path)) == str(path)
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_private_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.mkdir()
    path.chmod(0o755)
    with pytest.raises(PermissionError, match="private: not a directory of uid"):
        paths._private_dir(str(path))


def test_a_link_in_the_place_of_the_private_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    path = tmp_path / "private"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        paths._private_dir(str(path))


def test_a_private_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "private"
    path.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(PermissionError):
        paths._private_dir(str(path))
