r"""Grading: what is extracted from a response, what counts as equal, and that no text can make it raise or dawdle."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import core.verify as grading
from core.verify import extract, gold_answer, last_boxed, normalise, number, verify, verify_all

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data"

RIGHT = [
    (r"so it is \boxed{42}", "42"),
    (r"\boxed{41} no, wait: \boxed{42}", "42"),  # the last box counts
    (r"\boxed{42}.", r"\boxed{42}"),  # the gold may be boxed too
    (r"\boxed{27.0}", "27"),
    (r"\boxed{27}", "27.0"),
    (r"\boxed{ 42 }", "42"),
    (r"\boxed{$42$}", "42"),
    (r"\boxed{1,234}", "1234"),
    (r"\boxed{1,\!234}", "1234"),
    (r"\boxed{0.5}", r"\frac{1}{2}"),
    (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\tfrac{2}{4}}", "1/2"),
    (r"\boxed{-\frac{1}{2}}", "-0.5"),
    (r"\boxed{\frac{-1}{2}}", "-1/2"),
    (r"\boxed{+7}", "7"),
    ("\\boxed{\u22125}", "-5"),  # the typographic minus
    (r"\boxed{.5}", "0.5"),
    (r"\boxed{1e3}", "1000"),
    (r"\boxed{\left(1,2\right)}", "(1,2)"),
    (r"\boxed{x^2 + 1}", "x^2+1"),
    (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{\sqrt{2}}{2}"),  # nested braces
    (r"\boxed{90^\circ}", "90"),
    (r"\boxed{3}", "blah blah\n#### 3"),  # gold after ####
    ("The answer is 42.", "42"),
    ("the Answer is: $42$.", "42"),
    ("The answer is 41. No: the answer is 42.", "42"),
    (r"The answer is 41, or rather \boxed{42}", "42"),
    (r"\fbox{42}", "42"),
    (r"\boxed   {42}", "42"),
    (r"\boxed 42", "42"),
    (r"\boxed{\boxed{42}}", "42"),
    ("The answer is (B).", "B"),
    ("The answer: D, since neither A nor B can be", "D"),
    ("I think the correct answer is C", r"\text{(C)}"),
    ("Final Answer: 14/3", r"\frac{14}{3}"),
    ("The answer is:\n\n$$\n\\frac{1}{2}\n$$", "1/2"),
    ("Answer \\[ 9 \\]", "9"),
    ("#### 1,234", "1234"),
    ("The answer is therefore 8", "8"),
    ("The answer is 441 pounds.", "441"),
    ("Final Answer: the area of $ABC$ is 120. I hope it is correct.", "120"),
    ("Final Answer: She started growing it 3 hours ago.", "3"),
    ("Thus $x <= 2$ is our answer.", r"x \leq 2"),
]
WRONG = [
    (r"\boxed{41}", "42"),
    (r"\boxed{42} no, wait: \boxed{41}", "42"),  # a right answer on the way is not enough
    (r"\boxed{}", "42"),
    (r"\boxed{ }", "42"),
    ("", "42"),
    ("42", "42"),  # a bare number is no final answer
    (r"\boxed{42", "42"),  # not closed
    (r"\boxed{-42}", "42"),
    (r"\boxed{1.5}", "15"),
    (r"\boxed{12}", "1,2"),  # a list is no thousands comma
    (r"\boxed{1/0}", "1"),
    (r"\boxed{0.333333}", "1/3"),  # exact, not nearly
    (r"\boxed{17} \boxed{}", "17"),
    (r"<think>maybe \boxed{1}</think> so \boxed{2}", "1"),
    (r"\boxed{42 or 43}", "42"),
    (r"The answer is \boxed{41}, the answer is 42", "42"),  # a box wins over the phrase
    (r"\boxed{x+1}", "x+2"),
    (r"\boxed{42}", ""),
    (r"\boxed{}", ""),
]
EQUAL = r"""
2\sqrt2 ; \sqrt8
\frac{\sqrt2}{2} ; \frac{1}{\sqrt2}
1/i ; -i
-i ; \frac{1}{i}
0.\overline{3} ; 1/3
0.1\overline{6} ; \frac{1}{6}
\frac{1}{3} ; 0.\bar{3}
3\frac{1}{2} ; 3.5
-1\frac{1}{2} ; -1.5
3 1/2 ; 7/2
5e3 ; 5000
6.02e23 ; 6.02\times 10^{23}
6.02\cdot10^{23} ; 6.02 \times 10^{23}
42. ; 42
−5 ; -5
90° ; 90
45^{\circ} ; 45^\circ
√2 ; \sqrt{2}
2√3 ; 2\sqrt{3}
\varnothing ; \emptyset
(2,\infty) ; x>2
x>2 ; (2,\infty)
x \ge 3 ; [3,\infty)
[1,2] ; 1 \le x \le 2
1 < x \le 2 ; (1,2]
(-\infty,1)\cup(2,\infty) ; x<1 \text{ or } x>2
(B) ; B
\text{(B)} ; B
B ; \text{B}
\textbf{(B)}\ 5 ; B
50\% ; 0.5
50\% ; 50
12,345 ; 12345
12{,}345 ; 12345
x=5 ; 5
5 ; x=5
y = 2x+1 ; 2x+1
\{3,1,2\} ; \{1,2,3\}
1,2,3 ; \{3,2,1\}
2, 1 ; 1 \text{ and } 2
x = 1 \text{ or } x = 2 ; 1,2
\pm 3 ; 3,-3
\pm\sqrt{2} ; \{-\sqrt2,\sqrt2\}
\begin{bmatrix}1\\2\end{bmatrix} ; \begin{pmatrix}1\\2\end{pmatrix}
\begin{pmatrix} 1/2 & 0 \\ 0 & 1 \end{pmatrix} ; \begin{pmatrix} 0.5 & 0 \\ 0 & 1 \end{pmatrix}
10 \text{ cm} ; 10
10 cm ; 10\text{ cm}
10\,\mathrm{cm} ; 10 \text{ centimeters}
15\text{ cm}^2 ; 15\text{ cm}^2
5 apples ; 5
\$5 ; 5
5 \text{ dollars} ; \$5
2.5 million ; 2500000
x^2-1 ; (x-1)(x+1)
\frac{x^2-1}{x-1} ; x+1
\sin^2 x ; 1-\cos^2 x
e^{i\pi} ; -1
\log_2 8 ; 3
\ln e^2 ; 2
\binom{5}{2} ; 10
5! ; 120
\sqrt[3]{27} ; 3
2^{10} ; 1024
\frac{n(n+1)}{2} ; \frac{n^2+n}{2}
\text{Yes} ; yes
\text{east} ; East
3:4 ; \frac{3}{4}
100, 200, 300 ; \{300,200,100\}
6:8 ; 3:4
1:2:3 ; 2:4:6
1010_2 ; 10
1010_{2} ; 1010_2
12_{8} ; 10
\frac{\pi}{6} ; \pi/6
2pi ; 2\pi
sqrt(2)/2 ; \frac{\sqrt{2}}{2}
\left(\frac12, 3\right) ; (0.5,3)
(1, 2) ; (1,2)
a+b ; b+a
\frac{a}{b}+\frac{c}{d} ; \frac{ad+bc}{bd}
2x+y=3 ; y=3-2x
\mathbb{R} ; (-\infty,\infty)
(3,4)\cup(5,6) ; (5,6)\cup(3,4)
1+2i ; 2i+1
|x| ; \sqrt{x^2}
f(x)=2x ; 2x
P(x)=x^2+1 ; x^2+1
\dfrac{7}{2} ; 3.50
1.0 ; 1
00012 ; 12
3 \times 4 ; 12
10^{-3} ; 0.001
1{,}000{,}000 ; 10^6
x\in\{1,2\} ; \{1,2\}
\boxed{7} ; 7
\text{no solution} ; \emptyset
\frac{2}{3}\pi ; \frac{2\pi}{3}
\sqrt{12}+\sqrt{3} ; 3\sqrt3
\cos\frac{\pi}{3} ; \frac12
k\pi, k\in\mathbb{Z} ; k\pi,k\in\mathbb{Z}
\lfloor 3.7\rfloor ; 3
\frac{3}{4}\text{ hours} ; \frac34
3 \text{ or } 4 ; 3,4
4:30 \text{ p.m.} ; \text{4:30 p.m.}
\overline{AB} ; \overline{AB}
x \neq 2 ; (-\infty,2)\cup(2,\infty)
2 < x < 5 ; 5 > x > 2
\frac{-1+\sqrt5}{2} ; \frac{\sqrt5-1}{2}
x^{\frac{1}{2}} ; \sqrt{x}
e^{-x} ; \frac{1}{e^x}
\sec x ; \frac{1}{\cos x}
"""
DIFFERENT = r"""
\frac{1}{2^{98}} ; \frac{1}{2^{99}}
1.6e-19 ; 1.7e-19
1.6\times10^{-19} ; 1.7\times10^{-19}
1010_2 ; 1010_3
4:3 ; 3:4
3:2:1 ; 1:2:3
2:1:3 ; 2:3:1
0.3333 ; 1/3
3.14 ; \pi
(2,1) ; (1,2)
[1,2] ; (1,2)
[0,1) ; (0,1)
x>2 ; x\ge 2
x>2 ; x<2
R ; r
x' ; x
5 \text{ cm} ; 5 \text{ m}
15\text{ cm} ; 15\text{ cm}^2
5 million ; 5
1,2 ; 1,2,3
1,2,3 ; 1,2
\pm 3 ; 3
3 ; \pm 3
2x=4 ; 4
x+1 ; x+2
x^2 ; x
\sqrt{x^2} ; x
|x| ; x
x=5 ; y=5
x^2+1=0 ; x^2+2=0
x^2=4 ; x=2
10^{100}+1 ; 10^{100}
1+10^{-50} ; 1
\sqrt2+10^{-30} ; \sqrt2
1/0 ; 5
\frac{0}{0} ; 0
\infty ; 5
5 ; \infty
-\infty ; \infty
\begin{pmatrix}1&2\\3&4\end{pmatrix} ; \begin{pmatrix}1&2\\3&5\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} ; \begin{pmatrix}1&2\end{pmatrix}
\{1,2\} ; \{1,3\}
(1,\frac{1}{2^{99}}) ; (1,\frac{1}{2^{98}})
[10^{-20},1] ; [10^{-19},1]
\{10^{-20},1\} ; \{10^{-19},1\}
A ; B
C ; \text{(D)}
\text{odd} ; \text{even}
1{,}000 ; 1.000
32, 349 ; 32349
17_{1} ; 17
10^{10} ; 10^{10^{10^{10}}}
12 ; 1 2
x^3 ; x^2 x^2
n! ; (n+1)!
f(x)=0 ; f(x)=1
2 ; 1
0 ; 10^{-10}
(1,2),(3,4) ; (1,2)
(1,2),(3,4) ; (1,2),(4,3)
(1,2)\cup(3,4) ; (1,2)\cup(3,5)
\emptyset ; 0
\{0\} ; \emptyset
\frac{\pi}{2} ; \frac{\pi}{3}
e ; 2.718281828
1,2,\ldots,n ; 1,3,\ldots,n
a<b ; b<a
f(2)<f(1)<f(4) ; f(2)<f(3)<f(4)
x<5 ; y<5
4:30 ; 2:15
12:00 ; 1:00
\log_2 8 ; 4
5 \pmod 7 ; 6
2^{1000} ; 2^{1001}
-5 ; 5
i ; -i
\text{True} ; \text{False}
x=1,y=2 ; x=2,y=1
3x+4y+14=0 ; 3x-y+13=0
\sqrt{2} ; \sqrt{3}
x<1 ; -x<-1
x^2<1 ; x^2>1
2004! ; 2005!
\frac{1}{2004!} ; \frac{1}{2006!}
1.0000001 ; 1
x+10^{-20} ; x
\neg A ; A
\text{not }5 ; 5
"""


def table(text: str) -> list[list[str]]:
    return [line.split(" ; ") for line in text.strip().splitlines()]


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """What is right here is right on a slow and busy machine too. The deadline has tests in test_verify_hostile.py."""
    monkeypatch.setattr(grading, "DEADLINE", 60)
    monkeypatch.setattr(grading, "START_DEADLINE", 600)


@pytest.mark.parametrize("response, gold", RIGHT)
def test_right(response, gold):
    assert verify(response, gold) is True


@pytest.mark.parametrize("response, gold", WRONG)
def test_wrong(response, gold):
    assert verify(response, gold) is False


@pytest.mark.parametrize("answer, gold", table(EQUAL))
def test_equal_answers(answer, gold):
    assert verify(rf"so \boxed{{{answer}}}.", gold) is True


@pytest.mark.parametrize("answer, gold", table(DIFFERENT))
def test_different_answers(answer, gold):
    assert verify(rf"so \boxed{{{answer}}}.", gold) is False


def test_the_last_number_counts_only_when_not_strict():
    assert verify("first 41, then 42", "42") is False
    assert verify("first 41, then 42", "42", strict=False) is True
    assert verify("first 42, then 41", "42", strict=False) is False


def test_extract():
    assert extract(r"a \boxed{1} b \boxed{\frac{2}{3}} c") == r"\frac{2}{3}"
    assert extract("so the answer is $x+1$.\nBye") == "x+1"
    assert extract("nothing here, 12") is None
    assert extract("nothing here, 12", strict=False) == "12"
    assert extract("nothing here", strict=False) is None


def test_last_boxed_takes_the_last_that_balances():
    assert last_boxed(r"\boxed{1} and \boxed{2") == "1"
    assert last_boxed(r"\boxed{a{b}{c{d}}}") == "a{b}{c{d}}"
    assert last_boxed(r"\boxed{\boxed{3}}") == "3"  # the inner one begins last
    assert last_boxed("no box") is None
    assert last_boxed(r"\boxed{}") == ""


@pytest.mark.parametrize("field, gold", [
    ("42", "42"), (r"some work, thus \boxed{42}.", "42"), ("work\n#### 42", "42"), (["42", "43"], "42, 43"), ([], ""),
    (27.0, "27"), (["27.0"], "27"),
    (42, "42"), (None, ""), ("", ""), ("  7 ", "7"), (r"\boxed{1}, then \boxed{2}", "2"),
])
def test_gold_answer(field, gold):
    assert gold_answer(field) == gold


@pytest.mark.parametrize("zero", [0, 0.0, "0", [0]])
def test_a_gold_answer_of_zero_is_an_answer(zero):
    assert verify(r"\boxed{0}", gold_answer(zero)) is True


@pytest.mark.parametrize("unit, right, wrong", [
    ("minute", ["45", "45 minutes", r"45\text{ min}"], ["45 seconds", r"45\text{ hours}", "46"]),
    ("$cm^2$", ["45", r"45\text{ cm}^2"], [r"45\text{ cm}", r"45\text{ m}^2"]),
    ("^{\\circ}", ["45", r"45^\circ"], ["46"]),
    ("km/h", ["45", r"45\text{ km/h}"], [r"45\text{ m}", r"45\text{ s}"]),
    (None, ["45", "45 seconds"], ["46 seconds"]),
])
def test_a_unit_that_the_benchmark_states(unit, right, wrong):
    gold = gold_answer(["45"], unit)
    assert all(verify(rf"\boxed{{{answer}}}", gold) for answer in right)
    assert not any(verify(rf"\boxed{{{answer}}}", gold) for answer in wrong)


UNITS = ["km", "km/h", "min", "minute", "minutes", "$cm^2$", "m/s^2", "hours"]  # OlympiadBench has the first six
OTHERS = [3, 0, 4.5, True, None, "", " ", "$", "3", "2^3", "%", "^{\\circ}", "Chapter 2", "Algebra", "unit", "A",
          "1a", "/", "a" * 999, "km, h", ["cm"], [], {"unit": "cm"}, {}, ("m",), b"cm", float("nan")]


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_of_measure_is_part_of_the_gold_answer(unit):
    assert gold_answer("45", unit) == rf"45 \text{{ {unit.strip('$')}}}"
    assert gold_answer("x=45", unit) == "x=45"


@pytest.mark.parametrize("unit", OTHERS, ids=ascii)
def test_a_column_called_unit_that_is_none_changes_nothing(unit):
    """In somebody's own data it may be a chapter, a count, a list."""
    for answer in ("45", r"\boxed{45}", "work\n#### 45", ["45"], 45):
        assert gold_answer(answer, unit) == "45"
    assert verify(r"\boxed{45\text{ apples}}", gold_answer("45", unit))


