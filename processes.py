"""The processes of a run, torchrun's or one alone: how they find each other, speak with one voice, and refuse input."""

import atexit
import contextlib
import os
import sys

import torch
import torch.distributed as dist
from tqdm import tqdm

if torch.version.cuda is None:  # builds for CUDA that another package pulled in would break `import transformers`
    sys.modules["torchvision"] = sys.modules["torchaudio"] = None


def world() -> int:
    """Number of processes (1 without torchrun)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Index of this process (0 without torchrun)."""
    return dist.get_rank() if dist.is_initialized() else 0


def start_processes() -> str:
    """Join torchrun's process group, if there is one; the device. A lone GPU gets a group too: FSDP asks for one."""
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


def fail(message: str):
    """Bad input: one line on stderr that says what, where and what to do; exit status 2."""
    if int(os.environ.get("RANK", 0)) == 0:
        tqdm.write(f"error: {message}", file=sys.stderr)  # which clears a progress bar
    raise SystemExit(2)


@contextlib.contextmanager
def bad_input(where="", kinds=(OSError, ValueError)):
    """Errors of these kinds inside are bad input: fail() with where and their first line."""
    try:
        yield
    except kinds as error:
        fail(where + str(error).splitlines()[0])


def say(message: str):
    """Print on rank 0, above the progress bar."""
    if rank() == 0:
        tqdm.write(message, file=sys.stdout)
