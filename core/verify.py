r"""Is a response right? core/answers.py finds the final answer and decides the easy cases. This file decides the rest.

The final answer is the content of the last balanced \boxed{...}. Without a box it is the text after the last "answer
is". It is compared with the gold answer, the cheapest way first: as strings, as exact numbers, and last as sympy
expressions by the rules of Math-Verify. Sympy can hang, so it runs in worker processes with a deadline. No response
can make grading raise. Text of a model is never run as code. Equal means exactly equal: 0.333 is not 1/3, and 1/2^99
is not 1/2^98. This file does not import torch, so the workers start fast and stay small."""

import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
import warnings
from functools import lru_cache, partial
from multiprocessing.connection import wait  # it only waits for pipes; multiprocessing starts no process here
from pathlib import Path

if __name__ == "__main__":  # a worker; the training process never imports sympy
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, is_expr_of_only_symbols, latex2sympy
    from math_verify import grader
else:
    from core.answers import CONTROL, LONGEST, extract, gold_answer, last_boxed, normalise, number, quick  # noqa: F401

DEADLINE = 3.0  # seconds for one item, counted from when a worker picks it up
START_DEADLINE = 60  # seconds for a worker to import sympy and pick up its item
# The most bytes of a worker, which normally needs a fifth of them. This limits its address space. Some systems can't do
# that. There it limits the resident memory, which is nearly the same for a worker.
MEMORY = 400 * 2**20
WORKERS = max(2, min(8, (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))  # 2: one can hang
timeouts = 0  # items that this process gave up (deadline, memory, a dead worker); they count as wrong


# ------------------------------------------------------------------------------------------------ in a worker
# Math-Verify compares structures (sets, intervals, tuples, ...). Inside them, equal() compares single expressions and
# equivalent() compares relations: they replace Math-Verify's own comparisons, which are not exact.
@lru_cache(512)
def parse(text: str):
    """Parse a normalised answer with Math-Verify's parser: an unevaluated sympy expression, with exact decimals."""
    text = text.partition('"')[0].replace("*", r"\cdot ").rstrip("%")  # normalise() put the unit after the "
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)  # .5 is 0.5
    case = ConversionConfig(lowercase_symbols=False)  # R is not r
    tree = latex2sympy(text, is_real=True, normalization_config=None, conversion_config=case)
    changes = {value: sympy.Rational(str(value)) for value in tree.atoms(sympy.Float)}
    changes |= {symbol: sympy.I for symbol in tree.free_symbols if symbol.name == "i" and r"\sum" not in text}
    tree = tree.xreplace(changes) if changes else tree
    if isinstance(tree, sympy.FiniteSet) and all(part.is_Relational and not part.is_Equality for part in tree.args):
        return sympy.Union(*(part.as_set() for part in tree.args))  # x<1 or x>2
    return tree


def test_point(symbols: list, k: int) -> dict:
    """A value for each symbol at test point k = 0..4. Symbols such as n get a positive whole number, the others a
    fraction. At points 3 and 4 one of the symbols is negative, unless it is a whole number."""
    point = {}
    for i, symbol in enumerate(symbols):
        value = (13 + 31 * i + 17 * k) % 97 or 5
        negative = k > 2 and i == k % len(symbols)
        whole = symbol.name[0] in "jklmnN"
        point[symbol] = sympy.Integer(value % 23 + 2) if whole else sympy.Rational(-value if negative else value, 41)
    return point


def equal(gold, answer, *_) -> bool:
    """Whether two expressions are equal, by their difference at the test points. It must be 0 at every point where it
    is real, and at one or more points. Up to 80 digits are computed. A rational difference must be exactly 0."""
    if gold.is_Matrix or answer.is_Matrix:
        return all(equal(entry, sympy.S.Zero) for entry in sympy.Matrix(gold.doit() - answer.doit()))
    difference = sympy.Add(gold, sympy.Mul(-1, answer, evaluate=False), evaluate=False)
    symbols = sorted(difference.free_symbols, key=str)
    found_zero = False
    for k in range(5 if symbols else 1):
        point = test_point(symbols, k)
        try:
            value = difference.evalf(15, subs=point, maxn=80, strict=True)
        except sympy.core.evalf.PrecisionExhausted:  # the difference is 0, or large numbers cancel
            is_tiny = abs(difference.evalf(15, subs=point, maxn=80)) < 1e-40
            value = sympy.S.Zero if is_tiny else sympy.S.One
        if not value.is_number:  # the difference contains undefined functions
            return sympy.simplify(difference) == 0
        if value.is_zero is False and (value.is_real or not symbols):
            return False
        found_zero = found_zero or value.is_zero is True
    if not found_zero:
        return False
    exact = difference.doit()
    return not exact.is_Rational or exact == 0


