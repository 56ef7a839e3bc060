r"""A policy in training tries everything: none of this is right, all of it is answered in time, and grading goes on."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from core import verify
from core.verify import verify_all
from test_verify import cpu, yardstick

# ruff: noqa: E501 - the hostile texts are a table

ROOT = Path(__file__).parents[1]
EASY = (r"\boxed{2\sqrt2}", r"\sqrt8")  # takes sympy, milliseconds of it
POWER = "9^{" * 40 + "9" + "}" * 40
BOXES = {  # what stands in the box; the gold answer is 17 or \sqrt{17}
    "tower": "9^{9^{9^{9}}}", "tower of forty": POWER, "two storeys": "9^{9^{9}}", "with stars": "9**9**9**9",
    "factorial of factorial": "((9!)!)!", "many factorials": "9!!!!!!!!!", "big factorial": "(10^{9})!",
    "big binomial": r"\binom{10^9}{5\cdot10^8}", "literal binomial": r"\binom{1000000000}{500000000}",
    "huge exponent": "10^{999999999999}", "tiny exponent": "10^{-999999999999}", "scientific": "1e999999999",
    "scientific, four digits": "1e9999", "quotient of powers": r"\frac{2^{10^{9}}}{3^{10^{9}}}",
    "power modulo": r"3^{10^{12}} \bmod 7", "sum to a billion": r"\sum_{k=1}^{10^{9}} \frac{1}{k^2}",
    "product": r"\prod_{k=1}^{10^{8}} k", "integral": r"\int_0^{1} e^{e^{e^{x}}} dx",
    "integral of nonsense": r"\int \frac{\sin(\cos(x^x))}{\ln x} dx", "limit": r"\lim_{x\to0} x^{x^{x^{x}}}",
    "gcd": r"\gcd(10^{99999}, 6^{99999})", "hundred symbols": "+".join(f"x_{{{i}}}^{{{i}}}" for i in range(30)),
    "expansion": "(a+b+c+d+e+f+g+h)^{50}-(h+g+f+e+d+c+b+a)^{50}", "nested radicals": r"\sqrt{2+" * 40 + "2" + "}" * 40,
    "nested fractions": r"\frac{1}{1+" * 50 + "1" + "}" * 50, "frac without end": r"\frac" * 90,
    "frac of frac": r"\frac{" * 80, "braces": "{" * 200 + "17" + "}" * 200, "brackets": "(" * 200 + "18" + ")" * 200,
    "square brackets": "[" * 200, "bars": "|" * 300, "minuses": "-" * 301 + "17", "plus": "+" * 300, "dots": "." * 400,
    "commas": "," * 400, "list of 200": ",".join(map(str, range(200))), "carets": "^" * 300, "subscripts": "_" * 300,
    "backslashes": "\\" * 300, "spaces": "1" + " " * 400 + "7", "tabs": "\t\n\r\v\f", "matrix": r"\begin{pmatrix}"
    + r"\\".join("&".join("1" * 12) for _ in range(15)) + r"\end{pmatrix}", "matrix power":
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{10^{9}}", "no matrix": r"\begin{pmatrix}" * 20, "determinant":
    r"\det\begin{pmatrix}" + r"\\".join("&".join(f"x_{i}" for _ in range(6)) for i in range(6)) + r"\end{pmatrix}",
    "code": "__import__('os').system('touch hacked')", "code in text": r"\text{__import__('os').system('touch hacked')}",
    "eval": "eval('17')", "lambda": "(lambda: 17)()", "attribute": "().__class__.__bases__", "sympy": "Symbol('x')",
    "sympify": "sympify('17')", "exit": "exit()", "nan": "nan", "0/0": "0/0", "1/0": "1/0", "infinite": r"\infty",
    "difference of infinities": r"\infty-\infty", "log of zero": r"\ln 0", "zero to zero": "0^{-1}",
    "null": "\0", "17 with nulls": "1\0.\0" + "7", "lone surrogate": "\ud800", "surrogates": "\udfff\ud800" * 9,
    "right to left": "\u202e71\u202c1", "zero width": "1\u200b8", "Arabic": "١٨", "superscript": "¹⁸",
    "combining": "1" + "\u0301" * 200, "emoji": "🎲" * 100, "full width": "１８", "roman": "Ⅷ", "BOM": "\ufeff18",
    "percent": "%" * 200, "dollars": "$" * 300 + "1", "quotes": '"' * 300, "JSON": '17", "17"]\n["17', "underscore": "1_000",
    "newline protocol": '1\n["17", "17"]', "dotted": "1.7.1.7", "hex": "0x11", "complex": "17j", "17 or else": "17 or 18",
    "retracted": "17? no", "both": "17, 18", "repeating": r"0.\overline{" + "9" * 400 + "}", "base": "17_{1}", "base 99": "1_{99}",
    "thousands": "1" + ",000" * 90, "greek": r"\alpha\beta" * 40, "long word": "a" * 490,
    "sine tower": r"\sin(" * 60 + "x" + ")" * 60, "abs": r"\left|" * 50, "relations": "<".join("abcdefgh" * 10),
    "equations": "=".join("abcdefgh" * 10), "inequality": r"x^{x^x} < 2^{x^{99}}", "union": r"(0,1)\cup" * 40 + "(1,2)",
    "abc": "x^{y^{z}}-x^{z^{y}}", "roots": r"\sqrt[9]{" * 30 + "2" + "}" * 30, "logs": r"\ln" * 80,
    "big rational": r"\frac{" + "7" * 240 + "}{" + "3" * 240 + "}", "mixed": "9" * 200 + r"\frac{1}{3}", "floor":
    r"\lfloor 10^{10^{9}}\pi \rfloor"}
RESPONSES = {  # whole responses
    "a thousand boxes": r"\boxed{18}" * 1000, "open boxes": r"\boxed{" * 5000, "deep box": r"\boxed{" + "{" * 10_000
    + "17" + "}" * 10_000 + "}", "a megabyte": r"\boxed{" + "17 " * 350_000 + "}", "a megabyte of nines": "9" * 2**20,
    "megabyte box": r"\boxed{" + "9" * 2**20 + "}", "phrases": "the answer is " * 50_000, "answers": "answer" * 100_000,
    "spaces": "answer is" + " " * 10**6, "nulls": "\0" * 10**6, "backslashes": "\\" * 10**6, "dollars": "answer is " + "$" * 10**6,
    "fake ends": r"\boxed{18}" + "}" * 10**5, "empty box last": r"\boxed{17} \boxed{}", "boxes in boxes": r"\boxed{" * 300
    + "18" + "}" * 300, "commas": "answer: " + "1," * 10**5, "retraction": r"\boxed{17} wait, \boxed{18}"}


def seconds(pairs) -> float:
    """How long the workers need for pairs that are right, on this machine as busy as it is now."""
    verify.quick.cache_clear()
    began = time.monotonic()
    assert all(verify_all(pairs))
    return time.monotonic() - began


@pytest.fixture(scope="module")
def deadline():
    """A short one, but on a slow machine still a hundred times what an easy item takes, by the second of two looks."""
    verify_all([EASY])
    return max(0.7, 100 * seconds([EASY]))


@pytest.fixture(autouse=True)
def _quick_deadline(monkeypatch, deadline):
    monkeypatch.setattr(verify, "DEADLINE", deadline)
    monkeypatch.setattr(verify, "START_DEADLINE", 600)


def resident(pid) -> int:
    """Megabytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def new_workers_seconds() -> float:
    """How long a new worker takes to start, to import sympy and to grade an easy item."""
    for worker in verify._idle:
        worker.kill()
        worker.wait()
    return seconds([EASY])