def test_votes_for_equal_answers_share_a_form():
    assert len({normalise(text) for text in ("0.5", "1/2", r"\dfrac12", r"\frac{2}{4}", "$.50$")}) == 1
    assert len({normalise(text) for text in ("1,234", r"1\,234", "1234.0", "1{,}234")}) == 1
    assert normalise(r"2\sqrt{3}") != normalise(r"2\sqrt{5}")
    assert all(isinstance(normalise(text), str) for text in NASTY)


def test_number_is_exact():
    assert number("0.1") == number("1/10") == number(r"\frac{1}{10}")
    assert number("x") is None and number("1/0") is None and number("") is None
    assert number("0.30000000000000001") != number("0.3")


NASTY = ["", "\\", "\\boxed", "\\boxed{", "}", "{" * 999, "}" * 999, "\\boxed{" * 500, "\\boxed{" * 500 + "}" * 500,
         "\0", "\ud800", "\\boxed{\\frac{1}{0}}", "\\boxed{1/0}", "\\boxed{" + "9" * 20_000 + "}", "\\boxed{1e999}",
         "\\boxed{-}", "\\boxed{.}", "\\boxed{+-1}", "\\boxed{٣}", "\\boxed{²}", "\\boxed{1.}", "\\boxed{nan}",
         "\\boxed{inf}", "\\boxed{__import__('os').abort()}", "\\boxed{9**9**9}", "####", "#### \\boxed{", "answer is",
         "answer is $", "\\boxed{\\frac{" + "1" * 5000 + "}{3}}", "\\boxed{1_000}", "$" * 5000,
         ", " * 5000]


