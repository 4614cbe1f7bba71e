"""How many records one request to Argilla carries."""

from collections.abc import Iterable, Iterator

#: What one request carries at most. The server takes 500 records, at 20 to 40 of them a second.
MAX_RECORDS = 100
MAX_BYTES = 4_000_000

#: A record's id, and the record as it is sent.
Item = tuple[str, bytes]


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in order, by at most so many and so many bytes; a larger one goes alone."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) == MAX_RECORDS or size + len(item[1]) > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item[1])
    if batch:
        yield batch
