r"""Is a response right? Extraction of the final answer and its comparison with the gold answer; no torch in here.

verify(response, gold) takes the last balanced \boxed{...}, else what follows the last "answer is", and compares it, the
cheapest first: normalised strings, exact numbers, then sympy expressions by the rules of Math-Verify. Only that last step
can hang or eat memory, so it runs in worker processes, each item under a deadline. Nothing raises or runs model output as
code. Equal means exactly equal: 0.333 is not 1/3, and no tolerance makes 1/2^99 into 1/2^98."""

import atexit
import json
import os
import random
import re
import resource
import subprocess
import sys
import time
from fractions import Fraction
from functools import lru_cache
from multiprocessing.connection import wait  # poll() for pipes; no other multiprocessing

if __name__ == "__main__":  # a worker; the training process imports none of it
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from math_verify import grader
    from sympy.core.evalf import PrecisionExhausted
    from sympy.core.function import AppliedUndef

    EXACT_CASE = ConversionConfig(lowercase_symbols=False)  # R is not r

DEADLINE = 3.0  # seconds for one item, from when a worker picks it up
MEMORY = 400 * 2**20  # bytes of address space of a worker, which needs a fifth of that
WORKERS = max(2, min(8, (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))  # 2: one may be stuck
LONGEST = 500  # characters; a longer answer is only compared as a string (gold answers reach 200)
timeouts = 0  # items this process has given up so far (deadline, memory, a dead worker); they count as wrong

# --- the text of an answer, from a response or a field of a data set ---

INNER = r"[^{}\\]|\\."
for _ in range(9):  # braces in braces; possessive, so hostile text costs no backtracking
    INNER = rf"[^{{}}\\]|\\.|\{{(?:{INNER})*+\}}"
BOX = re.compile(rf"\\(?:boxed|fbox)(?:\s*+\{{((?:{INNER}){{0,4000}}+)\}}|\s++([^\s$\\{{]++))", re.DOTALL)
PHRASE = re.compile(r"(?:answer|solution|result)s?\b(?:[^.\n$\\:=]{0,60}?\b(?:is|are|equals)\b|\s*[:=])|####|答案\s*[是为:：]"
                    r"|\banswer\s+(?=[$\\])|\$([^$\n]{1,200})\$\s+is\s+(?:the|our)\s+(?:answer|solution)\b", re.I)  # fmt: skip
FORMULA = r"(?:\$\$?[^$]+\$\$?|\\\((?:[^\\]|\\[^)])+\\\)|\\\[(?:[^\\]|\\[^\]])+\\\])"
FORMULAS = re.compile(rf"{FORMULA}(?:\s*(?:,|,?\s*and|,?\s*or)\s*{FORMULA})*\s*(?:%|percent)?")
FILLER = re.compile(r"(?:(?:therefore|thus|simply|just|clearly|exactly|about|approximately|equal to|given by|option|"
                    r"choice|indeed|then|now|the|an?)\s+|[\s:*_`])*", re.I)  # fmt: skip
LAST = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?|-?\.\d+")


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...} whose braces balance (or \fbox{...}, \boxed 4); None without one."""
    boxes = BOX.findall(text)
    content = boxes[-1][0] or boxes[-1][1] if boxes else None
    inner = last_boxed(content) if content else None
    return content if inner is None else inner


def extract(response: str, strict: bool = True) -> str | None:
    """The final answer of a response: last box, else after the last "answer is", else (not strict) the last number.

    After the phrase it is formulas, the letter of a choice, the one number in prose, or the rest of the sentence."""
    boxed, text = last_boxed(response), response[-20_000:]
    if boxed is not None:
        return boxed
    phrase = [*PHRASE.finditer(text), None][-2:][0]
    numbers = LAST.findall(text)
    if phrase is None:
        return numbers[-1] if numbers and not strict else None
    text = phrase.group(1) or text[phrase.end() : phrase.end() + LONGEST]
    text = text[FILLER.match(text).end() :]
    if match := FORMULAS.match(text):
        return match.group()
    text = re.split(r"\b(?:is|are|equals)\s", re.split(r"\n|<\||I hope|[.!?](?:\s|$)", text, maxsplit=1)[0])[-1]
    text = text[FILLER.match(text).end() :].strip(' *_`"$')
    numbers = LAST.findall(text)
    if len(numbers) == 1 and "\\" not in text and len(re.findall(r"[A-Za-z]{2,}", text)) > 2:
        return numbers[0]
    return re.sub(r"^\(?([A-J])[.,:)].*", r"\1", text)


def gold_answer(answer, unit: str | None = None) -> str:
    """The gold answer in a data set's field: what is boxed, or follows ####, or all of it; all elements of a list.

    unit: one that the data set states (OlympiadBench); with it, an answer in another unit is wrong."""
    if isinstance(answer, list | tuple):
        return ", ".join(gold_answer(part, unit) for part in answer)
    answer = "" if answer is None else str(answer)
    boxed = last_boxed(answer)
    answer = re.sub(r"(\d)\.0$", r"\1", (answer.rpartition("####")[2] if boxed is None else boxed).strip())
    unit = (unit or "").strip("$ ").replace("%", r"\%")
    return answer + (rf" \text{{ {unit}}}" if re.fullmatch(r"[A-Za-z/^\d\\%]+", unit) and "=" not in answer else "")


# --- one way of writing it ---

UNICODE = {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "°": "",
           "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ",
           "√": r"\sqrt ", "½": r"\frac{1}{2}", "²": "^2", "³": "^3", "≈": r"\approx ", "，": ",", "’": "'"}  # fmt: skip
FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|theta|alpha|beta|infty"
TEXT = r"\\(?:text\w*|[mh]box|math(?:rm|bf|it|sf|normal)|operatorname\*?)\s*\{\s*"
UNIT = rf" ?(?:[ckm]m|[km]g|ml|in|ft|mi|hr|min|[ap]\.?m\.?)| (?!(?:{FUNCTIONS}|mod|times|if)\b)[A-Za-z]{{3,}}[A-Za-z. /]*"
RULES = [(re.compile(pattern), new) for pattern, new in (
    (r'\\?\$|["\0\x1f]|(?<!\\)\\[()\[\]]|\\(?:left|right|displaystyle|limits|[bB]igg?[lr]?)(?![a-zA-Z])\.?', ""),
    (r"\{\\(?:rm|bf|it)\s", r"\\text{"), (r"\\[dtc]frac(?![a-z])", r"\\frac"), (r"([bB]|small)matrix\}", "pmatrix}"),
    (r"(?<=\d)(?:,?\\[!,;: ]|\{,\})\s*(?=\d{3}(?!\d))", ""),  # thousands
    (r"\\[!,;: ]|\\q?quad(?![a-z])|~|\s+", " "), (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-z])", ""),
    (rf",?\s*(?:{TEXT},?\s*(?:and|or)\s*\}}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*,?", ","),
    (rf"\s*\\?%|\s*(?:{TEXT})?(?:percentage|percent|pct)(?![a-z])\s*\}}?", "%"),
    (rf"(?<=[\w}})!])\s*{TEXT}([A-Za-z.][^{{}}\d]*)\}}\s*(\^\s*\{{?-?\d\}}?)?(?=$|[,;)/\s])", r'"\1\2"'),
    (rf"{TEXT}([^{{}}]*)\}}", r"\1"), (rf"(?<=\d)((?:{UNIT})(?:\^\{{?\d\}}?)?)(?=$|[,;)])", r'"\1"'),
    (rf"(?<![\\A-Za-z])({FUNCTIONS})(?![A-Za-z])", r"\\\1"), (r"\\(max|min) *(?=\})", r"\1"),
    (r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])|\+\s*\\infty", r"\\infty"),
    (r"\\(?:varnothing|empty)(?![a-z])|(?i:^no (?:real )?solutions?$|^(?:the )?empty set$)|\\\{\s*\\\}", r"\\emptyset"),
    (r"(?:\\geqslant|\\geq|>=)(?![a-z])", r"\\ge "), (r"(?:\\leqslant|\\leq|<=)(?![a-z])", r"\\le "),
    (r"(?:\\neq|!=)(?![a-z])", r"\\ne "), (r"\\lt(?![a-z])", "<"), (r"\\gt(?![a-z])", ">"),
    (r"\\[lr]vert(?![a-z])", "|"), (r"\\langle(?![a-z])", "("), (r"\\rangle(?![a-z])", ")"),
    (r"\\frac\s*([^{}\s\\])", r"\\frac{\1}"), (r"(\\frac\s*\{[^{}]*\})\s*([^{}\s\\])", r"\1{\2}"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"), (r"\\sqrt\s*(\d+|[^{}\[\s\\])", r"\\sqrt{\1}"),
    (r"\*\*", "^"), (r"\^\s*\(([^()]*)\)", r"^{\1}"), (r"\^\s*(-?\d+)", r"^{\1}"), (r"'", r"^{\\prime}"),
    (r"(?<=\d) +(\d+)/(\d+)", r"\\frac{\1}{\2}"), (r"(?<![\d.])(\d{1,3}) (?=\d{3}(?!\d))", r"\1"),
    (r"(?<=\d) +(?=\d)", ","), (r"(\\[A-Za-z]+) +(?=[A-Za-z])", "\\1\x1f"), (r" +", ""), ("\x1f", " "),
    (r"([\^_])\{(\w)\}", r"\1\2"), (r"^([0-9A-F]+)_\{?\(?(\d+)\)?\}?$", lambda match: str(int(match[1], int(match[2])))),
    (r"(\d+)\.(\d*)\\(?:overline|bar)\{?(\d+)\}?", lambda match: repeating(*match.groups())),
    (r"^([^:,()]+):([^:,()]+):([^:,()]+)$", r"(\\frac{\1}{\3},\\frac{\2}{\3})"), (r"^,+|[.,]+$|(?<=\d)\.(?=/)", ""),
    (r"^([-+]?)\(?([\d.]+)\)?/\(?(-?[\d.]+)\)?(?=%?$)", r"\1\\frac{\2}{\3}"),
    (r"^([^(\[,]*)(?<![\d,.])(\d{1,3}(?:,\d{3})+)(?![\d,])", lambda match: match[1] + match[2].replace(",", "")),
)]  # fmt: skip
UNITS = dict(pair.split("=") for pair in (
    "meter=m metre=m kilometer=km centimeter=cm millimeter=mm mile=mi yard=yd foot=ft feet=ft inche=in inch=in second=s "
    "sec=s minute=min hour=h hr=h gram=g kilogram=kg pound=lb ounce=oz liter=l litre=l dollar=$ cent=c am=am pm=pm m=m "
    "km=km cm=cm mm=mm mi=mi ft=ft in=in s=s min=min h=h g=g kg=kg mg=mg lb=lb oz=oz ml=ml day=day week=week year=year "
    "^=^ /=/ per=/ 2=2 3=3").split())  # fmt: skip
SCALES = {"hundred": 100, "dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+))"
DECIMAL = re.compile(rf"{NUMBER}(?:[eE]([-+]?\d{{1,4}})|(?:\\times|\\cdot|\*)10\^(\d|\{{[-+]?\d{{1,4}}\}}))?")
FRACTION = re.compile(rf"([-+]?)(\d*)\\frac\{{{NUMBER}\}}\{{{NUMBER}\}}")


def repeating(whole: str, fixed: str, period: str) -> str:
    """The fraction of a repeating decimal: ("0", "1", "6") is 0.1666..."""
    top = int(whole + fixed + period) - int(whole + fixed)
    return rf"\frac{{{top}}}{{{10 ** len(fixed) * (10 ** len(period) - 1)}}}"


@lru_cache(4096)
def normalise(answer: str) -> str:
    r"""One way of writing an answer: 1,\!234 becomes 1234, \dfrac12 \frac{1}{2}, 5 \text{ cm} 5"cm", 90^\circ 90."""
    answer = "".join(UNICODE.get(letter, letter) for letter in answer.strip())
    for pattern, new in () if answer.isdecimal() else RULES:
        answer = pattern.sub(new, answer)
    return answer


def measured(text: str) -> tuple[str, str, int]:
    r"""12"million km^2" is (12, km^2, 10**6); the unit is "" where none is known."""
    value, _, unit = text.partition('"')
    words, scale = unit.lower().replace(".", "").replace('"', ""), 1
    for word, times in SCALES.items():
        words, found = re.subn(rf"\b{word}s?\b", "", words)
        scale *= times**found
    names = [UNITS.get(word, UNITS.get(word.rstrip("s"), "?")) for word in re.findall(r"[a-z]+|[/^]|-?\d", words)]
    return value, "" if "?" in names else "".join(names), scale


def number(text: str) -> Fraction | None:
    """The exact value of a (normalised) decimal, fraction or mixed number, else None."""
    if match := DECIMAL.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int((match[2] or match[3] or "0").strip("{}"))
    sign, whole, top, bottom = match.groups() if (match := FRACTION.fullmatch(text)) else ("", "", 0, 0)
    if not Fraction(bottom):
        return None
    value = int(whole or 0) + Fraction(top) / Fraction(bottom)
    return -value if sign == "-" else value


@lru_cache(4096)
def quick(answer: str, gold: str) -> bool | None:
    """Whether two answers are equal if text and exact numbers decide that, else None."""
    answer, gold = normalise(answer), normalise(gold)
    if not answer or answer == gold:
        return bool(answer)
    if re.fullmatch(r"\(?[A-J]\)?", gold) and (match := re.fullmatch(r"\(?([A-J])\)?(?:[.:)].*)?", answer)):
        return match[1] in gold
    if gold.isalpha() and answer.isalpha() and len(gold) > 3:
        return answer.casefold() == gold.casefold()
    if re.search(r"\d:\d\d(?!\d)|dots", answer + " " + gold):  # a time is no ratio; what dots stand for is not known
        return answer.rpartition("=")[2] == gold.rpartition("=")[2]
    (a, unit, scale), (g, gold_unit, gold_scale) = measured(answer), measured(gold)
    if unit and gold_unit and unit != gold_unit or re.search(r"\^\{[^{}^]*\^\{[^{}^]*\^", answer):  # a tower
        return False
    x, y = number(a.rstrip("%")), number(g.rstrip("%"))
    if x is None or y is None:
        return None
    percent = {a.endswith("%") - g.endswith("%"), 0}  # 50% is as good as 50 or 0.5
    return any(x * scale == y * gold_scale * 100**power for power in percent)


# --- in a worker: Math-Verify's comparison of sympy expressions, with its leaves replaced by exact ones ---


@lru_cache(512)
def parse(text: str):
    """The unevaluated sympy expression of a normalised answer, as Math-Verify's parser reads it, its decimals exact."""
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", measured(text)[0].replace("*", r"\cdot ").rstrip("%"))
    tree = latex2sympy(text, is_real=True, normalization_config=None, conversion_config=EXACT_CASE)
    changes = {value: sympy.Rational(str(value)) for value in tree.atoms(sympy.Float)}
    changes |= {symbol: sympy.I for symbol in tree.free_symbols if symbol.name == "i" and r"\sum" not in text}
    return tree.xreplace(changes) if changes else tree