def test_no_text_raises():
    for response in NASTY:
        for gold in ("1", "", "\\boxed{", "\\boxed{1/0}", "9" * 5000, "\ud800", response):
            for strict in (True, False):
                assert verify(response, gold, strict) in (True, False)


def test_hostile_text_is_never_right():
    for response in NASTY:
        assert verify(response, "17") is False, response


LONG = ["\\boxed{" * 3000, "answer is" + "\n" * 20_000, "answer is " * 5000, "answer" + " " * 50_000, "1" * 50_000,
        "\\boxed{" + "{}" * 20_000, "1." * 20_000, "-" * 50_000]


def cpu(work) -> float:
    """Seconds of CPU that work() needs in this process, the best of three, nothing remembered from before."""
    seconds = []
    for _ in range(3):
        grading.quick.cache_clear()
        grading.normalise.cache_clear()
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


def yardstick() -> float:
    """The CPU time of this machine for something linear: the words of 100,000 characters. 3 ms here."""
    return cpu(lambda: re.findall(r"\w+", "Let us see, step by step. " * 4000))


@pytest.fixture
def no_worker(monkeypatch):
    """Nothing gets as far as a worker."""
    monkeypatch.setattr(grading, "in_workers", lambda items: pytest.fail(f"a worker for {items}") if items else [])


