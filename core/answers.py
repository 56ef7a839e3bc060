r"""Answers as text: find the final answer in a response and the gold answer in a data set, normalise them, and compare
them as strings and as exact numbers. core/verify.py does the rest.

Hostile text must not slow down these regular expressions, because a policy in training tries everything."""

import re
from fractions import Fraction
from functools import lru_cache

LONGEST = 500  # characters (gold answers: up to 200); longer answers must be integers or equal strings to be right

# ------------------------------------------------------------------------------------------------ extracting
# The content of a box: numbers, characters, escaped characters, and braces within braces, up to nine deep.
# The repetitions are possessive (*+), so hostile text causes no backtracking.
INNER = r"[0-9]++|[^{}\\]|\\."
for _ in range(9):
    INNER = rf"[0-9]++|[^{{}}\\]|\\.|\{{(?:{INNER})*+\}}"
BOX = re.compile(rf"\\(?:boxed|fbox)(?:\s*+\{{((?:{INNER}){{0,4000}}+)\}}|\s++([^\s$\\{{]++))", re.DOTALL)
# Words that announce an answer: "the answer is", "Result:", "####", "<answer>". In "$x$ is the answer" group 1 is x.
# The lookahead for the first letter makes the search three times as fast.
PHRASE = re.compile(r"(?=[ars#<$答])(?:(?:answer|solution|result)s?(?:\b[^.\n$\\:=]{0,60}?\b(?:is|are|equals)\b|"
                    r"[\s*_]{0,9}[:=：])|####|<answer>|\banswer\s{1,9}(?=[$\\])|\$([^$\n]{1,200})\$ is (?:the|our) "
                    r"(?:answer|solution)\b|答案\W{0,9}[是为:：])", re.I)
# A heading: "### Final Answer", "**Step 3: Answer**". A horizontal rule or a quotation sign may follow.
MARKS = r"(?:[^\w\n$\\]|_){0,12}"
HEADING = re.compile(rf"\n{MARKS}(?:(?:step )?\d\d?[.:)]{MARKS})?(?:(?:the|my|our|final|correct|numerical) ){{0,3}}"
                     rf"(?:answers?|results?|final solution|(?:最终)?答案){MARKS}()\n"
                     r"\s{0,20}(?:[-=*_]{3,40}\s{1,20})?[>•✅ ]{0,9}", re.I)
# FORMULA: with a percent sign after it, but not the money in "$5 a day for $6 more". BETWEEN: the "and" of $1$ and $2$.
# FILLER: words between "is" and the answer. IS: the answer follows it. LAST: a number. MEASURE: a unit of measure.
FORMULA = re.compile(r"(?!\$\d[\d,.]{0,20}\s[^\\$\n]{0,60}?[a-z]{2,20}\s[a-z]{2})(\$\$|\$|\\\(|\\\[)(.+?)"
                     r"(?:\$|\\\)|\\\])\s*(%|percent)?", re.DOTALL | re.I)
BETWEEN = re.compile(r"\$(\s{0,3}(?:,|,?\s{0,3}(?:and|or)\s)\s{0,3})\$(?=-?\d|[a-z] ?=)")
BOLD = re.compile(r"(?<!\w)\*\*([^*\n]+)\*\*(?!\w)")
FILLER = re.compile(r"(?i:(?:therefore|thus|simply|exactly|about|equal to|option|then|now|the|an?)\s+|[\s:*_`：])*")
IS = re.compile(r"\b(?:is|are|equals)\s")
LAST = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?|-?\.\d+")
MEASURE = re.compile(r"(?:[cdkm]?m|[km]?g|[hs]|(?:min(?:ute)?|second|hour|day)s?)(?:\^[23])?(?:/(?:h|s|min)(?:\^2)?)?")


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} with balanced braces (or \fbox{...}, or \boxed 4). None if there is none.
    If a box is inside a box, the inner one counts."""
    content = None
    while boxes := BOX.findall(text):
        content = text = "".join(boxes[-1])  # one of the two groups is empty: with braces, or without
    return content


def stands_alone(text: str) -> bool:
    """Whether the first line below a heading is just one answer: a formula, a number and up to two words, a word, "The
    total is 42". False if the next line looks like another answer."""
    formula = FORMULA.match(text)
    line, _, below = text[formula.end() if formula else 0 :].lstrip("$").partition("\n")
    line = IS.split(line)[-1]
    if re.match(r"[\s>*_•+-]*[\d$\\]", below) or formula and re.search(r"[\d$\\]", line):
        return False
    has_value = formula or re.search(r"[\d\\]|^\(?[A-J][.,:)]", line)
    return len(re.findall("[A-Za-z]{2,}", line)) < (3 if has_value else 2)


