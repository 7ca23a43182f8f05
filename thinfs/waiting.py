"""The edge's way to wait for a bio, in trio: submit it, and wait only if it is not done then.

Promises: a caller that is cancelled leaves the bio to its fate. Never: used below the edges (FUSE handlers, open
handles, the verbs of the seam).
"""

import trio

from thinfs.bio import Bio, Submits


async def do(device: Submits, bio: Bio) -> Bio:
    """The bio, done; its error is raised."""
    device.submit(bio)
    if not bio.done:
        done = trio.Event()
        bio.then(done.set)
        await done.wait()
    if bio.error is not None:
        raise bio.error
    return bio