@pytest.mark.parametrize("text", LONG, ids=lambda text: f"{text[:10]!r}, {len(text)}")
def test_long_hostile_text_is_answered_at_once(text):
    """A policy finds out what is slow to grade, if anything is. One quadratic pattern takes hundreds of yardsticks."""
    assert cpu(lambda: [verify(text, "17", strict) for strict in (True, False)]) < 50 * yardstick()


def test_verify_all_keeps_the_order():
    pairs = [(r"\boxed{1}", "1"), (r"\boxed{1}", "2"), ("", "3"), (r"\boxed{4}", "4.0")]
    assert verify_all(pairs) == [True, False, False, True]
    assert verify_all([]) == []


def rows(name: str) -> list[dict]:
    if not (DATA / name).exists():
        pytest.skip("the shared data are not here")
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def test_public_cases():
    """At least 98 % of the core cases right; Math-Verify's own defaults reach 95.7 %. Nothing wrong is accepted."""
    cases = [row for row in rows("verify_public.jsonl") if row["tier"] == "core"]
    right = verify_all([(row["response"], row["gold"]) for row in cases])
    wrong = [row["id"] for row, verdict in zip(cases, right) if verdict != row["expect"]]
    accepted = [row["id"] for row, verdict in zip(cases, right) if verdict and not row["expect"]]
    assert not accepted and len(wrong) <= 0.02 * len(cases), wrong


@pytest.mark.parametrize("name, column", [
    ("math500", "answer"), ("minerva", "solution"), ("olympiadbench", "final_answer"), ("aime24", "answer"),
    ("aime25", "answer"), ("amc23", "answer"), ("gsm8k", "answer"), ("deepscaler_4k", "answer"),
])
def test_gold_answers_are_right(name, column):
    problems = rows(f"{name}.jsonl")
    golds = [(gold_answer(row[column]), gold_answer(row[column], row.get("unit"))) for row in problems]
    pairs = [(rf"so it is \boxed{{ {answer} }}.", gold) for answer, gold in golds]
    assert sum(verify_all(pairs)) >= 0.995 * len(pairs)


