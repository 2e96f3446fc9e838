"""How images are spread over processes: by contiguous rows, whatever the group size."""

from __future__ import annotations

from dgpo.distributed.process_group import rank, world_size


def shard(total: int) -> slice:
    """This rank's contiguous rows of `total`; the ranks' counts differ by at most one, and some may be zero."""
    return shard_of(total, rank(), world_size())


def shard_of(total: int, rank: int, world_size: int) -> slice:
    """The rows of any one rank. Together the shards cover range(total) once, in rank order."""
    return slice(total * rank // world_size, total * (rank + 1) // world_size)