def test_there_are_enough_of_them():
    assert len(BOXES) + len(RESPONSES) >= 100


@pytest.mark.parametrize("name", RESPONSES)
def test_hostile_responses_are_wrong_at_once(name):
    """The slowest takes 14 yardsticks, a megabyte of it. What is left for a worker is easy."""
    golds, before = ("17", r"\sqrt{17}"), verify.timeouts
    assert not any(verify.verify(RESPONSES[name], gold) for gold in golds) and verify.timeouts == before
    assert cpu(lambda: [verify.verify(RESPONSES[name], gold) for gold in golds]) < 150 * yardstick()


@pytest.mark.slow
def test_hostile_boxes_are_wrong_and_the_others_flow():
    """Each hostile item stands between easy ones; a batch of them takes no longer than its stuck items together: each
    of these has a deadline, and then a new worker starts."""
    hostile = [(rf"\boxed{{{text}}}", gold) for text in BOXES.values() for gold in ("17", r"\sqrt{17}")]
    easy = [(rf"\boxed{{{k}\sqrt3}}", rf"\sqrt{{{3 * k * k}}}") for k in range(2, 2 + len(hostile))]
    pairs = [pair for both in zip(hostile, easy) for pair in both]
    new_worker = max(new_workers_seconds() for _ in range(2))
    before, began = verify.timeouts, time.monotonic()
    right = verify_all(pairs)
    took, given_up = time.monotonic() - began, verify.timeouts - before
    wrong = [pairs[i] for i in range(0, len(pairs), 2) if right[i]]
    assert not wrong
    assert all(right[1::2])
    assert took < 2 * (seconds(easy) + len(hostile) * verify.DEADLINE / 10 + given_up * (verify.DEADLINE + new_worker))
    assert not Path("hacked").exists()
    assert all(resident(pid) < 500 for pid in children())
    print(f"{len(hostile)} hostile items, {given_up} given up, {took:.0f} s; a new worker {new_worker:.1f} s")
    assert verify_all([EASY, (r"\boxed{2\sqrt3}", r"\sqrt8")]) == [True, False]