def test_real_generations_agree_with_the_peer():
    problems = rows("generations_dev50.jsonl")
    right = verify_all([(response, row["answer"]) for row in problems for response in row["responses"]])
    peer = [score for row in problems for score in row["peer_score"]]
    assert sum(mine == score for mine, score in zip(right, peer)) >= 0.97 * len(peer)


def test_the_easy_ones_take_microseconds(no_worker):
    """What most training answers are: an integer, a fraction, a number with a unit, right or wrong, in 2,000
    characters. 1,500 of them take 15 yardsticks, about 30 microseconds each."""
    text = "Let us see, step by step. " * 80
    pairs = [(rf"{text}\boxed{{{k}}}", str(k + k % 2)) for k in range(1000)]
    pairs += [(rf"{text}\boxed{{\dfrac{{{k}}}{{7}}}}", rf"\frac{{{k}}}{{7}}") for k in range(250)]
    pairs += [(rf"{text}\boxed{{{k}\text{{ cm}}}}", rf"{k}\text{{ m}}") for k in range(250)]
    assert cpu(lambda: verify_all(pairs)) < 60 * yardstick()


# ------------------------------------------------------------------------------- spaces, sizes, what cannot be seen
SPACED = r"""
5\  ; 5
\ 5 \  ; 5
\ 1,234\  ; 1234
5\text{ cm}\  ; 5\text{ cm}
3{\,/\,}4 ; 3/4
3{:}4 ; 3:4
\lbrace 1,2\rbrace ; \{1,2\}
\left\lbrace 1,2\right\rbrace ; \{1,2\}
\bigl\lbrace 1,2\bigr\rbrace ; \{1,2\}
\bigl(2,3\bigr) ; (2,3)
\Bigl(2,3\Bigr) ; (2,3)
\biggl(2,3\biggr) ; (2,3)
\Biggl(2,3\Biggr) ; (2,3)
\bigg(2,3\bigg) ; (2,3)
\bigl[2,3\bigr) ; [2,3)
\bigl|x\bigr| ; |x|
"""


@pytest.mark.parametrize("answer, gold", [line.split(" ; ") for line in SPACED.strip().splitlines()])
def test_spaces_and_the_size_of_brackets_make_no_difference(answer, gold):
    assert verify(rf"\boxed{{{answer}}}", gold)


def test_a_command_that_begins_like_a_size_and_a_row_break_stay():
    assert normalise(r"\bigcup_{k}A_k") == r"\bigcup_kA_k"
    assert verify(r"\boxed{\begin{pmatrix}1\\ 2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}")


CONTROLS = [chr(i) for i in (*range(9), 11, 12, *range(14, 32), *range(127, 160))]


@pytest.mark.parametrize("character", CONTROLS, ids=ascii)
def test_an_answer_with_control_characters_is_wrong(character):
    long = "7" * 600
    assert not verify(rf"\boxed{{52{character}}}", "52") and not verify(rf"\boxed{{5{character}2}}", "52")
    assert not verify(f"The answer is 5{character}2", "52") and not verify(rf"\boxed{{{long}{character}}}", long)


def test_tabs_and_line_ends_are_white_space():
    assert verify("\\boxed{\n52\r\n}", "52") and verify("\\boxed{\t52\t}", "52")


LONG_INTEGERS = [  # of 601 digits or more; the last two are longer than what int() agrees to read
    ("1" + "234" * 200, "+1" + "234" * 200), ("001" + "234" * 200, "1" + "234" * 200),
    ("1" + ",234" * 200, "1" + "234" * 200), ("1" + "{,}234" * 200, "1" + "234" * 200),
    ("1" + r"\,234" * 200, "1" + "234" * 200), ("1" + " 234" * 200, "1" + "234" * 200),
    ("1" + "234" * 200 + ".0", "1" + "234" * 200), ("$1" + "234" * 200 + "$", "1" + "234" * 200),
    ("\u2212" + "7" * 600, "-" + "7" * 600), ("1" + ",234" * 125, "1" + "234" * 125), ("0" * 600, "0"),
    ("7" * 5000, "7" * 5000), ("7" * 19_000, "+" + "7" * 19_000),
]


@pytest.mark.parametrize("answer, gold", LONG_INTEGERS, ids=lambda text: f"{text[:9]}, {len(text)}")
def test_equal_integers_of_any_length_are_right(answer, gold):
    assert verify(rf"\boxed{{{answer}}}", gold)
    assert verify(f"The answer is ${answer.strip('$')}$.", gold)
    assert not verify(rf"\boxed{{{answer}}}", gold[:-1] + "1") and not verify(rf"\boxed{{{answer}}}", gold + "1")


def test_long_integers_that_differ_are_wrong():
    long = "7" * 600
    for answer in ("-" + long, long + ".5", f"{long},{long}", "7777" + ",777" * 200, long + "7", ""):
        assert not verify(rf"\boxed{{{answer}}}", long), answer
    assert not verify(f"The answer is {long}", long[:500])
    assert not verify(r"\boxed{}", "0" * 600) and not verify(rf"\boxed{{{' ' * 600}}}", " " * 600)


