"""Several processes as one. Without a launcher there is one process, and everything here is a no-op.

Images are spread over ranks by contiguous rows (`shard`), whatever the group size: a group may lie on two ranks, since
losses that couple a group take its total from `all_reduce_sum`. Collectives carry no gradient.

Read `sharding.py` (whose rows are whose), `collectives.py` (sums and gathers), `process_group.py` (`init`) and
`watch.py` (who waits for whom, and how long). Ranks may also share the network: `sharded.py` spreads its weights, and
`lockstep.py` lets all ranks call it equally often.
"""

from dgpo.distributed.collectives import (
    all_gather_rows,
    all_reduce_gradients,
    all_reduce_sum,
    gather_objects,
    is_shared,
    on_main,
    shared,
    together,
)
from dgpo.distributed.process_group import init, is_main, leave_at_exit, rank, shutdown, world_size
from dgpo.distributed.sharding import shard, shard_of
from dgpo.distributed.watch import at, board, meets, on_lost

__all__ = [
    "all_gather_rows",
    "all_reduce_gradients",
    "all_reduce_sum",
    "at",
    "board",
    "gather_objects",
    "init",
    "is_main",
    "is_shared",
    "leave_at_exit",
    "meets",
    "on_lost",
    "on_main",
    "rank",
    "shard",
    "shard_of",
    "shared",
    "shutdown",
    "together",
    "world_size",
]
