r"""Is a response right? Extraction of the final answer and its comparison with the gold answer; no torch in here.

verify(response, gold) takes the last balanced \boxed{...}, else what follows the last "answer is", and compares it as
a normalised string, then as an exact number. It never raises and never runs model output as code.
"""

import re
from fractions import Fraction

_ANSWER_IS = re.compile(r"answer\s{1,9}is[\s:]{0,9}", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d{1,3})?", re.IGNORECASE)
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{([-+]?\d+)\}\{([-+]?\d+)\}|([-+]?)(\d+)/(\d+)")
_LONGEST = 300  # characters; no gold answer is longer, and the work on hostile text stays bounded


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...} whose braces balance; None without one."""
    end = len(text)
    for _ in range(50):  # boxes that don't balance; more of them are noise
        start = text.rfind("\\boxed{", 0, end)
        if start < 0:
            break
        depth = 0
        for i in range(start + 6, min(len(text), start + 6 + 10 * _LONGEST)):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[start + 7 : i]
        end = start
    return None


def extract(response: str, strict: bool = True) -> str | None:
    """The final answer of a response: last box, else after the last "answer is", else (not strict) the last number."""
    boxed = last_boxed(response)
    if boxed is not None:
        return boxed
    phrases = list(_ANSWER_IS.finditer(response))
    if phrases:
        return response[phrases[-1].end() :][:_LONGEST].split("\n")[0].rstrip(" .$").lstrip(" $")
    numbers = [] if strict else _NUMBER.findall(response)
    return numbers[-1] if numbers else None


def normalise(answer: str) -> str:
    """The answer without spaces, dollar signs, thousands commas, sizes of brackets and a closing dot."""
    answer = answer[:_LONGEST].strip().strip("$").rstrip(".")
    for old, new in ((r"\left", ""), (r"\right", ""), (r"\!", ""), (r"\,", ""), (r"\ ", ""), (r"\dfrac", r"\frac"),
                     (r"\tfrac", r"\frac"), ("\u2212", "-"), (" ", ""), (r"^\circ", ""), (r"\%", "%")):  # fmt: skip
        answer = answer.replace(old, new)
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)


def number(answer: str) -> Fraction | None:
    """The exact value of a decimal or a fraction of integers (already normalised), else None."""
    if match := _FRACTION.fullmatch(answer):
        sign, top, bottom = match.group(1, 2, 3) if match.group(2) else match.group(4, 5, 6)
        return (-1 if sign == "-" else 1) * Fraction(int(top), int(bottom)) if int(bottom) else None
    return Fraction(answer) if _NUMBER.fullmatch(answer) else None


def gold_answer(answer) -> str:
    """The gold answer in a data set's field: what is boxed, or follows ####, or all of it; a list's first element."""
    answer = answer[0] if isinstance(answer, list) and answer else answer
    answer = "" if answer is None or answer == [] else str(answer)
    boxed = last_boxed(answer)
    return (answer.rpartition("####")[2] if boxed is None else boxed).strip()


def verify(response: str, gold: str, strict: bool = True) -> bool:
    """Whether the response's final answer equals the gold answer (which may itself stand in a box)."""
    answer = extract(response, strict)
    if answer is None or not answer.strip():
        return False
    answer, gold = normalise(answer), normalise(gold_answer(gold))
    if answer == gold:
        return True
    value = number(answer)
    return value is not None and value == number(gold)


def verify_all(pairs: list[tuple[str, str]]) -> list[bool]:
    """verify() of every (response, gold) pair, in order."""
    return [verify(response, gold) for response, gold in pairs]