def points(symbols):
    """Values for the symbols, eight times: whole ones for names such as n, and at the last places one is negative."""
    for k in range(8 if symbols else 1):
        draw, symbols = random.Random(k), sorted(symbols, key=str)
        yield {symbol: sympy.Integer(draw.randint(2, 25)) if symbol.name[0] in "jklmnN" else
               sympy.Rational(draw.randint(5, 99) * (-1 if k > 4 and i == k % len(symbols) else 1), 41)
               for i, symbol in enumerate(symbols)}  # fmt: skip


def is_zero(tree) -> bool:
    """Whether an expression is 0: to 150 digits at points where it is real, and exactly so if it is rational."""
    zeros = 0
    for point in points(tree.free_symbols):
        try:
            value = tree.evalf(15, subs=point, maxn=150, strict=True)
        except PrecisionExhausted:
            value = sympy.S.Zero
        if not value.is_number:  # of functions that nobody defined
            return sympy.simplify(tree) == 0
        if value.is_zero is False and (value.is_real or not point):
            return False
        zeros += value.is_zero is True
    return zeros > 0 and not ((tree := tree.doit()).is_Rational and tree != 0)


def equal(gold, answer, *_) -> bool:
    """Whether two expressions or matrices are equal."""
    if getattr(gold, "is_Matrix", False) or getattr(answer, "is_Matrix", False):
        gold, answer = sympy.Matrix(gold.doit()), sympy.Matrix(answer.doit())
        return gold.shape == answer.shape and all(map(equal, gold, answer))
    return is_zero(sympy.Add(gold, sympy.Mul(-1, answer, evaluate=False), evaluate=False))