def extract(response: str, strict: bool = True) -> str | None:
    """The final answer of a response: the content of its last box. Without a box: the text after the last "answer is"
    or similar words. Without these, if not strict: the last number. None if there is no answer."""
    if (boxed := last_boxed(response)) is not None:
        return boxed
    text = BETWEEN.sub(r"\1", "\n" + response[-20_000:])  # the answer is near the end
    phrases = [match for match in HEADING.finditer(text) if stands_alone(text[match.end() : match.end() + 500])]
    phrases += PHRASE.finditer(text)
    if not phrases:
        numbers = [] if strict else LAST.findall(text)
        return numbers[-1] if numbers else None
    last = max(phrases, key=lambda match: match.end())
    text = FILLER.sub("", BOLD.sub(r"\1", last.group(1) or text[last.end() :]), count=1)
    if formula := FORMULA.match(text):
        return formula[2] + (formula[3] or "")
    text = re.split(r"\n|<\||</answer|I hope|[.!?](?:\s|$)|[。！？]", text, maxsplit=1)[0]  # to the end of the sentence
    text = IS.split(text)[-1].strip(' *_`"$✅')
    numbers = LAST.findall(text)
    is_prose = "\\" not in text and len(re.findall("[a-z]{2,}", text)) > 2
    if is_prose and len(numbers) == 1:
        return numbers[0]
    return re.sub(r"^\(?([A-J])[.,:)].*", r"\1", text)  # only the letter of a choice such as "(B) 12"


def gold_answer(answer, unit=None) -> str:
    """The gold answer in a field of a data set: the content of its last box, or the text after ####, or all of it.
    answer: a str, a number, None, or a list (its answers are joined). unit: OlympiadBench has it. A unit of measure is
    appended, so an answer in another unit is wrong. Any other unit ("3", "Chapter 2", a list) is ignored."""
    if isinstance(answer, list | tuple):
        return ", ".join(gold_answer(part, unit) for part in answer)
    answer = "" if answer is None else str(answer)
    boxed = last_boxed(answer)
    answer = answer.rpartition("####")[2] if boxed is None else boxed
    answer = re.sub(r"(\d)\.0$", r"\1", answer.strip())
    if isinstance(unit, str) and MEASURE.fullmatch(unit.strip("$ ")) and "=" not in answer:
        answer += rf" \text{{ {unit.strip('$ ')}}}"
    return answer


# ------------------------------------------------------------------------------------------------ normalising
# Commands that only change how text looks, with the text in braces: \underline{42}, \color{red}{42}, {\color{red} 42}.
# Not \cancel: it strikes the answer out. Not \overline: it has a meaning. Text inside \phantom is deleted.
COLOR = r"\s*(?:\[\w*\])?\{[^{}]*\}"
SWITCH = (rf"\\(?:(?:(?:text|math)?color|phantom){COLOR}|"
          r"(?:boldmath|(?:text|script)style|[lL]arge|LARGE|[hH]uge|small|normalsize)(?![A-Za-z]))\s*+")
STYLE = re.compile(r"(?:\\(?:u(?:nder|u)?line|boldsymbol|bm|bold|pmb|emph|ensuremath|(?:(?:text|math)?color|colorbox|"
                   rf"fcolorbox{COLOR}){COLOR})\s*+\{{|\{{(?<!\\.)\s*+{SWITCH})((?:{INNER})*+)\}}", re.DOTALL)
