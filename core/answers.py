r"""The final answer of a response, or of a data set's field, in one way of writing it; what text and exact numbers tell
about two answers being equal. verify.py does the rest."""

import re
from fractions import Fraction
from functools import lru_cache

LONGEST = 500  # characters; of longer ones only integers and equal strings are right (gold answers reach 200)

# --- the text of an answer, from a response or a field of a data set ---

INNER = r"[0-9]++|[^{}\\]|\\."
for _ in range(9):  # braces in braces; possessive (*+), so hostile text costs no backtracking
    INNER = rf"[0-9]++|[^{{}}\\]|\\.|\{{(?:{INNER})*+\}}"
BOX = re.compile(rf"\\(?:boxed|fbox)(?:\s*+\{{((?:{INNER}){{0,4000}}+)\}}|\s++([^\s$\\{{]++))", re.DOTALL)
PHRASE = re.compile(r"(?:answer|solution|result)s?\b(?:[^.\n$\\:=]{0,60}?\b(?:is|are|equals)\b|\s{0,9}[:=])|####|"
                    r"<answer>|\banswer\s{1,9}(?=[$\\])|\$([^$\n]{1,200})\$ is (?:the|our) (?:answer|solution)\b", re.I)
FORMULA = re.compile(r"(\$\$|\$|\\\(|\\\[)(.+?)(?:\$|\\\)|\\\])\s*(%|percent)?", re.DOTALL)
FILLER = re.compile(r"(?:(?:therefore|thus|simply|exactly|about|equal to|option|then|now|the|an?)\s+|[\s:*_`])*", re.I)
LAST = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?|-?\.\d+")


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...} whose braces balance (or \fbox{...}, \boxed 4); None without one."""
    content = None
    while boxes := BOX.findall(text):  # and those in the box
        content = text = boxes[-1][0] or boxes[-1][1]
    return content


def extract(response: str, strict: bool = True) -> str | None:
    """The final answer of a response: last box, else after the last "answer is", else (not strict) the last number."""
    boxed, text = last_boxed(response), response[-20_000:]
    phrases = list(PHRASE.finditer(text)) if boxed is None else []
    if not phrases:
        return boxed if boxed is not None or strict else next(reversed(LAST.findall(text)), None)
    text = phrases[-1].group(1) or text[phrases[-1].end() :]
    text = text[FILLER.match(text).end() :]
    if formula := FORMULA.match(text):
        return formula[2] + (formula[3] or "")
    text = re.split(r"\n|<\||</answer|I hope|[.!?](?:\s|$)", text, maxsplit=1)[0]  # a sentence
    text = re.split(r"\b(?:is|are|equals)\s", text)[-1].strip(' *_`"$')
    numbers, prose = LAST.findall(text), "\\" not in text and len(re.findall("[a-z]{2,}", text)) > 2
    return numbers[0] if prose and len(numbers) == 1 else re.sub(r"^\(?([A-J])[.,:)].*", r"\1", text)  # choice


def gold_answer(answer, unit: str | None = None) -> str:
    """The gold answer in a data set's field: what is boxed, or follows ####, or all of it; all elements of a list. With
    a unit, as OlympiadBench states it, an answer in another unit is wrong."""
    if isinstance(answer, list | tuple):
        return ", ".join(gold_answer(part, unit) for part in answer)
    answer = "" if answer is None else str(answer)
    boxed, unit = last_boxed(answer), (unit or "").strip("$ ")
    answer = re.sub(r"(\d)\.0$", r"\1", (answer.rpartition("####")[2] if boxed is None else boxed).strip())
    return answer + rf" \text{{ {unit}}}" * bool(re.fullmatch(r"[A-Za-z/^\d]+", unit) and "=" not in answer)


# --- one way of writing it ---

SAME = dict(pair.split(" ", 1) for pair in (
    r"− -|– -|× \times |· \cdot |π \pi |∞ \infty |° |≤ \le |≥ \ge |≠ \ne |∪ \cup |∈ \in |"
    r"∅ \emptyset |± \pm |√ \sqrt |½ \frac{1}{2}|² ^2|³ ^3|≈ \approx |’ '|\dfrac \frac|\tfrac \frac|"
    r"\cfrac \frac|\geqslant \ge |\geq \ge |>= \ge |\leqslant \le |\leq \le |<= \le |\neq \ne |!= \ne |\lt <|\gt >|"
    r"\langle (|\rangle )|\lbrace \{|\rbrace \}|\varnothing \emptyset|\left |\right |\displaystyle |\quad  |\qquad  |"
    r'~  |\$ |$ |" |** ^|{bmatrix} {pmatrix}|'
    r"\{\} \emptyset|\degree ").split("|"))  # fmt: skip
SAMES = re.compile("|".join(re.escape(key) + r"(?![a-zA-Z])" * key[-1].isalpha() for key in SAME))
FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|theta|alpha|beta"
TEXT = r"\\(?:text\w*|[mh]box|math(?:rm|bf|it|sf|normal)|operatorname\*?)\s*\{\s*"
UNIT = rf" ?(?:[ckm]m|[km]g|ml|in|ft|mi|hr|min|[ap]\.?m\.?)| (?!(?:{FUNCTIONS}|mod|if)\b)[A-Za-z]{{3,}}[A-Za-z. /]*"
NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+))"
DECIMAL = re.compile(rf"{NUMBER}(?:[eE]([-+]?\d{{1,3}})|(?:\\times|\\cdot|\*)10\^(\d|\{{[-+]?\d{{1,3}}\}}))?")
FRACTION = re.compile(rf"([-+]?)(\d*)\\frac\{{{NUMBER}\}}\{{{NUMBER}\}}")
SLASH = re.compile(rf"()()\(?{NUMBER}\)?/\(?{NUMBER}\)?")
CONTROL = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # all of them but tab and line ends
SEPARATOR = r"(?:,|\s++|(?:\{,\}|,?\\[!,;: ])\s*+)"
INTEGER = re.compile(rf"([-+]?)([0-9]{{1,3}}(?:{SEPARATOR}[0-9]{{3}})++|[0-9]++)(?:\.0*+)?+")
REPEATING = re.compile(r"(\d*\.(\d*))\\(?:overline|bar)\{?(\d+)\}?")
RULES = [(re.compile(pattern), new) for pattern, new in (
    (r"\\(?:(?<!\\\\)(?:[()\[\]]|$)|[bB]igg?[lmr]?(?![A-Za-z]))", ""),
    (r"\{\\(?:rm|bf|it)\s", r"\\text{"), (r"\^\s*\{?\s*\\circ\s*\}?", ""),
    (rf"^(?:{TEXT})?(?i:no (?:real )?solutions?|(?:the )?empty set)\}}?$", r"\\emptyset"),
    (r"(?<=\d)(?:,?\\[!,;: ]|\{,\})\s*(?=\d{3}(?!\d))", ""), (r"(?<!\\)\\[!,;: ]|\s+", " "),  # 1\,000 first
    (r"^ +| +$", ""), (r"\{ *([/:]) *\}", r"\1"),
    (rf",?\s*(?:{TEXT},?\s*(?:and|or)\s*\}}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*,?", ","),
    (rf"\s*\\?%|\s*(?:{TEXT})?(?:percentage|percent|pct)(?![a-z])\s*\}}?", "%"),
    (rf"(?<=[\w}})!])\s*{TEXT}([A-Za-z.][^{{}}\d]*)\}}\s*(\^\s*\{{?-?\d\}}?)?(?=$|[,;)/\s])", r'"\1\2"'),
    (rf"{TEXT}([^{{}}]*)\}}", r"\1"), (r'(?<=\d)([ "])(thousand|million|billion)"? ?', lambda match:
     r"\times10^" + {"t": "3", "m": "6", "b": "9"}[match[2][0]] + match[1]),
    (rf"(?<=[\d}}])((?:{UNIT})(?:\^\{{?\d\}}?)?)(?=$|[,;)])", r'"\1"'), (r"\\(max|min) *(?=\})", r"\1"),
    (rf"(?<![\\A-Za-z])({FUNCTIONS})(?![A-Za-z])", r"\\\1"),
    (r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])|\+\s*\\infty", r"\\infty"),
    (r"\\frac\s*([^{}\s\\])", r"\\frac{\1}"), (r"(\\frac\s*\{[^{}]*\})\s*([^{}\s\\])", r"\1{\2}"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"), (r"\\sqrt\s*(\d+|[^{}\[\s\\])", r"\\sqrt{\1}"),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"), (r"\^\s*(-?\d+)", r"^{\1}"), (r"'", r"^{\\prime}"),
    (r"(?<=\d) +(\d+)/(\d+)", r"\\frac{\1}{\2}"), (r"(?<![\d.])(\d{1,3}) (?=\d{3}(?!\d))", r"\1"),
    (r"^((?:\\(?!\{)|[^(\[,\\])*)(?<![\d,.])(\d{1,3}(?:,\d{3})+)(?!,|\d)",
     lambda match: match[1] + match[2].replace(",", "")),
    (r"(\\[A-Za-z]+) +(?=[A-Za-z])|(_\d) +(?=\d)", "\\1\\2\x1f"), (r"(?<=\d) +(?=\d)", ","),
    (r"(?<=\d), +(?=\d{3}(?!\d))", ",+"), (r" +", ""), ("\x1f", " "),  # 32, 349 is no thousands
    (r"([\^_])\{(\w)\}", r"\1\2"),
    (r"^(\d[\dA-F]*)_\{?\(?([2-9]|1[0-6])\)?\}?$", lambda match: str(int(match[1], int(match[2])))
     if all(int(digit, 16) < int(match[2]) for digit in match[1]) else match[0]),
    (r"^([^:,()]+):([^:,()]+):([^:,()]+)$", r"(\\frac{\1}{\3},\\frac{\2}{\3})"), (r"^,+|[.,]+$|(?<=\d)\.(?=/)", ""),
)]  # fmt: skip


def number(text: str) -> Fraction | None:
    """The exact value of a (normalised) decimal, fraction, mixed number or repeating decimal, else None."""
    if match := DECIMAL.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int((match[2] or match[3] or "0").strip("{}"))
    if match := REPEATING.fullmatch(text):
        return Fraction(match[1] + "0") + Fraction(int(match[3]), 10 ** len(match[2]) * (10 ** len(match[3]) - 1))
    if not (match := FRACTION.fullmatch(text) or SLASH.fullmatch(text)) or not Fraction(match[4]):
        return None
    value = int(match[2] or 0) + Fraction(match[3]) / Fraction(match[4])
    return -value if match[1] == "-" else value


def as_string(answer: str) -> str:
    """How an answer longer than LONGEST is compared: an integer by its digits, which int() would be slow or refuse to
    read, anything else as it stands; "" if it has control characters."""
    answer = "" if CONTROL.search(answer) else answer.replace("\u2212", "-").strip("$\\ \t\r\n")
    if not (match := INTEGER.fullmatch(answer)):
        return answer
    return match[1].strip("+") + (re.sub("[^0-9]", "", match[2]).lstrip("0") or "0")


@lru_cache(4096)
def normalise(answer: str) -> str:
    r"""A form that equal answers mostly share, also for votes: 1,\!234 is 1234, \dfrac12 1/2, 5 \text{ cm} 5"cm". What
    has control characters is no answer: ""."""
    if CONTROL.search(answer):
        return ""
    answer = SAMES.sub(lambda match: SAME[match.group()], answer[:LONGEST].strip())
    for pattern, new in () if answer.isdecimal() else RULES:
        answer = pattern.sub(new, answer)
    value = number(answer)
    return answer if value is None else str(value)


@lru_cache(4096)
def quick(answer: str, gold: str) -> bool | tuple[str, str]:
    """Whether two answers are equal if text and exact numbers decide that, else what a worker is to compare."""
    answer, gold = normalise(answer), normalise(gold)
    if ("=" in answer) != ("=" in gold):  # x=5 is as good as 5
        answer, gold = (normalise(re.sub(r"^[A-Za-z](?:_\w|_\{\w+\})?=", "", text)) for text in (answer, gold))
    if not answer or answer == gold:
        return bool(answer)
    if re.fullmatch(r"\(?[A-J]\)?", gold) and (match := re.fullmatch(r"\(?([A-J])\)?(?:[.:)].*)?", answer)):
        return match[1] in gold
    if gold.isalpha() and answer.isalpha() and len(gold) > 2:  # Yes, east; hardly a product
        return answer.casefold() == gold.casefold()
    if re.search(r"\d:\d\d(?!\d)|dots", answer + " " + gold):  # a time is no ratio; what dots stand for is not known
        return answer.rpartition("=")[2] == gold.rpartition("=")[2]
    (a, _, u), (g, _, v) = answer.partition('"'), gold.partition('"')
    other_unit = u and v and (u[0] != v[0] or u[-3:-1] != v[-3:-1] and (len(u) < 5 > len(v) or "^" in u + v))
    if other_unit or re.search(r"(?:\^\{[^{}^]*){3}|^-?\d+_", f"{answer} {gold}"):  # cm and m; a tower of powers; 17_1
        return False
    x, y = number(a.rstrip("%")), number(g.rstrip("%"))
    if x is None or y is None:
        return answer, gold
    return x == y or x == y * Fraction(100) ** (a.endswith("%") - g.endswith("%"))  # 50% is as good as 50 or 0.5
