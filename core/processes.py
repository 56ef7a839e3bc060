"""The processes of a run, started by torchrun or one alone: what they share, what they print, and how they fail."""

import atexit
import contextlib
import ctypes
import functools
import os
import re
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch

if torch.version.cuda is None:  # a torchvision made for CUDA breaks the import of transformers on a CPU build
    sys.modules["torchvision"] = sys.modules["torchaudio"] = None
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store
from tqdm import tqdm

from core.files import disk_is_full

for stream in (sys.stdout, sys.stderr):  # an ASCII terminal shows \\u2264, which is better than an error
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def world() -> int:
    """Number of processes (1 without torchrun)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Index of this process (0 without torchrun)."""
    return dist.get_rank() if dist.is_initialized() else 0


DRIVERS = {"11": 450, "12": 525, "13": 580}  # CUDA of the torch build: the oldest driver that runs it
trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)  # undoes once what start_processes() asks of glibc


def look_for_gpu() -> bool:
    """Whether there is a GPU. fail() if there is one that can't be used: a run must not end up on the CPU unnoticed."""
    on_purpose = "; or train on the CPU on purpose: CUDA_VISIBLE_DEVICES="
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if number == count:  # the first of those that have none
            print(f"error: {count} GPUs for more processes on this node; start at most --nproc-per-node {count}",
                  file=sys.stderr)
        if number >= count:
            raise SystemExit(2)
        major, minor = torch.cuda.get_device_capability(number)
        if major < 8:
            fail(f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, and bf16 and the attention "
                 f"kernel need 8.0 (A100, RTX 30) or newer; take a newer GPU{on_purpose}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    signs = "/dev/nvidia0", "/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1"
    if torch.version.cuda and not usable and visible not in ("", "-1") and any(Path(sign).exists() for sign in signs):
        file, needed = Path("/proc/driver/nvidia/version"), DRIVERS.get(torch.version.cuda.split(".")[0], "a newer one")
        found = re.search(r"\d+\.[\d.]+", file.read_text()) if file.exists() else None
        why = f" ({str(said[0].message).splitlines()[0][:200]})" if said else ""
        devices = f", CUDA_VISIBLE_DEVICES={visible}" if visible else ""
        fail(f"there is a GPU that torch {torch.__version__} can't use{why}: its driver is "
             f"{found[0] if found else 'unknown'}, needed is {needed} or newer{devices}; mend that{on_purpose}")
    return usable


def start_processes() -> str:
    """Join torchrun's process group, if there is one. Returns the device, "cuda" or "cpu".

    A single GPU gets a group of its own, because FSDP needs one."""
    cuda = look_for_gpu()
    if not cuda and sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        # glibc returns large pieces of memory to the system, and every step asks for them again: 5 to 8 % of its time.
        ctypes.CDLL(None).mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        ctypes.CDLL(None).mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD
    if not dist.is_initialized() and (cuda or "RANK" in os.environ):
        lacking = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if "RANK" in os.environ and lacking:
            print(f"error: RANK is set, but not {lacking[0]}; start through torchrun, or unset RANK", file=sys.stderr)
            raise SystemExit(2)
        alone = {} if "RANK" in os.environ else dict(store=dist.HashStore(), rank=0, world_size=1)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **alone)
        atexit.register(part)  # only after success: see leave()
        sys.excepthook = functools.partial(report_and_leave, show=sys.excepthook)  # around torch's, with the rank
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return "cuda" if cuda else "cpu"


def part():
    """At exit: wait until all ranks have finished their collectives, then leave the group.

    Gloo's threads still have the tensors of the last ones. They need the GIL to free them, and a finalising
    interpreter never releases it: SIGABRT (torch 2.13, pytorch issue 190489). This collective ends only after all
    earlier ones. Then the threads have 0.2 seconds to free their tensors."""
    with contextlib.suppress(RuntimeError):  # another rank has failed
        all_reduce(torch.zeros(1))
    dist.destroy_process_group()
    time.sleep(0.2)


def all_reduce(tensor: torch.Tensor, op=dist.ReduceOp.SUM) -> torch.Tensor:
    """Sum (or maximum) of a CPU tensor over the ranks, on every rank. Changes the tensor."""
    if world() > 1:
        dist.all_reduce(tensor, op)
    return tensor


def gather(own: list, count: int) -> list:
    """The whole list of `count` items, on every rank. own: this rank's share of it, list[rank::world]."""
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
    """A file for tqdm without a terminal: each state of the bar is a line."""

    def write(self, text):
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)

    def flush(self):
        pass


def bar_style(delay=5) -> dict:
    """Arguments of tqdm for long work: a bar after `delay` seconds; without a terminal, a line every 30 seconds.

    Both say how much time is left."""
    if sys.stderr.isatty():
        form = "{desc} {percentage:3.0f} % |{bar}| {remaining} left"
        return dict(bar_format=form, delay=delay, leave=False, dynamic_ncols=True)
    form = "{desc}: {percentage:.0f} %, {remaining} left"
    return dict(bar_format=form, delay=30, mininterval=30, miniters=1, leave=False, file=Lines())


outer = []  # (bar of with_bar(), size of its current item), while that bar is open


@contextlib.contextmanager
def progress(total: int, what: str, quiet=False):
    """A progress bar, as `with progress(total, what) as done:`. Call done(x) when x more of `total` is done.

    Inside with_bar() there is no second bar. The bar of with_bar() moves by the same share of its current item."""
    if outer and not quiet:
        bar, size = outer[0]
        yield lambda done: bar.update(done * size / max(1, total))
    else:
        with tqdm(total=total, desc=what, disable=quiet, **bar_style()) as bar:
            yield bar.update


def with_bar(items, what: str, sizes=None, done=0):
    """Yield the items after the first `done`, with a bar on rank 0. sizes: how much work each item is (default: 1)."""
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
    """True for the first process that calls this with this message. So it is printed once.

    It asks torchrun's store. A collective would wait for processes that may never come here."""
    if not dist.is_initialized():
        number = os.environ.get("LOCAL_RANK", os.environ.get("RANK", 0))
        return int(number) == 0  # this early, all processes of a node fail in the same way
    try:
        return world() == 1 or _get_default_store().add(f"said: {message}", 1) == 1
    except RuntimeError:  # the store is gone
        return True


def leave(status: int):
    """End this process at once if there are others.

    destroy_process_group() would wait for the others, which wait for this one in a collective. Now they lose the
    connection and fail too, or torchrun ends them."""
    if world() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def report_and_leave(kind, error, trace, show):
    """Report an error and leave. If processes fail in the same line, only one reports it."""
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
    """Inside this context, errors of these kinds are bad input: fail(where + first line of the error)."""
    try:
        yield
    except kinds as error:
        fail(where + str(error).splitlines()[0])


def advise(kind, error, trace, show=sys.excepthook):
    """Python's report of an error. A full disk is one line. Without GPU memory, it also says which flags to lower."""
    if disk_is_full(error):
        words = " ".join(str(error).split())[-200:]
        return print(f"error: the disk is full ({words}); make room, then go on: the same command, for training with "
                     "--resume", file=sys.stderr)
    show(kind, error, trace)
    if issubclass(kind, torch.OutOfMemoryError):
        print("error: out of GPU memory; lower --tokens_per_micro (training) or --vllm_memory (sampling), or give "
              "--offload true", file=sys.stderr)


sys.excepthook = advise
