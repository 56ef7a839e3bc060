"""The processes of a run: torchrun's, or one alone."""

import atexit
import os
import sys

import torch
import torch.distributed as dist
from tqdm import tqdm


def world() -> int:
    """Number of processes (1 without torchrun)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Index of this process (0 without torchrun)."""
    return dist.get_rank() if dist.is_initialized() else 0


def start_processes() -> str:
    """Join torchrun's process group, if there is one. Returns the device, "cuda" or "cpu". A lone GPU gets a group of
    its own, because FSDP needs one."""
    cuda = torch.cuda.is_available()
    if not dist.is_initialized() and (cuda or "RANK" in os.environ):
        alone = {} if "RANK" in os.environ else dict(store=dist.HashStore(), rank=0, world_size=1)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **alone)
        atexit.register(dist.destroy_process_group)
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return "cuda" if cuda else "cpu"


def all_reduce(tensor: torch.Tensor, op=dist.ReduceOp.SUM) -> torch.Tensor:
    """Sum (or maximum) of a CPU tensor over the ranks, on every rank."""
    if world() > 1:
        dist.all_reduce(tensor, op)
    return tensor


def say(message: str):
    """Print on rank 0, above the progress bar if there is one."""
    if rank() == 0:
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()