def equivalent(gold, answer, *_) -> bool:
    """Whether two equations or inequalities say the same: left side minus right side is equal up to a factor, and both
    point the same way. Chains such as a < b < c: the answer must contain every relation of the gold chain."""
    golds, answers = (list(getattr(relation, "_unsorted_args", [relation])) for relation in (gold, answer))
    if len(golds) > 1 or len(answers) > 1:
        return len(golds) == len(answers) and all(any(equivalent(g, a) for a in answers) for g in golds)
    f, g = gold.lhs - gold.rhs, answer.lhs - answer.rhs
    point = {symbol: sympy.Integer(7 + 6 * i) for i, symbol in enumerate(sorted(f.free_symbols, key=str))}
    f_value, g_value = f.evalf(15, subs=point), g.evalf(15, subs=point)
    if gold == answer:
        return True
    if not (f_value.is_real and g_value.is_real and f_value * g_value != 0):
        return False
    direction = gold.func if f_value * g_value > 0 else gold.reversed.func  # a negative factor turns < into >
    return answer.func == direction and equal(f * g.subs(point), g * f.subs(point))


def compare(answer, gold) -> bool:
    """Whether two parsed answers are equal by Math-Verify's rules. If only the answer is an equation, Math-Verify
    compares its right side with the gold answer. We allow this for x=4 and f(x)=4, but 2x=4 is not 4."""
    if grader.is_equation(answer):
        left = grader.take_first_relation(answer).lhs
        if not (left.is_Function or is_expr_of_only_symbols(left) or grader.is_relation(gold)):
            return False
    return grader.sympy_expr_eq(gold, answer, float_rounding=6, numeric_precision=15, allow_set_relation_comp=True)


def limited(kind: int, most: int) -> bool:
    """Set a limit of this process. False if the system refuses it, as macOS refuses RLIMIT_AS."""
    try:
        resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))
    except (ValueError, OSError):
        return False
    return True


def too_big() -> bool:
    """Whether this worker uses more than MEMORY. On macOS: whether it ever did. On Linux that number is useless:
    a process inherits the maximum of the process that started it, here the training process."""
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() > MEMORY
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) > MEMORY  # bytes on macOS, KiB elsewhere


def watch_memory():
    """A thread that ends the worker if it is too big, for systems that can't limit its memory. The thread can't run
    while Python computes with one huge integer. Then the deadline ends the worker."""
    while not too_big():
        time.sleep(0.02)
    os._exit(1)


def work():
    """The worker's loop. Each line on stdin is one item as JSON, [answer, gold]. The worker writes "." when it picks up
    the item. At the end it writes "1" for equal or "0" for different."""
    grader.sympy_numeric_eq = grader.sympy_compare_symbols = equal
    grader.sympy_symbolic_eq = lambda *_: False
    grader.sympy_compare_relational = equivalent
    equal(*map(parse, (r"\frac{\sqrt{2x^2-1}+3}{2\pi}", r"(1+x_1)\cdot5^{-n}")))  # the first is slow, so do it now
    watched = not limited(resource.RLIMIT_AS, MEMORY)
    if watched:
        threading.Thread(target=watch_memory, daemon=True).start()
    for line in sys.stdin.buffer:
        os.write(1, b".")
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])  # seconds of CPU, user and system
        # If the parent process is dead, nobody kills a stuck worker. So the system does it, after 60 s more of CPU.
        limited(resource.RLIMIT_CPU, int(used) + 60)
        try:
            answer, gold = map(parse, json.loads(line))
            right = compare(answer, gold)
        except MemoryError:
            return
        except Exception:  # sympy raises many kinds
            right = False
        if watched and too_big():  # watch_memory() has not seen it yet; the next item must not suffer
            return
        os.write(1, b"1" if right else b"0")


