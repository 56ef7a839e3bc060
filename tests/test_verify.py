r"""Grading: what is extracted from a response, what counts as equal, and that no text can make it raise or dawdle."""

import time

import pytest

from verify import extract, gold_answer, last_boxed, number, verify, verify_all

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
    (r"\boxed{42 or 43}", "42"),
    (r"The answer is \boxed{41}, the answer is 42", "42"),  # a box wins over the phrase
    (r"\boxed{x+1}", "x+2"),
    (r"\boxed{42}", ""),
    (r"\boxed{}", ""),
]


@pytest.mark.parametrize("response, gold", RIGHT)
def test_right(response, gold):
    assert verify(response, gold) is True


@pytest.mark.parametrize("response, gold", WRONG)
def test_wrong(response, gold):
    assert verify(response, gold) is False


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
    ("42", "42"), (r"some work, thus \boxed{42}.", "42"), ("work\n#### 42", "42"), (["42", "43"], "42"), ([], ""),
    (27.0, "27.0"), (42, "42"), (None, ""), ("", ""), ("  7 ", "7"), (r"\boxed{1}, then \boxed{2}", "2"),
])  # fmt: skip
def test_gold_answer(field, gold):
    assert gold_answer(field) == gold


@pytest.mark.parametrize("zero", [0, 0.0, "0", [0]])
def test_a_gold_answer_of_zero_is_an_answer(zero):
    assert verify(r"\boxed{0}", gold_answer(zero)) is True


def test_number_is_exact():
    assert number("0.1") == number("1/10") == number(r"\frac{1}{10}")
    assert number("x") is None and number("1/0") is None and number("") is None
    assert number("0.30000000000000001") != number("0.3")


NASTY = ["", "\\", "\\boxed", "\\boxed{", "}", "{" * 999, "}" * 999, "\\boxed{" * 500, "\\boxed{" * 500 + "}" * 500,
         "\0", "\ud800", "\\boxed{\\frac{1}{0}}", "\\boxed{1/0}", "\\boxed{" + "9" * 20_000 + "}", "\\boxed{1e999}",
         "\\boxed{-}", "\\boxed{.}", "\\boxed{+-1}", "\\boxed{٣}", "\\boxed{²}", "\\boxed{1.}", "\\boxed{nan}",
         "\\boxed{inf}", "\\boxed{__import__('os').abort()}", "\\boxed{9**9**9}", "####", "#### \\boxed{", "answer is",
         "answer is $", "\\boxed{\\frac{" + "1" * 5000 + "}{3}}", "\\boxed{1_000}", "$" * 5000,
         ", " * 5000]  # fmt: skip


def test_no_text_raises():
    for response in NASTY:
        for gold in ("1", "", "\\boxed{", "\\boxed{1/0}", "9" * 5000, "\ud800", response):
            for strict in (True, False):
                assert verify(response, gold, strict) in (True, False)


def test_hostile_text_is_never_right():
    for response in NASTY:
        assert verify(response, "17") is False, response


LONG = ["\\boxed{" * 3000, "answer is" + "\n" * 20_000, "answer is " * 5000, "answer" + " " * 50_000, "1" * 50_000,
        "\\boxed{" + "{}" * 20_000, "1." * 20_000, "-" * 50_000]  # fmt: skip


@pytest.mark.parametrize("text", LONG, ids=lambda text: f"{text[:10]!r}, {len(text)}")
def test_long_hostile_text_is_answered_at_once(text):
    """A policy finds out what is slow to grade, if anything is; 1 s is many times what these need on a busy machine."""
    began = time.perf_counter()
    for strict in (True, False):
        verify(text, "17", strict)
    assert time.perf_counter() - began < 1


def test_verify_all_keeps_the_order():
    pairs = [(r"\boxed{1}", "1"), (r"\boxed{1}", "2"), ("", "3"), (r"\boxed{4}", "4.0")]
    assert verify_all(pairs) == [True, False, False, True]
    assert verify_all([]) == []
