from tests.blockdevs.loops import loops

__all__ = ["loops"]