DIGITS = ["\\boxed{" + "1" * 50_000, "\\boxed{" + "1 " * 25_000 + "}", "\\boxed{1" + " 111" * 12_000 + "x}",
          "\\boxed{111" * 5000, "\\boxed{" + "0" * 50_000 + "x}", "answer is " + "1,111" * 3800,
          "answer is $" + "1" * 19_000]


@pytest.mark.parametrize("text", DIGITS, ids=lambda text: f"{text[:10]!r}, {len(text)}")
def test_long_digits_are_answered_at_once(text):
    golds = "17", "1" * 600
    assert not any(verify(text, gold, strict) for gold in golds for strict in (True, False))
    assert cpu(lambda: [verify(text, gold, strict) for gold in golds for strict in (True, False)]) < 100 * yardstick()


# ---------------------------------------------------------------------------------- what models write around an answer
# In these tables | is the end of a line.
LABELS = r"""
**Final Answer**: 42
**Final Answer:** 42
**Final answer**: **42**
**Final Result**: $42$
**Answer**: 42.
**Answer**: \(42\)
*Answer*: 42
__Final Answer__: 42
✅ **Final Answer**: 42
### **Final Answer**: **42** ✅
The answer is **42** apples.
The answer is: **42**.
The answer is：42
答案是42。
所以答案是 $42$。
最终答案：42
**答案**：42
"""
HEADINGS = r"""
### Final Answer|42
### Final Answer||42
### Final Answer|$42$
### Final Answer||**42**
### Final Answer|**42.**
### Final Answer|`42`
### Final Answer|> 42
### Final Answer||---||42
### Final Answer||$$42$$
### Final Answer||$$|42|$$
### Final Answer||\[|42|\]
### Final Answer|\(42\)
### Final Answer|x = 42
### Final Answer|$x = 42$
### Final Answer|42 apples
### Final Answer|42 square units.
### Final Answer|**42 apples**
### Final Answer|There are **42** apples.
### Final Answer|The total is $42$.
### Final Answer|42||### Check|6 times 7 is 42, as it should be.
### Final Answer||42 ✅
### Final Answer ✅|42
### FINAL ANSWER|42
### The Final Answer|42
### Step 5: Final Answer|42
### 5. Final Answer|42
### **Final Answer**|42
### Final Answer:||42
## Answer|42
# Answer||42
## Result|42
Answer|42
**Answer:**|42
**Answer**||42
**Final Answer**|42
**Final Answer**||$$42$$
**Final Answer**||\[|42|\]
**Step 4: Final Answer**||$42$
### Answer|43||### Final Answer|42
**答案**|42
The answer is 42.||### Final Answer|As computed above.
"""
NO_ANSWER = r"""
### Final Answer
### Final Answer|
### Final Answer||
### Final Answer|41
### Final Answer|-42
### Final Answer|4.2
### Final Answer|42.5
### Final Answer|42/43
### Final Answer|not 42
### Final Answer|The answer is not 42.
### Final Answer|41 or 42
### Final Answer|42 or 43
### Final Answer|41, 42
### Final Answer|42|43
### Final Answer||42||43
### Final Answer|- 42|- 43
### Final Answer|* 42|* 43
### Final Answer|$42$ or $43$
### Final Answer|$x = 42$, $y = 43$
### Final Answer|x = 42, y = 43
### Final Answer|42 apples, 43 pears
### Final Answer|42 apples and 3 pears
### Final Answer|We used 42 steps to find the total.
### Final Answer|The 42 students were divided into groups of unknown size.
### Final Answer|After 42 attempts I give up.
**Final Answer**|$42$ or $43$
**Final Answer**: not 42
**Final Answer**: 42 or 43
### Final Answer|42||Wait, that is wrong. The answer is 43.
### Final Answer|42||### Final Answer|43
The answer is 42.||### Final Answer|43
This is my final answer|42
Let us check the answer|42
The answers are $42$ and $43$.
The answer is $42$ or $43$.
答案不是42
答案是42还是43
"""


def lines(text: str) -> list[str]:
    return [line.replace("|", "\n") for line in text.strip().splitlines()]


@pytest.mark.parametrize("response", lines(LABELS) + lines(HEADINGS))
def test_an_answer_behind_a_label_or_below_a_heading(response):
    assert verify(f"We add.\n\n{response}", "42") and verify(response + "\n", "42")
    assert not verify(response, "4.2") and not verify(response, "4")


@pytest.mark.parametrize("response", lines(NO_ANSWER))
def test_below_a_heading_one_answer_has_a_line_for_itself(response):
    """Prose, several numbers and other answers are not 42."""
    assert not verify(f"We add.\n\n{response}", "42")


def test_below_a_heading_there_may_be_any_answer():
    assert verify("### Final Answer\n\n(B) 42", "B") and verify("**Answer**\nB", "B")
    assert verify("### Final Answer\nyes", "Yes") and verify("## Answer\nx + y", "y+x")
    assert verify("**Final Answer**\n\n$\\frac{1}{2}$", "0.5") and verify("### Final Answer\n1,234", "1234")
    assert verify("### Final Answer\n$2$ and $3$", "2, 3") and verify("The answers are $2$ and $3$.", "2, 3")
    assert verify("### Final Answer\n-42", "-42")


