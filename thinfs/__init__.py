"""thinfs: device-mapper thin provisioning without the device mapper. README.md draws the layout.

`open_pool` and `open_pool_trio` are the way in for programs (thinfs/library); imported when asked for,
because the drop-in starts over and over.
"""

TYPE_CHECKING = False  # typing's own would cost the drop-in half of its start
if TYPE_CHECKING:
    from thinfs.library.pool import open_pool as open_pool
    from thinfs.library.trio import open_pool_trio as open_pool_trio

__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    if name == "open_pool":
        from thinfs.library.pool import open_pool

        return open_pool
    if name == "open_pool_trio":
        from thinfs.library.trio import open_pool_trio

        return open_pool_trio
    raise AttributeError(f"module 'thinfs' has no attribute {name!r}")