def equivalent(gold, answer, *_) -> bool:
    """Whether two (chains of) equations or inequalities say the same: their differences are equal up to a factor."""
    golds, answers = (list(getattr(relation, "_unsorted_args", [relation])) for relation in (gold, answer))
    if len(golds) > 1 or len(answers) > 1:
        return len(golds) == len(answers) and all(any(equivalent(g, a) for a in answers) for g in golds)
    f, g = gold.lhs - gold.rhs, answer.lhs - answer.rhs
    for point in points(f.free_symbols) if gold != answer else ():
        u, v = f.subs(point), g.subs(point)
        if u.is_real and v.is_real and u * v != 0:
            return answer.func == (gold.func if u * v > 0 else gold.reversed.func) and is_zero(f * v - g * u)
    return gold == answer


def work():
    """Reads lines with an answer and a gold answer from stdin, writes a dot when it picks one up and then 1 or 0."""
    grader.sympy_numeric_eq = grader.sympy_compare_symbols = equal
    grader.sympy_symbolic_eq, grader.sympy_compare_relational = lambda *_: False, equivalent
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin.buffer:
        os.write(1, b".")
        seconds = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + 60  # if the parent died and can't kill it
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        try:
            answer, gold = map(parse, json.loads(line))
            first = grader.take_first_relation(answer).lhs if grader.is_equation(answer) else None
            named = first is None or grader.is_assignment_relation(answer) or isinstance(first, AppliedUndef)
            right = named or grader.is_relation(gold)  # 2x=4 is no way of saying 4
            right = right and grader.sympy_expr_eq(gold, answer, 6, 15, allow_set_relation_comp=True)
        except MemoryError:
            return
        except Exception:
            right = False
        os.write(1, b"1" if right else b"0")