STYLES = r"""
\underline{42}
\underline{\underline{42}}
\uline{42}
\underline{\text{42}}
\text{\underline{42}}
\underline{\quad 42 \quad}
\color{red}{42}
\color{red} 42
\color{red}42
{\color{red} 42}
{\color{red}{42}}
\color[rgb]{1,0,0}{42}
\textcolor{red}{42}
\textcolor{#ff0000}{42}
\textcolor[rgb]{1,0,0}{42}
\textcolor[HTML]{FF0000}{42}
\textcolor{blue!50}{\mathbf{42}}
\mathcolor{red}{42}
\colorbox{yellow}{42}
\colorbox{yellow}{$42$}
\colorbox{yellow}{$\displaystyle 42$}
\fcolorbox{red}{yellow}{42}
\boldsymbol{42}
\bm{42}
\bm {42}
\bold{42}
\pmb{42}
\mathbf{42}
\mathbf 42
\bf 42
{\bf 42}
\emph{42}
\large 42
{\Large 42}
\textcolor{red}{\boldsymbol{\underline{42}}}
\color{red}{4}\color{blue}{2}
\phantom{0}42
"""
NO_STYLES = r"""
\underline{41}
\underline{4.2}
\underline{}
\underline{\qquad}
\underline{42}43
\underline{42} \text{ or } 43
\color{42}
\color{42}{41}
\color{red}{41}
\color{red}{4.2}
\color{red}{42}{43}
\color{red}{42},\color{blue}{43}
{\color{42} 41}
\textcolor{42}
\textcolor{42}{}
\textcolor{red}{41}
\textcolor[42]{42}{41}
\colorbox{42}{41}
\fcolorbox{red}{42}
\fcolorbox{42}{42}{41}
\boldsymbol{41}
\bm{-42}
\cancel{42}
\sout{42}
\phantom{42}
\overline{42}
\underline{\overline{42}}
4\textsuperscript{2}
"""


@pytest.mark.parametrize("answer", lines(STYLES))
def test_how_an_answer_looks_makes_no_difference(answer):
    assert verify(rf"\boxed{{{answer}}}", "42") and not verify(rf"\boxed{{{answer}}}", "4.2")
    assert normalise(answer) == "42"  # one vote


@pytest.mark.parametrize("answer", lines(NO_STYLES))
def test_a_style_is_no_answer(answer):
    assert not verify(rf"\boxed{{{answer}}}", "42")


def test_styles_of_parts():
    assert verify(r"\boxed{\color{red}{4}2}", "42") and not verify(r"\boxed{\color{red}{4}2}", "8")  # no product
    assert verify(r"\boxed{\frac{\color{red}{1}}{\color{blue}{2}}}", "0.5") and verify(r"\boxed{2\bm{\pi}r}", r"2\pi r")
    assert verify(r"\boxed{\textcolor{red}{\textbf{(B)}}}", "B") and verify(r"\boxed{x^{\boldsymbol{10}}}", "x^{10}")
    assert verify(r"\boxed{\color{red}{\{1,2\}}}", r"\{2,1\}") and verify(r"\boxed{\bm{\frac{1}{2}}}", "1/2")
    assert verify(r"\boxed{0.\overline{42}}", "42/99") and not verify(r"\boxed{\overline{AB}}", "AB")  # as before


CHINESE = r"""
\boxed{42。} ; 42
\boxed{42}。 ; 42
\boxed{$42$。} ; 42
\boxed{42．} ; 42
\boxed{42，} ; 42
\boxed{4．2} ; 4.2
\boxed{1，234} ; 1234
\boxed{1，2} ; 1,2
\boxed{1、2} ; 1,2
\boxed{（1，2）} ; (1,2)
\boxed{42％} ; 42\%
\boxed{x＝－42} ; -42
\boxed{3：4} ; 3:4
\boxed{5\text{ cm}。} ; 5\text{ cm}
The answer is 42。 ; 42
The answer is 42．  ; 42
The answer is $42$。 ; 42
The answer is 42。So we are done, after 43 steps。 ; 42
"""
NOT_CHINESE = r"""
\boxed{4。2} ; 42
\boxed{4。2} ; 4.2
\boxed{42。43} ; 42
\boxed{4，2} ; 42
\boxed{4．2} ; 42
\boxed{1、234} ; 1234
\boxed{（1，2）} ; (2,1)
The answer is 4。2 ; 42
The answer is 41。 ; 42
"""


@pytest.mark.parametrize("response, gold", table(CHINESE))
def test_chinese_punctuation(response, gold):
    assert verify(response, gold)


@pytest.mark.parametrize("response, gold", table(NOT_CHINESE))
def test_chinese_punctuation_within_a_number(response, gold):
    assert not verify(response, gold)


