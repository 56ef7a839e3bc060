"""Easy problems for a small real model: sums and word problems of one step, built in."""

import random

import tiny

# The ways to ask for a sum, difference, product or quotient of a and b: the first in two of three problems, the others
# with two names, {x} and {y}, and {things}.
EASY = {
    "+": (
        "What is {a} + {b}?",
        "{x} has {a} {things} and buys {b} more. How many {things} does {x} have now?",
        "{x} has {a} {things} and {y} has {b}. How many {things} do they have together?",
        "There are {a} {things} on a table and {b} in a bag. How many {things} are there in all?",
    ),
    "-": (
        "What is {a} - {b}?",
        "{x} has {a} {things} and gives {b} of them to {y}. How many {things} are left?",
        "{x} has {a} {things} and {y} has {b}. How many more {things} does {x} have than {y}?",
        "A shop had {a} {things} and sold {b}. How many {things} does it still have?",
    ),
    "*": (
        "What is {a} * {b}?",
        "{x} buys {a} boxes with {b} {things} in each. How many {things} does {x} buy?",
        "{x} collects {b} {things} every day. How many {things} does {x} have after {a} days?",
        "There are {a} children and each has {b} {things}. How many {things} do they have together?",
    ),
    "/": (
        "What is {a} / {b}?",
        "{x} shares {a} {things} equally among {b} friends. How many {things} does each friend get?",
        "{x} packs {a} {things} into bags of {b}. How many bags does {x} need?",
        "{a} {things} stand in {b} equal rows. How many {things} are in a row?",
    ),
}
NAMES = "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Liam Mia Noah Paul Rosa Sam Tina Victor".split()
THINGS = "apples books cards coins cups eggs flowers marbles pens shells stamps stickers".split()


def easy_problems(split: str, n: int) -> list[dict]:
    """n different problems of one step, {"problem": str, "answer": str}, in whole numbers from 2 to 60. A hash of its
    text decides whether a problem may be in easy-test (one in eight) or in easy."""
    rng, drawn = random.Random(split), {}
    while len(drawn) < n:
        op, a, b = rng.choice(list(EASY)), rng.randint(2, 30), rng.randint(2, 30)
        if op in "*/":
            a, b = rng.randint(2, 12), rng.randint(2, 12)
        low, high = (a, a + b) if op in "+-" else (a, a * b)
        if op in "-/":  # the inverse of a sum or product
            a, low, high = high, high, low
        if max(low, high) > 60:
            continue
        (x, y), things = rng.sample(NAMES, 2), rng.choice(THINGS)
        plain, *stories = EASY[op]
        text = rng.choice([plain, plain, rng.choice(stories)]).format(a=a, b=b, x=x, y=y, things=things)
        if tiny.for_test(text) == split.endswith("test"):
            drawn.setdefault(text, dict(problem=text, answer=str(high)))
    return list(drawn.values())