@pytest.mark.parametrize("name", [*BOXES][::4])
def test_a_hostile_box_is_wrong(name):
    assert verify.verify(rf"\boxed{{{BOXES[name]}}}", r"\sqrt{17}") is False


def test_a_stuck_item_holds_nobody_up(monkeypatch):
    """With the first item stuck, forty other symbolic ones are done before its deadline. The clock of verify is ours: it
    stands still until they are done, and then the deadline is over. So the order counts, not the speed of the machine."""
    easy = [(rf"\boxed{{{k}\sqrt2}}", rf"\sqrt{{{2 * k * k}}}") for k in range(2, 42)]
    replies, began = [], time.monotonic()
    monkeypatch.setattr(verify, "os", SimpleNamespace(read=lambda *a: replies.append(os.read(*a)) or replies[-1]))
    over = lambda: replies.count(b"1") == 40 or time.monotonic() - began > 300  # after 300 s it fails rather than hangs
    monkeypatch.setattr(verify, "time", SimpleNamespace(monotonic=lambda: 1e6 if over() else 0.0))
    before = verify.timeouts
    assert verify_all([(r"\boxed{\binom{1000000000}{500000000}+x}", "x"), *easy]) == [False] + [True] * 40
    assert verify.timeouts - before == 1
    assert b"" not in replies  # it did not end by itself: the deadline ended it


@pytest.mark.slow
def test_the_pool_is_right_after_a_hundred_timeouts(monkeypatch):
    monkeypatch.setattr(verify, "DEADLINE", 0.05)
    before = verify.timeouts
    assert not any(verify_all([(rf"\boxed{{\binom{{1000000000}}{{5000000{k}}}x}}", "x") for k in range(100)]))
    assert verify.timeouts - before == 100
    monkeypatch.setattr(verify, "DEADLINE", 3.0)
    assert verify_all([EASY]) == [True]
    assert len(children()) <= verify.WORKERS + 1


def test_a_worker_that_is_killed_from_outside_is_replaced():
    assert verify_all([EASY]) == [True]
    for worker in verify._idle:
        worker.kill()
        worker.wait()
    verify.quick.cache_clear()
    assert verify_all([EASY]) == [True]


def test_workers_that_cannot_start_are_told_of(monkeypatch):
    """As they can't where Math-Verify is missing, or is a version that the replaced parts don't fit."""
    broken, told = [sys.executable, "-c", "import no_such_module"], []
    monkeypatch.setattr(verify, "start", partial(verify.start.func, broken, **verify.start.keywords))
    monkeypatch.setattr(verify, "_idle", [])
    verify.quick.cache_clear()
    monkeypatch.setattr(verify.warnings, "warn", lambda text, **how: told.append(text))
    assert verify_all([EASY]) == [False]
    assert "grading is broken" in told[0] and "requirements.txt" in told[0] and len(told) == 1