# Symbols and commands to replace, or to delete (""). A command must not be the start of a longer name.
SAME = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "°": "", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "√": r"\sqrt ",
    "½": r"\frac{1}{2}", "²": "^2", "³": "^3", "≈": r"\approx ", "’": "'", r"\dfrac": r"\frac", r"\tfrac": r"\frac",
    r"\cfrac": r"\frac", r"\geqslant": r"\ge ", r"\geq": r"\ge ", ">=": r"\ge ", r"\leqslant": r"\le ",
    r"\leq": r"\le ", "<=": r"\le ", r"\neq": r"\ne ", "!=": r"\ne ", r"\lt": "<", r"\gt": ">", r"\langle": "(",
    r"\rangle": ")", r"\varnothing": r"\emptyset", r"\left": "", r"\right": "", r"\lbrace": r"\{", r"\rbrace": r"\}",
    r"\displaystyle": "", r"\quad": " ", r"\qquad": " ", "~": " ", r"\$": "", "$": "", '"': "", "**": "^",
    r"\textsuperscript": "^", "{bmatrix}": "{pmatrix}", r"\{\}": r"\emptyset", r"\degree": "", "，": ",", "、": ", ",
    "．": ".", "：": ":", "（": "(", "）": ")", "％": "%", "＝": "=", "－": "-", "✅": "", "￥": "¥", "元": "¥",
    r"US}\$": "＄}", "円": "¥", r"\pounds": "£", r"\textsterling": "£", r"\euro": "€", r"\texteuro": "€", r"\yen": "¥",
    r"\textyen": "¥", r"\cent": "¢", r"\textcent": "¢", r"\textdollar": "＄", "US$": "＄", r"US\$": "＄",
}
SAMES = re.compile("|".join(re.escape(key) + r"(?![a-zA-Z])" * key[-1].isalpha() for key in SAME))
CODES = dict(USD="＄", EUR="€", GBP="£", JPY="¥", CNY="¥", RMB="¥", INR="₹", Rs="₹")
MONEY = {"€": "euros", "£": "pounds", "¥": "yen", "₹": "rupees", "¢": "cents", "＄": "dollars"}
SIGN = "([£¥¢＄\u20a0-\u20cf])"
FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|theta|alpha|beta"
TEXT = r"\\(?:text\w*|[mh]box|math(?:rm|bf|it|sf|normal)|operatorname\*?)\s*\{\s*"
UNIT = rf" ?(?:[ckm]m|[km]g|ml|in|ft|mi|hr|min|[ap]\.?m\.?)| (?!(?:{FUNCTIONS}|mod|if)\b)[A-Za-z]{{3,}}[A-Za-z. /]*"
NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+))"
DECIMAL = re.compile(rf"{NUMBER}(?:[eE]([-+]?\d{{1,3}})|(?:\\times|\\cdot|\*)10\^(\d|\{{[-+]?\d{{1,3}}\}}))?")
FRACTION = re.compile(rf"([-+]?)(\d*)\\frac\{{{NUMBER}\}}\{{{NUMBER}\}}")
SLASH = re.compile(rf"()()\(?{NUMBER}\)?/\(?{NUMBER}\)?")
CONTROL = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # all except tab and line ends
REPEATING = re.compile(r"(\d*\.(\d*))\\(?:overline|bar)\{?(\d+)\}?")


def decimal_value(match) -> str:
    """1010_2 -> 10. Groups: the digits, the base. The text stays as it is if the digits do not fit the base."""
    fits = all(int(digit, 16) < int(match[2]) for digit in match[1])
    return str(int(match[1], int(match[2]))) if fits else match[0]