# --- the workers, and what others call ---

_idle = []  # workers without an item
os.register_at_fork(after_in_child=_idle.clear)


def start() -> subprocess.Popen:
    """A new worker: its own session spares it Ctrl-C, and it ends when its stdin does."""
    return subprocess.Popen([sys.executable, "-P", __file__, "--worker"], bufsize=0, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip


@atexit.register
def stop(workers=_idle):
    """Kill workers."""
    for worker in workers:
        with worker:
            worker.kill()


def in_workers(items: list[tuple[str, str]]) -> list[bool]:
    """The verdict on every (answer, gold), False for one that is given up: its worker is killed, the others go on."""
    global timeouts
    right, jobs, todo = [False] * len(items), {}, list(enumerate(items))[::-1]
    _idle[:] = [worker for worker in _idle if worker.poll() is None]
    try:
        while todo or jobs:
            while todo and len(jobs) < WORKERS:
                worker, (place, item) = _idle.pop() if _idle else start(), todo.pop()
                jobs[worker] = place, time.monotonic() + 60  # to import and pick it up
                worker.stdin.write(json.dumps(item).encode() + b"\n")
            rest = min(deadline for _, deadline in jobs.values()) - time.monotonic()
            ready = wait([worker.stdout for worker in jobs], max(0, rest))
            for worker, (place, deadline) in list(jobs.items()):
                reply = os.read(worker.stdout.fileno(), 1) if worker.stdout in ready else None
                if reply == b".":
                    jobs[worker] = place, time.monotonic() + DEADLINE
                elif reply:
                    right[place] = reply == b"1"
                    _idle.append(worker)
                    del jobs[worker]
                elif reply == b"" or time.monotonic() > deadline:
                    stop([worker])
                    timeouts += 1
                    del jobs[worker]
    finally:
        stop(jobs)  # none, but after an interrupt
    return right


def canonical(answer: str) -> str:
    """A cheap form that equal answers mostly share: for counting votes."""
    value = number(normalise(answer)) if len(answer) <= LONGEST else None
    return str(value) if value is not None else normalise(answer[:LONGEST])


def verify_all(pairs: list[tuple[str, str]], strict: bool = True) -> list[bool]:
    """verify() of every (response, gold) pair, in order; one that takes over DEADLINE seconds is False."""
    results, hard = [], {}
    for response, gold in pairs:
        answer, gold = extract(response, strict) or "", gold_answer(gold)
        try:
            right = quick(answer, gold) if max(len(answer), len(gold)) <= LONGEST else answer.strip() == gold
        except Exception:  # a limit of Python's, on hostile text
            right = False
        if right is None:
            if not _idle and not hard:
                _idle.append(start())  # it imports meanwhile
            hard.setdefault((normalise(answer), normalise(gold)), []).append(len(results))
        results.append(bool(right))
    for places, right in zip(hard.values(), in_workers(list(hard))):
        for place in places:
            results[place] = right
    return results


def verify(response: str, gold: str, strict: bool = True) -> bool:
    """Whether the response's final answer equals the gold answer; not strict: its last number is one if need be."""
    return verify_all([(response, gold)], strict)[0]


if __name__ == "__main__":
    work()