# ------------------------------------------------------------------------------------------------ the workers
_idle = []  # workers without an item; when this process ends, their stdin closes and they end too
start = partial(subprocess.Popen, [sys.executable, "-P", __file__, "--worker"], bufsize=0, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def in_workers(items: list[tuple[str, str]]) -> list[bool]:
    """Whether the two are equal, for each (answer, gold). If an item is too slow, its worker is killed and the item is
    False. The other items go on."""
    global timeouts
    results = [False] * len(items)
    todo = list(enumerate(items))[::-1]
    jobs = {}  # worker: (index of its item, deadline, whether it has picked up the item)
    _idle[:] = [worker for worker in _idle if worker.poll() is None]
    try:
        while todo or jobs:
            while todo and len(jobs) < WORKERS:
                worker = _idle.pop() if _idle else start()
                index, item = todo.pop()
                jobs[worker] = index, time.monotonic() + START_DEADLINE, False
                worker.stdin.write(json.dumps(item).encode() + b"\n")
            rest = min(deadline for _, deadline, _ in jobs.values()) - time.monotonic()
            ready = wait([worker.stdout for worker in jobs], timeout=max(0, rest))
            for worker, (index, deadline, picked_up) in list(jobs.items()):
                reply = os.read(worker.stdout.fileno(), 1) if worker.stdout in ready else None
                ended = reply == b""
                if reply == b".":
                    jobs[worker] = index, time.monotonic() + DEADLINE, True
                elif reply:
                    results[index] = reply == b"1"
                    del jobs[worker]
                    _idle.append(worker)
                elif ended or time.monotonic() > deadline:
                    timeouts += 1
                    del jobs[worker]
                    with worker:  # closes its pipes and waits until it has ended
                        worker.kill()
                    if ended and not picked_up:
                        warnings.warn("grading is broken: a worker ended before its first item. `python core/verify.py "
                                      "--worker` says why. pip install -r requirements.txt may help", stacklevel=2)
    finally:
        for worker in jobs:  # some are left only after an interrupt
            worker.kill()
    return results


# ------------------------------------------------------------------------------------------------ what others call
def right(score):
    """Whether a score or reward counts as right. Works elementwise on tensors. This is the only threshold."""
    return score > 0.5


SEPARATOR = r"(?:,|\s++|(?:\{,\}|,?\\[!,;: ])\s*+)"
INTEGER = re.compile(rf"([-+]?)([0-9]{{1,3}}(?:{SEPARATOR}[0-9]{{3}})++|[0-9]++)(?:\.0*+)?+")


def as_string(answer: str) -> str:
    """The string to compare for an answer longer than LONGEST. For an integer: its digits, because int() is slow or
    refuses so many. Anything else: the text itself. "" if it has control characters."""
    answer = "" if CONTROL.search(answer) else answer.replace("\u2212", "-").strip("$\\ \t\r\n。")
    if not (match := INTEGER.fullmatch(answer)):
        return answer
    return match[1].strip("+") + (re.sub("[^0-9]", "", match[2]).lstrip("0") or "0")


def verify_all(pairs: list[tuple[str, str]], strict: bool = True) -> list[bool]:
    """verify() for every pair (response, gold), in order. Never raises. A pair that needs more than DEADLINE seconds
    is False."""
    results, hard = [], {}  # hard: {item for a worker: its indices in results}
    for response, gold in pairs:
        answer, gold = extract(response, strict) or "", gold_answer(gold)
        try:
            if max(len(answer), len(gold)) <= LONGEST:
                verdict = quick(answer, gold)
            else:
                verdict = as_string(answer) != "" and as_string(answer) == as_string(gold)
        except Exception:  # hostile text can hit Python's limits, such as the digits of an int
            verdict = False
        if isinstance(verdict, tuple):  # undecided
            if not _idle and not hard:
                _idle.append(start())  # it imports sympy while the loop goes on
            hard.setdefault(verdict, []).append(len(results))
        results.append(verdict is True)
    for indices, right in zip(hard.values(), in_workers(list(hard))):
        for index in indices:
            results[index] = right
    return results


def verify(response: str, gold: str, strict: bool = True) -> bool:
    """Whether the final answer of a response equals the gold answer. strict False: if the response has no box and no
    "answer is", its last number is its answer."""
    return verify_all([(response, gold)], strict)[0]


if __name__ == "__main__":
    work()
