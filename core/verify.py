r"""Is a response right? No torch in here. answers.py finds the final answer and decides the easy cases.

The last balanced \boxed{...}, else what follows the last "answer is", is compared, the cheapest first: strings, exact
numbers, sympy expressions by the rules of Math-Verify; these in worker processes under a deadline, for they can hang.
Nothing raises or runs model output as code. Equal is exactly equal: 0.333 is not 1/3, nor 1/2^99 like 1/2^98."""

import json
import os
import re
import resource
import subprocess
import sys
import time
import warnings
from functools import lru_cache, partial
from multiprocessing.connection import wait  # poll() for pipes; no other multiprocessing

if __name__ == "__main__":  # a worker; the training process imports none of it
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, is_expr_of_only_symbols, latex2sympy
    from math_verify import grader
else:
    from core.answers import LONGEST, as_string, extract, gold_answer, last_boxed, normalise, number, quick  # noqa: F401

DEADLINE = 3.0  # seconds for one item, from when a worker picks it up
MEMORY = 400 * 2**20  # bytes of address space of a worker, which needs a fifth of that
WORKERS = max(2, min(8, (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))  # 2: one may be stuck
timeouts = 0  # items this process has given up so far (deadline, memory, a dead worker); they count as wrong

# --- in a worker: Math-Verify's comparison of sympy expressions, with its leaves replaced by exact ones ---


@lru_cache(512)
def parse(text: str):
    """The unevaluated sympy expression of a normalised answer, as Math-Verify's parser reads it, its decimals exact."""
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text.partition('"')[0].replace("*", r"\cdot ").rstrip("%"))
    case = ConversionConfig(lowercase_symbols=False)  # R is not r
    tree = latex2sympy(text, is_real=True, normalization_config=None, conversion_config=case)
    changes = {value: sympy.Rational(str(value)) for value in tree.atoms(sympy.Float)}
    changes |= {symbol: sympy.I for symbol in tree.free_symbols if symbol.name == "i" and r"\sum" not in text}
    tree = tree.xreplace(changes) if changes else tree
    if isinstance(tree, sympy.FiniteSet) and all(part.is_Relational and not part.is_Equality for part in tree.args):
        return sympy.Union(*(part.as_set() for part in tree.args))  # x<1 or x>2
    return tree


def equal(gold, answer, *_) -> bool:
    """Whether two expressions are: to 80 digits wherever their difference is real, exactly so if that is rational."""
    if gold.is_Matrix or answer.is_Matrix:
        return all(equal(entry, sympy.S.Zero) for entry in sympy.Matrix(gold.doit() - answer.doit()))
    tree, zeros = sympy.Add(gold, sympy.Mul(-1, answer, evaluate=False), evaluate=False), 0
    symbols = sorted(tree.free_symbols, key=str)
    for k in range(5 if symbols else 1):  # n and its like are whole numbers; at the last points one number is negative
        values = [(13 + 31 * i + 17 * k) % 97 or 5 for i in range(len(symbols))]
        point = {symbol: sympy.Integer(value % 23 + 2) if symbol.name[0] in "jklmnN" else
                 sympy.Rational(-value if k > 2 and symbol == symbols[k % len(symbols)] else value, 41)
                 for symbol, value in zip(symbols, values)}  # fmt: skip
        try:
            value = tree.evalf(15, subs=point, maxn=80, strict=True)
        except sympy.core.evalf.PrecisionExhausted:  # 0, or next to large numbers that cancel
            value = sympy.S.Zero if abs(tree.evalf(15, subs=point, maxn=80)) < 1e-40 else sympy.S.One
        if not value.is_number:  # of functions that nobody defined
            return sympy.simplify(tree) == 0
        if value.is_zero is False and (value.is_real or not point):
            return False
        zeros += value.is_zero is True
    return zeros > 0 and not ((tree := tree.doit()).is_Rational and tree != 0)


def equivalent(gold, answer, *_) -> bool:
    """Whether two (chains of) equations or inequalities say the same: their differences are equal up to a factor."""
    golds, answers = (list(getattr(relation, "_unsorted_args", [relation])) for relation in (gold, answer))
    if len(golds) > 1 or len(answers) > 1:
        return len(golds) == len(answers) and all(any(equivalent(g, a) for a in answers) for g in golds)
    f, g = gold.lhs - gold.rhs, answer.lhs - answer.rhs
    point = {symbol: sympy.Integer(7 + 6 * i) for i, symbol in enumerate(sorted(f.free_symbols, key=str))}
    u, v = f.evalf(15, subs=point), g.evalf(15, subs=point)
    if gold == answer or not (u.is_real and v.is_real and u * v != 0):
        return gold == answer
    way = gold.func if u * v > 0 else gold.reversed.func
    return answer.func == way and equal(f * g.subs(point), g * f.subs(point))