# The order matters. A unit is written in quotation marks after its number, 5"cm". No other quotation marks are left.
RULES = [(re.compile(pattern), new) for pattern, new in (
    # a Chinese full stop at the end; the rest of a colour command; EUR, Rs. 42
    (r"。(?=[\s}。]*$)", ""), (SWITCH, ""), (r"\{(?<=^.)([^{},]+)\}$", r"\1"),
    (r"(?=[UEGJCRI])\b(USD|EUR|GBP|JPY|CNY|RMB|INR|Rs(?=[. }\\,~]{0,6}\d))\b\.?", lambda m: CODES[m[1]]),
    # \( \) \[ \], a backslash at the end, \big, \Bigl etc.; {\rm cm}; ^\circ; \bf 42; no solution
    (r"\\(?:(?<!\\\\)(?:[()\[\]]|$)|[bB]igg?[lmr]?(?![A-Za-z]))", ""), (r"\{\\(?:rm|bf|it)\s", r"\\text{"),
    (r"\^\s*\{?\s*\\circ\s*\}?", ""), (r"\\(?:math)?(?:bf|rm|it|sf)\s*(?=[-\d])", ""),
    (rf"^(?:{TEXT})?(?i:no (?:real )?solutions?|(?:the )?empty set)\}}?$", r"\\emptyset"),
    # 1\,000 and 1{,}000, and only then other LaTeX spaces: they become a plain space; 3{/}4
    (r"(?<=\d)(?:,?\\[!,;: ]|\{,\})\s*(?=\d{3}(?!\d))", ""), (r"(?<!\\)\\[!,;: ]|\s+", " "),
    (r"^ +| +$", ""), (r"\{ *([/:]) *\}", r"\1"),
    # 1 and 2, 1 or 2
    (rf",?\s*(?:{TEXT},?\s*(?:and|or)\s*\}}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*,?", ","),
    # 50\%, 50 percent
    (rf"\s*\\?%|\s*(?:{TEXT})?(?:percentage|percent|pct)(?![a-z])\s*\}}?", "%"),
    # 5 \text{ cm}^2; otherwise \text{...} becomes its content
    (rf"(?<=[\w}})!])\s*{TEXT}([A-Za-z.][^{{}}\d]*)\}}\s*(\^\s*\{{?-?\d\}}?)?(?=$|[,;)/\s])", r'"\1\2"'),
    (rf"{TEXT}([^{{}}]*)\}}", r"\1"),
    # 5 million; €5 and 5€ are 5"euros"
    (r'(?<=\d)([ "])(thousand|million|billion)"? ?', lambda m: rf"\times10^{dict(t=3, m=6, b=9)[m[2][0]]}{m[1]}"),
    (rf'{SIGN}(?:(?<=^.)|(?<=^[-+].)) ?([-+]?\d[\d,.]*(?:\\times10\^\d *)?)(?=$|[ ,;"])', r"\2\1"),
    (rf'{SIGN}(?<=[\w}} ].)(?=$|[,;)/ "])', lambda m: f'"{MONEY.get(m[1], m[1])}"'),
    # 5 cm^2; a space after \max or \min
    (rf"(?<=[\d}}])((?:{UNIT})(?:\^\{{?\d\}}?)?)(?=$|[,;)])", r'"\1"'), (r"\\(max|min) *(?=\})", r"\1"),
    # sin x, 2pi, inf
    (rf"(?<![\\A-Za-z])({FUNCTIONS})(?![A-Za-z])", r"\\\1"),
    (r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])|\+\s*\\infty", r"\\infty"),
    # \frac12, \sqrt(2), \sqrt2, x^(2), x^10, x'
    (r"\\frac\s*([^{}\s\\])", r"\\frac{\1}"), (r"(\\frac\s*\{[^{}]*\})\s*([^{}\s\\])", r"\1{\2}"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"), (r"\\sqrt\s*(\d+|[^{}\[\s\\])", r"\\sqrt{\1}"),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"), (r"\^\s*(-?\d+)", r"^{\1}"), (r"'", r"^{\\prime}"),
    # 3 1/2; 12 345; 12,345, but not in a list, a tuple or an interval
    (r"(?<=\d) +(\d+)/(\d+)", r"\\frac{\1}{\2}"), (r"(?<![\d.])(\d{1,3}) (?=\d{3}(?!\d))", r"\1"),
    (r"^((?:\\(?!\{)|[^(\[,\\])*)(?<![\d,.])(\d{1,3}(?:,\d{3})+)(?!,|\d)", lambda m: m[1] + m[2].replace(",", "")),
    # Delete spaces, except after a command (\pi r) and in x_1 2: there \x1f marks the space until the end.
    # 1 2 is a list of two numbers. So is 32, 349: a plus sign is added, so it differs from 32,349.
    (r"(\\[A-Za-z]+) +(?=[A-Za-z])|(_\d) +(?=\d)", "\\1\\2\x1f"), (r"(?<=\d) +(?=\d)", ","),
    (r"(?<=\d), +(?=\d{3}(?!\d))", ",+"), (r" +", ""), ("\x1f", " "),
    # x^{2}; 1010_2; the ratio 1:2:3; commas and full stops at the ends
    (r"([\^_])\{(\w)\}", r"\1\2"), (r"^(\d[\dA-F]*)_\{?\(?([2-9]|1[0-6])\)?\}?$", decimal_value),
    (r"^([^:,()]+):([^:,()]+):([^:,()]+)$", r"(\\frac{\1}{\3},\\frac{\2}{\3})"), (r"^,+|[.,]+$|(?<=\d)\.(?=/)", ""),
)]


