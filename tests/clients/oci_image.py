"""A container image of a few files, an OCI layout in one tar, built here: a test asks no registry.

Two layers: the second changes a file of the first and adds one. Only what an unpacker reads is filled in.
"""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any, Final

REFERENCE: Final = "localhost/thinfs/hello:1"
LAYERS: Final[list[dict[str, bytes]]] = [
    {"etc/motd": b"the first layer\n", "bin/large": b"0123456789abcdef" * 65536},
    {"etc/motd": b"the second layer\n", "etc/added": b"added\n"},
]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    archive.addfile(entry, io.BytesIO(data))


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            _add(archive, name, data)
    return buffer.getvalue()


def write_image(path: Path) -> None:
    """An OCI image layout of LAYERS, named REFERENCE."""
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    def document(value: dict[str, Any], kind: str) -> dict[str, Any]:
        return blob(json.dumps(value).encode(), kind)

    layers = [blob(_tar(files), "layer.v1.tar") for files in LAYERS]
    config = document(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        },
        "config.v1+json",
    )
    manifest = document(
        {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
        | {"config": config, "layers": layers},
        "manifest.v1+json",
    )
    manifest["annotations"] = {"io.containerd.image.name": REFERENCE, "org.opencontainers.image.ref.name": "1"}
    index = {"schemaVersion": 2, "manifests": [manifest]}
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode(), **blobs}
    path.write_bytes(_tar(files))