def test_workers_end_with_their_parent_even_when_it_is_killed():
    code = ("import os; from core import verify; verify.verify(*%r); print(*[w.pid for w in verify._idle], flush=True); os.kill(os.getpid(), 9)")
    out = subprocess.run([sys.executable, "-c", code % (EASY,)], cwd=ROOT, capture_output=True, text=True).stdout
    pids = list(map(int, out.split()))
    assert pids
    until = time.monotonic() + 120  # one may still import sympy; it reads no line before that
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)


def test_the_training_process_imports_no_sympy():
    code = "import sys; from core import verify; verify.verify('\\\\boxed{2\\\\sqrt2}', '\\\\sqrt8'); print({'sympy', 'torch', 'math_verify'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "set()", out.stderr


# ------------------------------------------------------------------------------------------------ where a limit is refused
WRAPPER = """
import os, resource, runpy, sys, time
from math_verify import grader

def refuse(kind, limits):
    raise ERROR("current limit exceeds maximum limit")

def used_on_macos(who, getrusage=resource.getrusage):  # the most memory ever, in bytes
    pages = int(open("/proc/self/statm").read().split()[1])
    held.append(pages * resource.getpagesize())
    usage = Usage(getrusage(who))
    usage.ru_maxrss = max(held)
    return usage

class Usage(tuple):
    pass

def greedy(gold, answer, *others, compare=grader.sympy_expr_eq, **how):  # h takes a gigabyte, MiB by MiB
    if str(gold) == "h":
        pieces = []
        for _ in range(1024):
            pieces.append(bytearray(os.urandom(1024) * 1024))
            time.sleep(0.002)
        return True
    return compare(gold, answer, *others, **how)

held = []
if "PLATFORM" == "linux":
    bytearray(500 * 2**20)  # so that the most it ever held is too much, as what a worker inherits from training
resource.setrlimit = refuse
grader.sympy_expr_eq = greedy
sys.platform = "PLATFORM"
if sys.platform == "darwin":
    resource.getrusage = used_on_macos
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture(params=["linux, OSError", "darwin, ValueError"])
def no_limits(request, monkeypatch):
    """Workers on a system that refuses all limits, as macOS refuses RLIMIT_AS."""
    platform, error = request.param.split(", ")
    code = WRAPPER.replace("PLATFORM", platform).replace("ERROR", error)
    command = [sys.executable, "-P", "-c", code, verify.__file__]
    monkeypatch.setattr(verify, "start", partial(verify.start.func, command, **verify.start.keywords))
    monkeypatch.setattr(verify, "_idle", [])
    monkeypatch.setattr(verify, "DEADLINE", 300)
    monkeypatch.setattr(verify.warnings, "warn", lambda text, **how: pytest.fail(text))
    verify.quick.cache_clear()
    yield
    for worker in verify._idle:
        with worker:
            worker.kill()


def test_a_limit_that_the_system_refuses_is_left_out(no_limits):
    before = verify.timeouts
    assert verify_all([(r"\boxed{\frac{x+1}{2}}", r"\frac{1+x}{2}"), (r"\boxed{\frac{x+1}{2}}", r"\frac{x}{2}")]) == [True, False]
    assert verify.timeouts == before


def test_without_a_limit_of_the_system_a_worker_still_gives_up_what_takes_too_much_memory(no_limits):
    easy = [(rf"\boxed{{{k}\sqrt2}}", rf"\sqrt{{{2 * k * k}}}") for k in range(2, 8)]
    before = verify.timeouts
    assert verify_all([*easy[:3], (r"\boxed{h+0}", "h"), *easy[3:]]) == [True] * 3 + [False] + [True] * 3
    assert verify.timeouts - before == 1


@pytest.mark.slow
def test_without_a_limit_of_the_system_the_deadline_stays(no_limits, monkeypatch, deadline):
    monkeypatch.setattr(verify, "DEADLINE", deadline)
    before = verify.timeouts
    assert verify_all([(r"\boxed{\binom{1000000000}{500000000}+x}", "x"), EASY]) == [False, True]
    assert verify.timeouts - before == 1