def number(text: str) -> Fraction | None:
    """The exact value of a normalised decimal (0.5, 5e3), fraction, mixed number or repeating decimal. Else None."""
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


@lru_cache(4096)
def normalise(answer: str) -> str:
    r"""Write an answer so that most equal answers have the same text: 1,\!234 -> 1234, \dfrac12 -> 1/2, 5 \text{ cm} ->
    5"cm". Majority votes use it too. Only the first LONGEST characters count. "" if it has control characters."""
    if CONTROL.search(answer):
        return ""
    answer = SAMES.sub(lambda match: SAME[match.group()], answer[:LONGEST].strip())
    if (value := number(answer)) is None:
        while STYLE.search(answer):  # repeat for a style inside a style; the space is for \bm{\pi}r
            answer = STYLE.sub(lambda m: m[1] + " " * bool(re.search(r"\\[A-Za-z]+$", m[1])), answer)
        for pattern, new in RULES:
            answer = pattern.sub(new, answer)
        value = number(answer)
    return answer if value is None else str(value)


# ------------------------------------------------------------------------------------------------ comparing
def different_units(first: str, second: str) -> bool:
    """Whether two units are surely different, as cm and m, or cm and cm^2. Each ends with its quotation mark.
    False for min and minutes, and if one of them has no unit."""
    if not first or not second:
        return False
    both_short = len(first) < 5 and len(second) < 5
    other_end = first[-3:-1] != second[-3:-1]  # the last two letters
    return first[0] != second[0] or other_end and (both_short or "^" in first + second)


def other_currency(unit: str, value: str, text: str) -> bool:
    """Whether the unit of one answer is a currency, but the other answer (value, text) is in percent or dollars.
    Normalising deletes dollar signs, so they are counted in the text. Two of them make a formula, one means money."""
    name = unit.split('"')[0]
    return name in MONEY.values() and (value[-1:] == "%" or name != "dollars" and text.count("$") % 2 == 1)


@lru_cache(4096)
def quick(answer: str, gold: str) -> bool | tuple[str, str]:
    """Whether two answers are equal, if their text or exact numbers decide it. If not: the two expressions for a worker
    to compare."""
    texts = answer, gold
    answer, gold = normalise(answer), normalise(gold)
    if ("=" in answer) != ("=" in gold):  # x=5 is as good as 5
        answer, gold = (normalise(re.sub(r"^[A-Za-z](?:_\w|_\{\w+\})?=", "", text)) for text in (answer, gold))
    if not answer:
        return False
    if answer == gold:
        return True
    if re.fullmatch(r"\(?[A-J]\)?", gold) and (choice := re.fullmatch(r"\(?([A-J])\)?(?:[.:)].*)?", answer)):
        return choice[1] in gold
    if gold.isalpha() and answer.isalpha() and len(gold) > 2:  # words such as Yes or east; shorter ones can be products
        return answer.casefold() == gold.casefold()
    if re.search(r"\d:\d\d(?!\d)|dots", answer + " " + gold):  # a time is no ratio; nobody knows what dots mean
        return answer.rpartition("=")[2] == gold.rpartition("=")[2]
    (answer_value, _, answer_unit), (gold_value, _, gold_unit) = answer.partition('"'), gold.partition('"')
    others = other_currency(answer_unit, gold_value, texts[1]) or other_currency(gold_unit, answer_value, texts[0])
    if others or different_units(answer_unit, gold_unit):
        return False
    if re.search(r'"[,;\d]', answer_unit + " " + gold_unit):  # several quantities, such as 5"cm",6"cm"
        return re.sub('"[^"]*"', ",", answer) == re.sub('"[^"]*"', ",", gold)
    if re.search(r"(?:\^\{[^{}^]*){3}|^-?\d+_", f"{answer} {gold}"):  # a tower of powers; 17_1 is no number
        return False
    x, y = number(answer_value.rstrip("%")), number(gold_value.rstrip("%"))
    if x is None or y is None:
        return answer, gold
    percents = answer_value.endswith("%") - gold_value.endswith("%")  # 1 if only the answer has a percent sign
    return x == y or x == y * Fraction(100) ** percents  # 50% is as good as 50 or 0.5
