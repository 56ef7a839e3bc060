r"""Answers as text: extract the final answer of a response, or the gold answer of a data set's field; write equal
answers in the same way; compare two answers as strings and as exact numbers. core/verify.py does the rest.

Hostile text must not slow these regular expressions down, for a policy in training tries everything."""

import re
from fractions import Fraction
from functools import lru_cache

LONGEST = 500  # characters; of longer answers only integers and equal strings can be right (gold answers: up to 200)

# ------------------------------------------------------------------------------------------------ extracting
# What a box holds: numbers, characters, escaped characters, and braces within braces, up to nine deep. The repetitions
# are possessive (*+), so that hostile text costs no backtracking.
INNER = r"[0-9]++|[^{}\\]|\\."
for _ in range(9):
    INNER = rf"[0-9]++|[^{{}}\\]|\\.|\{{(?:{INNER})*+\}}"
BOX = re.compile(rf"\\(?:boxed|fbox)(?:\s*+\{{((?:{INNER}){{0,4000}}+)\}}|\s++([^\s$\\{{]++))", re.DOTALL)
# What announces an answer: "the answer is", "Result:", "####", "<answer>"; or "$x$ is the answer", where group 1 is x.
PHRASE = re.compile(r"(?:answer|solution|result)s?\b(?:[^.\n$\\:=]{0,60}?\b(?:is|are|equals)\b|\s{0,9}[:=])|####|"
                    r"<answer>|\banswer\s{1,9}(?=[$\\])|\$([^$\n]{1,200})\$ is (?:the|our) (?:answer|solution)\b", re.I)
