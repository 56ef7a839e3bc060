"""One process of several fails: its message is seen once, and the others don't wait for it in a collective. And what
torchrun does to its processes when it is asked to end."""

import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, TORCHRUN, output_of, start

PATIENCE = 120  # seconds that torchrun leaves its processes between SIGTERM and SIGKILL
RAISES = """
import grpo
from core.processes import rank

loss = grpo.token_loss


def token_loss(new, tokens, cfg):
    if rank() == 1:
        raise RuntimeError("broken on purpose")
    return loss(new, tokens, cfg)


grpo.token_loss = token_loss
grpo.main()
"""
FAILS = """
import torch

from core.processes import fail
from core.processes import rank, start_processes

start_processes()
if {who}:
    fail("no such file")
torch.distributed.barrier()
"""


ENDS = """
import torch
import torch.distributed as dist

from core.processes import start_processes

start_processes()
group = dist.group.WORLD  # kept alive, as FSDP keeps it
tensors = [torch.zeros(10) for _ in range(100)]
dist.barrier()  # on a busy machine one process may be seconds ahead
for tensor in tensors:
    dist.all_reduce(tensor, async_op=True)
"""


def command(folder, script, *flags) -> list[str]:
    """The command line that runs this script in two processes."""
    file = folder / "script.py"
    file.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + script)
    return [*TORCHRUN, *flags, str(file)]


def torchrun(folder, script, *flags):
    """(exit status, stderr, seconds between the last word of the failing processes and the end) of two processes. One
    that hangs is killed after PATIENCE seconds, not after torchrun's 30, which a busy machine may need as well."""
    launch = [*command(folder, script, "--shutdown-timeout", str(PATIENCE)), *flags]
    process = subprocess.Popen(launch, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    lines, since = [], time.monotonic()
    try:
        for line in process.stderr:
            lines.append(line)
            if "broken on purpose" in line or "NameError" in line or line.startswith("error: "):
                since = time.monotonic()
        return process.wait(PATIENCE), "".join(lines), time.monotonic() - since
    finally:
        process.kill()


@pytest.mark.slow
def test_an_exception_in_the_middle_of_a_step_ends_both(tmp_path, small):
    """Rank 0 is by then in the backward pass, whose collectives need rank 1."""
    flags = ["--out", str(tmp_path / "out"), *small, "--steps", "1", "--eval_data", ""]
    status, text, seconds = torchrun(tmp_path, RAISES, *flags)
    assert status != 0 and seconds < PATIENCE / 2  # nobody hung until it was killed
    assert text.count("RuntimeError: broken on purpose") == 1
    assert not list(tmp_path.glob("out/step_*"))


def test_a_run_that_ends_right_after_a_collective_ends_well(tmp_path):
    """Gloo's threads still hold the tensors of a hundred. Before processes waited, four of five starts aborted."""
    status, text, _ = torchrun(tmp_path, ENDS)
    assert status == 0, text


@pytest.mark.slow
@pytest.mark.parametrize("who", ["rank() == 1", "True"])
def test_bad_input_on_one_rank_and_on_both(tmp_path, who):
    status, text, seconds = torchrun(tmp_path, FAILS.format(who=who))
    assert status != 0 and seconds < PATIENCE / 2
    assert text.count("error: no such file (rank ") == 1 and (who == "True" or "(rank 1)\n" in text)


@pytest.mark.slow
def test_processes_that_raise_the_same_say_it_once(tmp_path):
    script = "import core.config\nfrom core.processes import start_processes\nstart_processes()\nbroken_on_purpose"
    status, text, seconds = torchrun(tmp_path, script)
    assert status != 0 and text.count("NameError: ") == 1


# ------------------------------------------------------------------------------------------------ SIGTERM
SLOW_STEP = """
import time
import common
import grpo

reward = common.Run.reward


def slow(run, rollouts):
    common.say("in the step")  # one process alone: two would write into each other's lines
    time.sleep({seconds})
    return reward(run, rollouts)


common.Run.reward = slow
grpo.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("patience, seconds, saved", [(PATIENCE, 5, True), (1, PATIENCE, False)])
def test_torchrun_waits_for_the_step_as_long_as_it_is_told(tmp_path, small, patience, seconds, saved):
    """Its SIGTERM goes on to the processes, which save after the step; then it kills them, by default after 30 s."""
    launch = command(tmp_path, SLOW_STEP.format(seconds=seconds), "--shutdown-timeout", str(patience))
    flags = ["--out", str(tmp_path / "out"), *small, "--steps", "3", "--eval_data", ""]
    process = subprocess.Popen([*launch, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "in the step\n":
            process.send_signal(signal.SIGTERM)
            break
    text = "".join(lines) + process.communicate(timeout=2 * PATIENCE)[0]
    assert process.returncode != 0
    assert ("stopped after step 1, which is saved" in text) == saved
    assert (tmp_path / "out/step_000001/trainer.json").exists() == saved


def test_a_rank_without_a_meeting_place_is_one_line(tmp_path):
    """As in a shell where somebody has exported RANK, or in a job that sets it without torchrun."""
    process = start(sys.executable, "-c", "from core.processes import start_processes; start_processes()", RANK="0",
                    PYTHONPATH=str(ROOT))
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert text == "error: RANK is set, but not WORLD_SIZE; start through torchrun, or unset RANK\n"


def test_a_terminal_that_knows_ascii_alone_is_no_error():
    """PYTHONIOENCODING=ascii, as in some containers: a problem may hold any character."""
    text = output_of(sys.executable, "-c", "from core.processes import say; say('x \u2264 \u4e2d')",
                     PYTHONIOENCODING="ascii", PYTHONPATH=str(ROOT))
    assert text == "x \\u2264 \\u4e2d\n"
