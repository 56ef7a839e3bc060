"""How much of a GPU each part of a run takes, computed: what a user can know before renting."""

import math


def engine_share(free: int, total: int, parameters: int, table: int, tp: int) -> float:
    """The share of a GPU's `total` bytes that an engine may take when `free` bytes are left beside the trainer's state.

    A tenth of them goes to CUDA, NCCL and fragments, and 2 bytes for each entry of the largest tensor, the `table`, to
    the push of the weights. Activations and gradients need no room, because the engine sleeps while they exist. Raises
    ValueError where its weights (bf16, split over tp GPUs), an eighth of them for what it computes, and 1 GB of KV
    cache do not fit."""
    room, least = 0.9 * free - 2 * table, 2.25 * parameters / tp + 1e9
    if room < least:
        raise ValueError(f"the trainer leaves {free / 1e9:.1f} of a GPU's {total / 1e9:.1f} GB, and vLLM needs "
                         f"{(least + 2 * table) / 0.9 / 1e9:.1f} GB; raise --tp (now {tp}), give --offload true, or "
                         "take more GPUs")  # fmt: skip
    return math.floor(1000 * room / total) / 1000