MONEY = r"""
€42 ; 42
£42 ; 42
¥42 ; 42
￥42 ; 42
₹42 ; 42
₩42 ; 42
US$42 ; 42
US\$42 ; 42
\text{US\$}42 ; 42
\text{US}\$42 ; 42
USD 42 ; 42
\text{USD }42 ; 42
EUR 42 ; 42
Rs. 42 ; 42
Rs 42 ; 42
\text{Rs. }42 ; 42
\mathrm{Rs}\,42 ; 42
\pounds 42 ; 42
\pounds42 ; 42
\text{\textsterling}42 ; 42
\euro 42 ; 42
\text{\euro}42 ; 42
\yen 42 ; 42
\textdollar 42 ; 42
\text{€}42 ; 42
\text{€ }42 ; 42
\text{€42} ; 42
\textbf{€42} ; 42
$€42$ ; 42
€ 42 ; 42
€\,42 ; 42
-€42 ; -42
€-42 ; -42
x = €42 ; 42
€42.50 ; 42.5
€1,234.56 ; 1234.56
€1\,234 ; 1234
€5 million ; 5000000
€5\text{ million} ; 5000000
€12.50 per hour ; 12.5
€42\text{ per hour} ; 42
42€ ; 42
42 € ; 42
42\,\text{€} ; 42
42\text{ €} ; 42
42\text{ EUR} ; 42
42¢ ; 42
42元 ; 42
42 円 ; 42
42 ; €42
$42$ ; €42
€42 ; 42 euros
42 EUR ; €42
42 EUR ; 42 euros
42 USD ; 42 dollars
£42 ; 42 pounds
¥42 ; 42 yuan
¥42 ; 42 yen
RMB 42 ; 42 yuan
US\$42 ; \$42
₹42 ; Rs. 42
42¢ ; 42 cents
Rs ; sR
\frac{Rs}{2} ; \frac{sR}{2}
"""
OTHER_MONEY = r"""
€43 ; 42
€4.2 ; 42
€ ; 42
-€42 ; 42
€42 ; \$42
\$42 ; €42
€42 ; £42
€42 ; \pounds 42
€42 ; ¥42
€42 ; 42 dollars
\$42 ; 42 euros
US\$42 ; €42
\textdollar 42 ; €42
USD 42 ; €42
42¢ ; \$42
42\% ; €42
€42 ; 42\%
€0.42 ; 42\%
€42 ; 42\text{ cm}
€42 ; 42 apples
€42, €43 ; 42
€42 or €43 ; 42
42€, 43€ ; 42
42\text{ cm}, 43\text{ cm} ; 42
"""


@pytest.mark.parametrize("answer, gold", table(MONEY))
def test_the_sign_of_a_currency(answer, gold):
    assert verify(rf"\boxed{{{answer}}}", gold)


@pytest.mark.parametrize("answer, gold", table(OTHER_MONEY))
def test_another_currency_is_another_answer(answer, gold):
    assert not verify(rf"\boxed{{{answer}}}", gold)


def test_money_in_a_sentence():
    for money in ("€42", "US$42", "£42", "42 €", "42€", "€42 per day"):
        assert verify(f"The answer is {money}.", "42")
    assert verify("**Answer**: €42", "42") and verify("### Final Answer\n**€42**", "42")
    assert verify("The answer is $42. That is $6 per day.", "42")  # what stands between two dollars is no formula here
    assert not verify("The answer is $42 a day for 7 days, $6 each.", "6")


PATTERNS = [  # they are repeated
    "\n", "\n#", "\n**", "\nanswer", "\nanswer\n", "\nanswer\n$", "\nanswer\n$1", "\nanswer\n-", "\nanswer\n1\n",
    "\nanswer\n" + " " * 20, "\nanswer\n" + "-" * 41, "\n############1.", "\nfinal ", "answer*", "answer:=", "答案 ",
    "\n答案\n", "** a", "**a", "$1 and ", "$1$ and ", "$   ", "answer is $1 a", "answer is $1 aa ", "is are ", "。",
    "。}", "€", "€1", "US$", "US}", "USD", "Rs ", r"\color", r"\color{", r"\color[", r"\color{red}", r"\color{red}{",
    r"{\color{a}", r"{\large", r"\underline{", r"\bm{", r"\fcolorbox{a}{b}{", r"\phantom{", "{",
]
SPANS = [
    "answer is $1 " + "a" * 10**5, "answer is $1" + " " * 10**5, "$" + " " * 10**5 + "and $1",
    "answer is **" + "a" * 10**5, "\n### answer\n" + "a " * 50_000, "\n### answer\n" + " " * 10**5,
    "\n### answer\n" + "-" * 10**5, "\n### answer\n$" + "1" * 10**5, r"\boxed{\bm{" + "{}" * 50_000 + "}}",
]
HOSTILE = [part * (10**5 // len(part)) for part in PATTERNS] + SPANS


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: f"{text[:14]!r}, {len(text)}")
def test_no_pattern_is_slow_on_hostile_text(text, no_worker):
    """100,000 characters, as a response, in a box, behind "answer is", and what a box may hold at most."""
    responses = text, rf"\boxed{{{text}}}", rf"\boxed{{{text[:490]}}}", "answer is " + text[:19_900]
    extracting = cpu(lambda: [extract(response, strict) for response in responses for strict in (True, False)])
    normalising = cpu(lambda: normalise(text[:500]))
    assert extracting < 75 * yardstick() and normalising < 5 * yardstick()


# ------------------------------------------------------------------------------------------------ platforms
WINDOWS = """
import runpy, sys
import torch, transformers, numpy, tqdm, safetensors
sys.platform = "win32"
sys.path.insert(0, ".")
sys.argv = ["grpo.py", "--steps", "1"]
"""


more = lambda case: pytest.param(case, marks=pytest.mark.slow)


@pytest.mark.parametrize("then", [more("import core"), more("import core.verify"), "runpy.run_path('grpo.py')"])
def test_native_windows_is_one_line(then):
    ran = subprocess.run([sys.executable, "-c", WINDOWS + then], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2 and not ran.stdout and ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("error: nanoRLVR runs on Linux and macOS; on Windows use WSL")