# A formula and a percent sign behind it; words that stand between "is" and the answer; a number.
FORMULA = re.compile(r"(\$\$|\$|\\\(|\\\[)(.+?)(?:\$|\\\)|\\\])\s*(%|percent)?", re.DOTALL)
FILLER = re.compile(r"(?:(?:therefore|thus|simply|exactly|about|equal to|option|then|now|the|an?)\s+|[\s:*_`])*", re.I)
LAST = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?|-?\.\d+")


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{...} with balanced braces holds (or \fbox{...}, or \boxed 4); None if there is none. Of a
    box within a box the inner one counts."""
    content = None
    while boxes := BOX.findall(text):
        in_braces, bare = boxes[-1]
        content = text = in_braces or bare
    return content


def extract(response: str, strict: bool = True) -> str | None:
    """The final answer of a response: what its last box holds; without a box, what follows the last "answer is" or the
    like; without that too, if not strict, the last number. None if there is no answer."""
    boxed = last_boxed(response)
    if boxed is not None:
        return boxed
    text = response[-20_000:]  # an answer is announced near the end
    phrases = list(PHRASE.finditer(text))
    if not phrases:
        numbers = [] if strict else LAST.findall(text)
        return numbers[-1] if numbers else None
    last = phrases[-1]
    text = last.group(1) or text[last.end() :]
    text = text[FILLER.match(text).end() :]
    if formula := FORMULA.match(text):
        return formula[2] + (formula[3] or "")
    text = re.split(r"\n|<\||</answer|I hope|[.!?](?:\s|$)", text, maxsplit=1)[0]  # up to the end of the sentence
    text = re.split(r"\b(?:is|are|equals)\s", text)[-1].strip(' *_`"$')
    numbers = LAST.findall(text)
    is_prose = "\\" not in text and len(re.findall("[a-z]{2,}", text)) > 2
    if is_prose and len(numbers) == 1:
        return numbers[0]
    return re.sub(r"^\(?([A-J])[.,:)].*", r"\1", text)  # of a choice such as "(B) 12" only the letter


def gold_answer(answer, unit: str | None = None) -> str:
    """The gold answer in a field of a data set (a str, a number, None, or a list, whose answers are joined): what its
    last box holds, or what follows ####, or all of it. With a unit, as OlympiadBench states one, it is appended, so
    that an answer in another unit is wrong."""
    if isinstance(answer, list | tuple):
        return ", ".join(gold_answer(part, unit) for part in answer)
    answer = "" if answer is None else str(answer)
    boxed = last_boxed(answer)
    answer = answer.rpartition("####")[2] if boxed is None else boxed
    answer = re.sub(r"(\d)\.0$", r"\1", answer.strip())
    unit = (unit or "").strip("$ ")
    if re.fullmatch(r"[A-Za-z/^\d]+", unit) and "=" not in answer:
        answer += rf" \text{{ {unit}}}"
    return answer


# ------------------------------------------------------------------------------------------------ normalising
# Symbols and commands that are replaced or, with "", left out; a command only where its name ends.
SAME = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "°": "", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "√": r"\sqrt ",
    "½": r"\frac{1}{2}", "²": "^2", "³": "^3", "≈": r"\approx ", "’": "'", r"\dfrac": r"\frac", r"\tfrac": r"\frac",
    r"\cfrac": r"\frac", r"\geqslant": r"\ge ", r"\geq": r"\ge ", ">=": r"\ge ", r"\leqslant": r"\le ",
    r"\leq": r"\le ", "<=": r"\le ", r"\neq": r"\ne ", "!=": r"\ne ", r"\lt": "<", r"\gt": ">",
    r"\langle": "(", r"\rangle": ")", r"\varnothing": r"\emptyset", r"\left": "", r"\right": "",
    r"\lbrace": r"\{", r"\rbrace": r"\}", r"\displaystyle": "", r"\quad": " ", r"\qquad": " ", "~": " ", r"\$": "",
    "$": "", '"': "", "**": "^", "{bmatrix}": "{pmatrix}", r"\{\}": r"\emptyset", r"\degree": "",
}  # fmt: skip
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


def power_of_ten(match) -> str:
    r"""5 million -> 5\times10^6. Groups: the space or quotation mark before the word, the word."""
    exponent = {"thousand": 3, "million": 6, "billion": 9}[match[2]]
    return rf"\times10^{exponent}{match[1]}"


def without_commas(match) -> str:
    """1,234 -> 1234. Groups: what stands before the number, the number."""
    return match[1] + match[2].replace(",", "")


def decimal_value(match) -> str:
    """1010_2 -> 10. Groups: the digits, the base; text whose digits do not fit the base is left as it is."""
    digits, base = match[1], int(match[2])
    fits = all(int(digit, 16) < base for digit in digits)
    return str(int(digits, base)) if fits else match[0]


# In this order. The unit of a number is put behind it in quotation marks, 5"cm", which cannot occur otherwise.
RULES = [(re.compile(pattern), new) for pattern, new in (
    # \( \) \[ \], a backslash at the end, \big and its like; {\rm cm}; ^\circ
    (r"\\(?:(?<!\\\\)(?:[()\[\]]|$)|[bB]igg?[lmr]?(?![A-Za-z]))", ""),
    (r"\{\\(?:rm|bf|it)\s", r"\\text{"), (r"\^\s*\{?\s*\\circ\s*\}?", ""),
    # no solution
    (rf"^(?:{TEXT})?(?i:no (?:real )?solutions?|(?:the )?empty set)\}}?$", r"\\emptyset"),
    # 1\,000 and 1{,}000, before every other space in LaTeX becomes a plain one; 3{/}4
    (r"(?<=\d)(?:,?\\[!,;: ]|\{,\})\s*(?=\d{3}(?!\d))", ""), (r"(?<!\\)\\[!,;: ]|\s+", " "),
    (r"^ +| +$", ""), (r"\{ *([/:]) *\}", r"\1"),
    # 1 and 2, 1 or 2
    (rf",?\s*(?:{TEXT},?\s*(?:and|or)\s*\}}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*,?", ","),
    # 50\%, 50 percent
    (rf"\s*\\?%|\s*(?:{TEXT})?(?:percentage|percent|pct)(?![a-z])\s*\}}?", "%"),
    # 5 \text{ cm}^2; any other text loses its command
    (rf"(?<=[\w}})!])\s*{TEXT}([A-Za-z.][^{{}}\d]*)\}}\s*(\^\s*\{{?-?\d\}}?)?(?=$|[,;)/\s])", r'"\1\2"'),
    (rf"{TEXT}([^{{}}]*)\}}", r"\1"),
    # 5 million
    (r'(?<=\d)([ "])(thousand|million|billion)"? ?', power_of_ten),
    # 5 cm^2; a space after \max or \min
    (rf"(?<=[\d}}])((?:{UNIT})(?:\^\{{?\d\}}?)?)(?=$|[,;)])", r'"\1"'), (r"\\(max|min) *(?=\})", r"\1"),
    # sin x, 2pi, inf
    (rf"(?<![\\A-Za-z])({FUNCTIONS})(?![A-Za-z])", r"\\\1"),
    (r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])|\+\s*\\infty", r"\\infty"),
    # \frac12, \sqrt(2), \sqrt2, x^(2), x^10, x'
    (r"\\frac\s*([^{}\s\\])", r"\\frac{\1}"), (r"(\\frac\s*\{[^{}]*\})\s*([^{}\s\\])", r"\1{\2}"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"), (r"\\sqrt\s*(\d+|[^{}\[\s\\])", r"\\sqrt{\1}"),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"), (r"\^\s*(-?\d+)", r"^{\1}"), (r"'", r"^{\\prime}"),
    # 3 1/2; 12 345; 12,345, unless it stands in a list, a tuple or an interval
    (r"(?<=\d) +(\d+)/(\d+)", r"\\frac{\1}{\2}"), (r"(?<![\d.])(\d{1,3}) (?=\d{3}(?!\d))", r"\1"),
    (r"^((?:\\(?!\{)|[^(\[,\\])*)(?<![\d,.])(\d{1,3}(?:,\d{3})+)(?!,|\d)", without_commas),
    # Spaces go, except that one must stay after a command (\pi r) and in x_1 2: \x1f keeps its place meanwhile.
    # 1 2 is a list of two numbers; and so is 32, 349, which the plus sign tells from 32,349.
    (r"(\\[A-Za-z]+) +(?=[A-Za-z])|(_\d) +(?=\d)", "\\1\\2\x1f"), (r"(?<=\d) +(?=\d)", ","),
    (r"(?<=\d), +(?=\d{3}(?!\d))", ",+"), (r" +", ""), ("\x1f", " "),
    # x^{2}; 1010_2; the ratio 1:2:3; commas and full stops at the ends
    (r"([\^_])\{(\w)\}", r"\1\2"), (r"^(\d[\dA-F]*)_\{?\(?([2-9]|1[0-6])\)?\}?$", decimal_value),
    (r"^([^:,()]+):([^:,()]+):([^:,()]+)$", r"(\\frac{\1}{\3},\\frac{\2}{\3})"), (r"^,+|[.,]+$|(?<=\d)\.(?=/)", ""),
)]  # fmt: skip


def number(text: str) -> Fraction | None:
    """The exact value of a normalised decimal (0.5, 5e3), fraction, mixed number or repeating decimal, else None."""
    if match := DECIMAL.fullmatch(text):
        exponent = (match[2] or match[3] or "0").strip("{}")
        return Fraction(match[1]) * Fraction(10) ** int(exponent)
    if match := REPEATING.fullmatch(text):
        start, digits, period = match[1], match[2], match[3]  # 0.1\overline{6}: 0.1, 1 and 6
        return Fraction(start + "0") + Fraction(int(period), 10 ** len(digits) * (10 ** len(period) - 1))
    match = FRACTION.fullmatch(text) or SLASH.fullmatch(text)
    if not match or not Fraction(match[4]):
        return None
    sign, whole, numerator, denominator = match.groups()
    value = int(whole or 0) + Fraction(numerator) / Fraction(denominator)
    return -value if sign == "-" else value


def as_string(answer: str) -> str:
    """How an answer longer than LONGEST is compared: an integer by its digits, which int() would be slow or refuse to
    read, anything else as it stands; "" if it has control characters."""
    answer = "" if CONTROL.search(answer) else answer.replace("\u2212", "-").strip("$\\ \t\r\n")
    if not (match := INTEGER.fullmatch(answer)):
        return answer
    return match[1].strip("+") + (re.sub("[^0-9]", "", match[2]).lstrip("0") or "0")


@lru_cache(4096)
def normalise(answer: str) -> str:
    r"""An answer in the form that most equal answers share, also for votes: 1,\!234 becomes 1234, \dfrac12 1/2, and
    5 \text{ cm} 5"cm". Only the first LONGEST characters count. What has control characters is no answer: ""."""
    if CONTROL.search(answer):
        return ""
    answer = SAMES.sub(lambda match: SAME[match.group()], answer[:LONGEST].strip())
    if not answer.isdecimal():
        for pattern, new in RULES:
            answer = pattern.sub(new, answer)
    value = number(answer)
    return answer if value is None else str(value)


# ------------------------------------------------------------------------------------------------ comparing
def different_units(first: str, second: str) -> bool:
    """Whether two units, each with the quotation mark that ends it, are surely different: cm and m, cm and cm^2. min
    and minutes are not, and neither are a unit and none."""
    if not first or not second:
        return False
    both_short = len(first) < 5 and len(second) < 5
    other_end = first[-3:-1] != second[-3:-1]  # the last two letters
    return first[0] != second[0] or other_end and (both_short or "^" in first + second)


@lru_cache(4096)
def quick(answer: str, gold: str) -> bool | tuple[str, str]:
    """Whether two answers are equal, if text and exact numbers decide that; if not, the two expressions that a worker
    has to compare."""
    answer, gold = normalise(answer), normalise(gold)
    if ("=" in answer) != ("=" in gold):  # x=5 is as good as 5
        answer, gold = (normalise(re.sub(r"^[A-Za-z](?:_\w|_\{\w+\})?=", "", text)) for text in (answer, gold))
    if not answer:
        return False
    if answer == gold:
        return True
    if re.fullmatch(r"\(?[A-J]\)?", gold) and (choice := re.fullmatch(r"\(?([A-J])\)?(?:[.:)].*)?", answer)):
        return choice[1] in gold
    if gold.isalpha() and answer.isalpha() and len(gold) > 2:  # words such as Yes or east; shorter ones may be products
        return answer.casefold() == gold.casefold()
    if re.search(r"\d:\d\d(?!\d)|dots", answer + " " + gold):  # a time is no ratio; what dots stand for is not known
        return answer.rpartition("=")[2] == gold.rpartition("=")[2]
    (answer_value, _, answer_unit), (gold_value, _, gold_unit) = answer.partition('"'), gold.partition('"')
    if different_units(answer_unit, gold_unit):
        return False
    if re.search(r"(?:\^\{[^{}^]*){3}|^-?\d+_", f"{answer} {gold}"):  # a tower of powers; 17_1, which is no number
        return False
    x, y = number(answer_value.rstrip("%")), number(gold_value.rstrip("%"))
    if x is None or y is None:
        return answer, gold
    percents = answer_value.endswith("%") - gold_value.endswith("%")  # 1 if only the answer has a percent sign
    return x == y or x == y * Fraction(100) ** percents  # 50% is as good as 50 or 0.5