def work():
    """Reads lines with an answer and a gold answer from stdin, writes a dot when it picks one up and then 1 or 0."""
    grader.sympy_numeric_eq = grader.sympy_compare_symbols = equal
    grader.sympy_symbolic_eq, grader.sympy_compare_relational = lambda *_: False, equivalent
    equal(*map(parse, (r"\frac{\sqrt{2x^2-1}+3}{2\pi}", r"(1+x_1)\cdot5^{-n}")))  # the first time is slow
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin.buffer:
        os.write(1, b".")
        seconds = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + 60  # if the parent died and can't kill it
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        try:
            answer, gold = map(parse, json.loads(line))
            name = grader.take_first_relation(answer).lhs if grader.is_equation(answer) else sympy.Symbol("x")
            right = name.is_Function or is_expr_of_only_symbols(name) or grader.is_relation(gold)  # 2x=4 is not 4
            right = right and grader.sympy_expr_eq(gold, answer, 6, 15, allow_set_relation_comp=True)
        except MemoryError:
            return
        except Exception:
            right = False
        os.write(1, b"1" if right else b"0")


# --- the workers, and what others call ---

_idle = []  # workers without an item; when this process ends their stdin does, and so do they
start = partial(subprocess.Popen, [sys.executable, "-P", __file__, "--worker"], bufsize=0, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip


def in_workers(items: list[tuple[str, str]]) -> list[bool]:
    """The verdict on every (answer, gold), False for one that is given up: its worker is killed, the others go on."""
    global timeouts
    right, jobs, todo = [False] * len(items), {}, list(enumerate(items))[::-1]
    _idle[:] = [worker for worker in _idle if worker.poll() is None]
    try:
        while todo or jobs:
            while todo and len(jobs) < WORKERS:
                worker, (place, item) = _idle.pop() if _idle else start(), todo.pop()
                jobs[worker] = place, time.monotonic() + 60, False  # to import and pick it up
                worker.stdin.write(json.dumps(item).encode() + b"\n")
            rest = min(deadline for _, deadline, _ in jobs.values()) - time.monotonic()
            ready = wait([worker.stdout for worker in jobs], max(0, rest))
            for worker, (place, deadline, begun) in list(jobs.items()):
                reply = os.read(worker.stdout.fileno(), 1) if worker.stdout in ready else None
                if reply == b".":
                    jobs[worker] = place, time.monotonic() + DEADLINE, True
                elif reply:
                    right[place], jobs[worker] = reply == b"1", None
                    _idle.append(worker)
                elif reply == b"" or time.monotonic() > deadline:
                    timeouts, jobs[worker] = timeouts + 1, None
                    with worker:
                        worker.kill()
                    if reply == b"" and not begun:
                        warnings.warn("grading is broken, a worker ended before it began: `python verify.py --worker` "
                                      "tells why; pip install -r requirements.txt may help", stacklevel=2)  # fmt: skip
            jobs = {worker: job for worker, job in jobs.items() if job}
    finally:
        for worker in jobs:  # none, but after an interrupt
            worker.kill()
    return right


def verify_all(pairs: list[tuple[str, str]], strict: bool = True) -> list[bool]:
    """verify() of every (response, gold) pair, in order; one that takes over DEADLINE seconds is False."""
    results, hard = [], {}
    for response, gold in pairs:
        answer, gold = extract(response, strict) or "", gold_answer(gold)
        try:
            short = max(len(answer), len(gold)) <= LONGEST
            right = quick(answer, gold) if short else bool(text := as_string(answer)) and text == as_string(gold)
        except Exception:  # a limit of Python's, on hostile text
            right = False
        if isinstance(right, tuple):
            if not _idle and not hard:
                _idle.append(start())  # it imports meanwhile
            hard.setdefault(right, []).append(len(results))
        results.append(right is True)
    for places, right in zip(hard.values(), in_workers(list(hard))):
        for place in places:
            results[place] = right
    return results


def verify(response: str, gold: str, strict: bool = True) -> bool:
    """Whether the response's final answer equals the gold answer; not strict: its last number is one if need be."""
    return verify_all([(response, gold)], strict)[0]


if __name__ == "__main__":
    work()
