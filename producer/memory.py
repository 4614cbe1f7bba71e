"""A bound on the memory that reading one piece of a source may take.

Parquet unpacks: a page takes up to three times its size, and a few kilobytes may hold gigabytes, in
a page, in a dictionary that a million rows point to, in one row's list; and what a file says of its
own sizes may be wrong. So the kernel is asked to refuse: what is too much raises MemoryError where
it is allocated. It bounds the whole process, Arrow's own memory included, on Linux; elsewhere
nothing.
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pyarrow as pa

#: Bytes that may come on top of what the process had when it first read something.
MORE_BYTES = 768 * 1024 * 1024

#: What is said of a piece that would have taken more.
TOO_MUCH = (
    f"it unpacks to more than fits into {MORE_BYTES:,} bytes of memory, read in pieces; accepted: "
    "smaller pages, such as a Parquet file has that is written with row_group_size=100"
)


@contextmanager
def bounded() -> Iterator[None]:
    """Within the block, `MORE_BYTES` of memory at most; one thread at a time.

    Raises:
        MemoryError: the block wanted more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = _most()
    if most is None or (hard != resource.RLIM_INFINITY and hard < most):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@cache
def _most() -> int | None:
    """The bound; once for a process, or what was freed and kept would be counted on top."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    # Arrow's own allocator reserves a gigabyte beforehand, which would count as had already.
    pa.set_memory_pool(pa.system_memory_pool())
    (data_kb,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmData:"))
    return int(data_kb) * 1024 + MORE_BYTES
