"""The thin-provisioning-tools that judge: this machine's own, and Debian 13's 1.x, fetched into .cache by `python -m`.

Promises of the fetch: needs no root and, once done, no network; leaves the system alone; a complete program or none;
one line says what could not be done. `THINFS_THIN_TOOLS1` names another copy of the 1.x program (pdata_tools).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from kernel_backend.get_uml612 import SetUpFailed, download, run

_CACHE: Final = Path(__file__).resolve().parents[1] / ".cache" / "thin-tools-1"
_PACKAGE: Final = "thin-provisioning-tools/trixie"


def thin_check_0() -> Path | None:
    """This machine's; 0.9.0 on Debian 12."""
    found = shutil.which("thin_check") or shutil.which("thin_check", path="/usr/sbin:/sbin")
    return Path(found) if found else None


def thin_check_1() -> Path | None:
    directory = Path(os.environ.get("THINFS_THIN_TOOLS1") or _CACHE)
    program = directory / "thin_check"
    return program if program.exists() else None


def thin_checks() -> list[Path]:
    return [program for program in (thin_check_0(), thin_check_1()) if program is not None]


def version_of(program: Path) -> str:
    return subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]


def fetch(target: Path = _CACHE) -> None:
    if thin_check_1() is not None:
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".thin-tools-", dir=target.parent) as work:
            downloaded, complete = Path(work, "download"), Path(work, "complete")
            downloaded.mkdir()
            download(downloaded, [_PACKAGE])
            for package in downloaded.glob("*.deb"):
                run("dpkg-deb", "-x", str(package), str(downloaded / "unpacked"))
            complete.mkdir()
            shutil.copy(downloaded / "unpacked/usr/sbin/pdata_tools", complete / "pdata_tools")
            for tool in ("thin_check", "thin_dump", "thin_repair", "thin_restore"):
                (complete / tool).symlink_to("pdata_tools")
            run(str(complete / "thin_check"), "-V")
            shutil.rmtree(target, ignore_errors=True)
            complete.rename(target)
    except OSError as error:
        raise SetUpFailed(f"{error.filename or target}: {error.strerror}") from None


def main() -> int:
    try:
        fetch()
    except SetUpFailed as error:
        print(f"thin-provisioning-tools 1.x: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
