"""The processes of a run: torchrun's, or one alone."""

import atexit
import contextlib
import ctypes
import functools
import os
import signal
import sys
import time
import traceback

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store
from tqdm import tqdm

from core.files import disk_is_full

for stream in (sys.stdout, sys.stderr):  # a terminal that knows ASCII alone gets \\u2264 in place of an error
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def world() -> int:
    """Number of processes (1 without torchrun)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Index of this process (0 without torchrun)."""
    return dist.get_rank() if dist.is_initialized() else 0


def keep_freed_memory():
    """Let glibc keep the memory of freed tensors for later ones. It would return large pieces to the system, and every
    step would take them anew, page by page: 5 to 8 % of the time on a CPU."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD


def start_processes() -> str:
    """Join torchrun's process group, if there is one. Returns the device, "cuda" or "cpu". A lone GPU gets a group of
    its own, because FSDP needs one.

    A process that ended right after a collective could now and then abort (SIGABRT): gloo's threads still hold its
    tensors, and to release them they need the GIL, which an interpreter that is being taken down gives to nobody. Group
    and threads outlive destroy_process_group, as caches of torch refer to them. So each process waits a moment for its
    threads. (torch 2.13; pytorch issue 190489)"""
    cuda = torch.cuda.is_available()
    if not cuda:
        keep_freed_memory()
    if not dist.is_initialized() and (cuda or "RANK" in os.environ):
        lacking = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if "RANK" in os.environ and lacking:
            print(f"error: RANK is set, but not {lacking[0]}; start through torchrun, or unset RANK", file=sys.stderr)
            raise SystemExit(2)
        alone = {} if "RANK" in os.environ else dict(store=dist.HashStore(), rank=0, world_size=1)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **alone)
        atexit.register(time.sleep, 0.2)  # comes last: for gloo's threads, see above
        atexit.register(dist.destroy_process_group)  # on success alone: see leave()
        sys.excepthook = functools.partial(report_and_leave, show=sys.excepthook)  # around torch's, with the rank
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return "cuda" if cuda else "cpu"


def all_reduce(tensor: torch.Tensor, op=dist.ReduceOp.SUM) -> torch.Tensor:
    """Sum (or maximum) of a CPU tensor over the ranks, on every rank."""
    if world() > 1:
        dist.all_reduce(tensor, op)
    return tensor


def gather(own: list, count: int) -> list:
    """The list of `count` items on every rank, from the ranks' shares: items rank, rank + world, ..."""
    parts = [own]
    if world() > 1:
        parts = [None] * world()
        dist.all_gather_object(parts, own)
    out = [None] * count
    for i, part in enumerate(parts):
        out[i :: len(parts)] = part
    return out


def say(message: str):
    """Print on rank 0, above the progress bar if there is one."""
    if rank() == 0:
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()


def catch_signals() -> list:
    """From now on SIGTERM and Ctrl-C only add their number to this list, for the run to leave after its step. The
    second one raises KeyboardInterrupt."""
    caught = []

    def catch(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        name = signal.Signals(number).name
        say(f"{name}: leaving after this step; --resume continues (once more: leaving at once)")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, catch)
    return caught


# ------------------------------------------------------------------------------------------------ what takes long
class Lines:
    """A file for tqdm where there is no terminal: each state of the bar becomes a line."""

    def write(self, text):
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)

    def flush(self):
        pass


def bar_style(delay=5) -> dict:
    """How tqdm shows work that may take long: a bar that comes after `delay` seconds, or without a terminal a line
    every 30 seconds. Both say how much time is left."""
    if sys.stderr.isatty():
        form = "{desc} {percentage:3.0f} % |{bar}| {remaining} left"
        return dict(bar_format=form, delay=delay, leave=False, dynamic_ncols=True)
    form = "{desc}: {percentage:.0f} %, {remaining} left"
    return dict(bar_format=form, delay=30, mininterval=30, miniters=1, leave=False, file=Lines())


outer = []  # (bar, size of the part that is being done): the bar of watched(), while it is open


@contextlib.contextmanager
def progress(total: int, what: str, quiet=False):
    """Yields a function to call with how much of `total` has just been done: it moves a bar. Within watched() it moves
    that bar instead, by the same share of the part that is being done."""
    if outer and not quiet:
        bar, size = outer[0]
        yield lambda done: bar.update(done * size / max(1, total))
    else:
        with tqdm(total=total, desc=what, disable=quiet, **bar_style()) as bar:
            yield bar.update


def watched(items, what: str, sizes=None, done=0):
    """Yields the items after the first `done`, under a bar on rank 0. sizes: how much work each is (default: 1)."""
    sizes = sizes or [1] * len(items)
    with tqdm(total=sum(sizes), initial=sum(sizes[:done]), desc=what, disable=rank() > 0, **bar_style(delay=1)) as bar:
        try:
            for i in range(done, len(items)):
                outer[:] = [(bar, sizes[i])]
                yield items[i]
                bar.update(sum(sizes[: i + 1]) - bar.n)
        finally:
            outer.clear()


# ------------------------------------------------------------------------------------------------ failing
def first_to_say(message: str) -> bool:
    """True for the first process that calls this with this message, so that it is printed once. It asks torchrun's
    store: a collective would wait for processes that may never come here."""
    if not dist.is_initialized():
        return int(os.environ.get("RANK", 0)) == 0  # so early, all processes fail alike
    try:
        return world() == 1 or _get_default_store().add(f"said: {message}", 1) == 1
    except RuntimeError:  # the store is gone
        return True


def leave(status: int):
    """End this process at once if it is one of many. To take the process group down in order, as at the end of a run,
    would wait for the others, which wait for this one in a collective; so they lose the connection and fail too, or
    torchrun ends them."""
    if world() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def report_and_leave(kind, error, trace, show):
    """Report an error, once where processes fail in the same line, and leave."""
    if first_to_say("".join(traceback.format_tb(trace))):
        show(kind, error, trace)
    leave(1)


def fail(message: str):
    """Bad input: one line on stderr that says what, where and what to do; exit status 2. Any rank may call this. If
    several fail with the same message, only one prints it."""
    if first_to_say(message):
        who = f" (rank {rank()})" if world() > 1 else ""
        tqdm.write(f"error: {message}{who}", file=sys.stderr)  # which clears a progress bar
    leave(2)
    raise SystemExit(2)


@contextlib.contextmanager
def bad_input(where="", kinds=(OSError, ValueError)):
    """Errors of these kinds inside are bad input: fail() with `where` and the first line of the error."""
    try:
        yield
    except kinds as error:
        fail(where + str(error).splitlines()[0])


def advise(kind, error, trace, show=sys.excepthook):
    """Python's own report of an error; if GPU memory ran out, with the flags to lower. A full disk is one line."""
    if disk_is_full(error):
        words = " ".join(str(error).split())[-200:]
        return print(f"error: the disk is full ({words}); make room, then go on: the same command, for training with "
                     "--resume", file=sys.stderr)
    show(kind, error, trace)
    if issubclass(kind, torch.OutOfMemoryError):
        print("error: out of GPU memory; lower --tokens_per_micro (training) or --vllm_memory (sampling), or give "
              "--offload true", file=sys.stderr)


sys.excepthook = advise
