"""Problems, prompts and sampling: what is read from a data set, and that a response is nobody's affair but its own."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core.policy import Policy
from core.data import DATA, TEMPLATES, draw, load_data, render
from core.rollout import Batch, Rollouts, generate, grade
from core.sampler import TorchSampler, mix, streams
from core.verify import verify

END = 260  # the tiny model's end token


def sampler_of(policy, **options):
    sampler = TorchSampler(policy, {END}, **options)
    sampler.sync(policy)
    return sampler


@pytest.fixture(scope="module")
def sampler(policy):
    return sampler_of(policy)


def sample(sampler, prompts, n=4, numbers=None, seed=0, new=24, temperature=1.0):
    """A list of responses (ids, logprobs, entropies, finished) for each prompt."""
    numbers = list(range(len(prompts))) if numbers is None else numbers
    flat = sampler.sample(prompts, n, numbers, seed, new, temperature, quiet=True)
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def same(a, b):
    """Whether two responses are the same tokens with the same logprobs (to rounding) and the same end."""
    return np.array_equal(a[0], b[0]) and np.allclose(a[1], b[1], atol=1e-5) and a[3] == b[3]


# ------------------------------------------------------------------------------------------------ sampling
@pytest.fixture(scope="module")
def together(sampler, prompts):
    return sample(sampler, prompts)


def test_a_response_does_not_depend_on_the_batch(sampler, prompts, together):
    for i, prompt in enumerate(prompts):
        alone = sample(sampler, [prompt], numbers=[i])[0]
        assert all(same(a, b) for a, b in zip(alone, together[i], strict=True))


def test_a_response_does_not_depend_on_the_order(sampler, prompts, together):
    turned = sample(sampler, prompts[::-1], numbers=[4, 3, 2, 1, 0])[::-1]
    assert all(same(a, b) for x, y in zip(turned, together, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("cache_tokens", [1, 200, 600])
def test_a_response_does_not_depend_on_the_memory(policy, prompts, together, cache_tokens):
    """The cache's size decides how many prompts are decoded at a time: here one, two, three of the five."""
    parts = sample(sampler_of(policy, cache_tokens=cache_tokens), prompts)
    assert all(same(a, b) for x, y in zip(parts, together, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("n", [1, 2, 9])
def test_a_response_does_not_depend_on_how_many_others_there_are(sampler, prompts, together, n):
    others = sample(sampler, prompts, n=n)
    assert all(same(a, b) for x, y in zip(others, together, strict=True) for a, b in zip(x, y))


def test_a_longer_limit_continues_the_same_response(sampler, prompts):
    short, long = sample(sampler, prompts, new=8), sample(sampler, prompts, new=24)
    for a, b in zip(sum(short, []), sum(long, []), strict=True):
        assert np.array_equal(a[0], b[0][:8])


def test_seed_prompt_number_and_sample_key_the_stream(sampler, prompts):
    """The same prompt three times, as in three epochs: its responses are drawn afresh, and so under another seed."""
    texts = lambda numbers, seed=0: [[x[0].tolist() for x in group]
                                     for group in sample(sampler, [prompts[3]] * 3, 4, numbers, seed)]  # fmt: skip
    first = texts([0, 1, 2])
    assert first[0] != first[1] != first[2] and first[0][0] != first[0][1]
    assert texts([0, 1, 2]) == first and texts([2, 1, 0]) == first[::-1]
    assert not any(a == b for a, b in zip(texts([3, 4, 5]), first))
    assert not any(a == b for a, b in zip(texts([0, 1, 2], seed=1), first))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropies_are_the_policys(tiny_path, prompts, temperature):
    """The sampler's KV cache and the policy's packed forward pass compute the same numbers: one pass is enough."""
    policy = Policy(tiny_path, "cpu", vocab=261, temperature=temperature)
    responses = sum(sample(sampler_of(policy), prompts, temperature=temperature), [])
    ids, logprobs, entropies, _ = zip(*responses)
    exact_logprobs, exact_entropies = policy.logprobs(Batch([p for p in prompts for _ in range(4)], list(ids)))
    assert torch.allclose(torch.from_numpy(np.concatenate(logprobs)), exact_logprobs, atol=1e-5)
    assert torch.allclose(torch.from_numpy(np.concatenate(entropies)), exact_entropies, atol=1e-5)
    assert exact_entropies.min() >= -1e-6 and exact_entropies.max() > 0.1


def test_a_lower_temperature_is_surer(sampler, prompts):
    mean = lambda t: np.concatenate([x[2] for x in sum(sample(sampler, prompts, 16, temperature=t), [])]).mean()
    assert mean(0.5) < 0.7 * mean(1.0)


def test_the_end_token_belongs_to_a_finished_response_and_to_no_other(sampler, prompts):
    responses = sum(sample(sampler, prompts, n=16, new=32), [])
    finished = [x for x in responses if x[3]]
    cut = [x for x in responses if not x[3]]
    assert finished and cut
    for ids, logprobs, entropies, _ in finished:
        assert ids[-1] == END and list(ids).count(END) == 1
        assert len(ids) == len(logprobs) == len(entropies) <= 32
    for ids, *_ in cut:
        assert END not in ids and len(ids) == 32


def test_an_end_token_in_the_last_place_is_an_end(sampler, prompts):
    """A response that ends exactly at the limit is finished, not truncated."""
    ids, *_ = next(x for x in sample(sampler, [prompts[4]], n=8, new=40)[0] if x[3])
    assert any(np.array_equal(x[0], ids) and x[3] for x in sample(sampler, [prompts[4]], n=8, new=len(ids))[0])
    assert not any(x[3] and len(x[0]) == len(ids) for x in sample(sampler, [prompts[4]], n=8, new=len(ids) - 1)[0])


def test_first_tokens_are_as_frequent_as_the_model_says(policy, sampler, prompts):
    """Chi-square over the tokens expected at least 5 times in 8,000 draws (the rest counted together). With k degrees
    of freedom its mean is k and its variance 2 k; five deviations above is beyond chance."""
    draws = 8000
    every = Batch([prompts[0]] * 261, [np.array([token]) for token in range(261)])
    probability = policy.logprobs(every)[0].double().exp().numpy()
    assert probability.sum() == pytest.approx(1, abs=1e-4)
    counts = np.bincount([x[0][0] for x in sample(sampler, [prompts[0]], n=draws, new=1)[0]], minlength=261)
    common = draws * probability >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(probability[common], probability[~common].sum()) * draws
    free = common.sum()
    assert free > 3
    assert ((observed - expected) ** 2 / expected).sum() < free + 5 * np.sqrt(2 * free)


def test_ids_beyond_the_tokenizer_are_never_sampled(tiny_path, prompts):
    """Models round their vocabulary up; ids that the tokenizer lacks must exist neither for sampler nor trainer. Here
    all ids from 52 (the digit 4) on are said not to exist, which are among this model's most likely ones."""
    policy = Policy(tiny_path, "cpu", vocab=52)
    groups = sample(sampler_of(policy), prompts, n=16)
    ids, logprobs = zip(*[x[:2] for x in sum(groups, [])])
    assert max(x.max() for x in ids) < 52
    trainer = policy.logprobs(Batch([p for p in prompts for _ in range(16)], list(ids)))[0]
    assert torch.allclose(torch.from_numpy(np.concatenate(logprobs)), trainer, atol=1e-5)


def test_weights_follow_only_after_sync(tiny_path, prompts):
    policy = Policy(tiny_path, "cpu", vocab=261)
    sampler = sampler_of(policy)
    before = sample(sampler, prompts)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    assert all(same(a, b) for x, y in zip(before, sample(sampler, prompts), strict=True) for a, b in zip(x, y))
    sampler.sync(policy)
    after = sum(sample(sampler, prompts), [])
    assert not all(same(a, b) for a, b in zip(sum(before, []), after, strict=True))
    ids, logprobs = zip(*[x[:2] for x in after])
    trainer = policy.logprobs(Batch([p for p in prompts for _ in range(4)], list(ids)))[0]
    assert torch.allclose(torch.from_numpy(np.concatenate(logprobs)), trainer, atol=1e-5)


# ------------------------------------------------------------------------------------------------ random streams
def uniforms(seed, numbers, n, tokens):
    """The uniforms [P * n, tokens] that responses draw, as the sampler makes them: one hash a token."""
    keys = streams(seed, numbers, n)
    return (mix(keys[:, None] + np.arange(tokens, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53


def test_no_two_responses_share_a_uniform():
    x = uniforms(0, list(range(50)), 8, 100)
    assert len(np.unique(x)) == x.size == 40_000
    assert len(np.unique(np.concatenate([x.ravel(), uniforms(1, list(range(50)), 8, 100).ravel()]))) == 80_000


def test_streams_depend_on_seed_number_and_sample_alone():
    keys = streams(3, [10, 11, 12], 4).reshape(3, 4)
    assert np.array_equal(streams(3, [12], 2), keys[2, :2])
    assert len({*keys.ravel(), *streams(4, [10, 11, 12], 4)}) == 24


def test_uniforms_are_uniform_and_independent():
    """40,000 of them: mean 1/2, variance 1/12, and no correlation from token to token, response to response, prompt to
    prompt (the standard error of a correlation is 1/200)."""
    x = uniforms(7, list(range(100)), 8, 50)
    assert 0 <= x.min() and x.max() < 1
    assert x.mean() == pytest.approx(1 / 2, abs=0.006)
    assert x.var() == pytest.approx(1 / 12, abs=0.002)
    counts = np.histogram(x, 20, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 19 + 5 * np.sqrt(38)
    for a, b in ((x[:, 1:], x[:, :-1]), (x[1:], x[:-1]), (x[8:], x[:-8])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.025


def test_mix_is_splitmix64():
    """The first outputs of Steele, Lea and Flood's generator from seed 0 (its counter steps by the golden gamma)."""
    gamma = 0x9E3779B97F4A7C15
    counters = np.array([0, gamma, 2 * gamma % 2**64], dtype=np.uint64)
    assert [hex(x) for x in mix(counters)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


# ------------------------------------------------------------------------------------------------ rollouts
class Echo:
    """A sampler whose responses say which prompt, sample and seed they are."""

    def sample(self, prompts, n, numbers, seed, max_new_tokens, temperature, quiet=False):
        return [(np.array([number, j]), np.full(2, -1.0, np.float32), np.zeros(2, np.float32), j == 0)
                for number in numbers for j in range(n)]  # fmt: skip


def test_responses_stand_beside_their_problem():
    problems = [dict(prompt=np.array([1]), text="a", answer="1"), dict(prompt=np.array([2, 2]), text="b", answer="2")]
    cfg = SimpleNamespace(max_new_tokens=4, temperature=1.0)
    rollouts = Rollouts(problems, generate(Echo(), problems, 3, 10, 0, cfg))
    assert [tuple(x) for x in rollouts.batch.responses] == [(10, 0), (10, 1), (10, 2), (11, 0), (11, 1), (11, 2)]
    assert [len(x) for x in rollouts.batch.prompts] == [1, 1, 1, 2, 2, 2]
    assert rollouts.lengths.tolist() == [2] * 6 and list(rollouts.finished) == [True, False, False] * 2
    assert rollouts.batch.values["sampler"].tolist() == [-1.0] * 12


def test_grade_compares_each_response_with_its_own_problems_answer(tokenizer):
    texts = [[r"\boxed{1}<|end|>", r"\boxed{2}<|end|>"], [r"\boxed{1}", "2<|end|>"]]
    problems = [dict(prompt=np.array([1]), text="a", answer="1"), dict(prompt=np.array([1]), text="b", answer="2")]
    ids = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"]) for group in texts for text in group]
    rollouts = Rollouts(problems, [(x, np.zeros(len(x)), np.zeros(len(x)), True) for x in ids])
    grade(rollouts, tokenizer)
    assert rollouts.correct.tolist() == [[1, 0], [0, 0]]
    assert rollouts.boxed.tolist() == [[1, 1], [1, 0]]
    shown = rollouts.show(2, tokenizer)
    assert (shown["prompt"], shown["response"], shown["answer"], shown["correct"]) == ("b", r"\boxed{1}", "2", False)


# ------------------------------------------------------------------------------------------------ data
def write(path, rows):
    """Rows as a .jsonl, .csv or .parquet file, by the name's ending."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pandas

        getattr(pandas.DataFrame(rows), f"to_{path.suffix[1:]}")(path, index=False)
    return str(path)


def load(file, tokenizer, template="none", longest=100, limit=0):
    return load_data(str(file), tokenizer, SimpleNamespace(template=template, max_prompt_tokens=longest), limit)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_local_files(tmp_path, tokenizer, capsys, kind):
    file = write(tmp_path / f"two.{kind}", [dict(problem="1+1", answer="2"), dict(problem="2*3", answer="6")])
    problems = load(file, tokenizer)
    assert [(p["problem"], p["answer"], p["text"]) for p in problems] == [("1+1", "2", "1+1"), ("2*3", "6", "2*3")]
    assert [tokenizer.decode(p["prompt"]) for p in problems] == ["1+1", "2*3"]
    assert "dropped" not in capsys.readouterr().out


@pytest.mark.parametrize("question", ["problem", "question", "prompt"])
@pytest.mark.parametrize("answer, content", [("answer", "12"), ("answer", "work\n#### 12"), ("answer", ["12"]),
                                             ("answer", 12), ("answer", 12.0), ("solution", r"so \boxed{12}."),
                                             ("solution", r"\boxed{11}, no: \boxed{12}")])  # fmt: skip
def test_columns_and_where_the_gold_answer_stands(tmp_path, tokenizer, question, answer, content):
    file = write(tmp_path / "one.jsonl", [{question: "3*4", answer: content, "level": 5}])
    problem = load(file, tokenizer)[0]
    assert problem["problem"] == "3*4"
    assert verify(r"\boxed{12}", problem["answer"]) and not verify(r"\boxed{11}", problem["answer"])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_column_of_numbers_may_hold_0(tmp_path, tokenizer, kind):
    """An answer 0 is an answer, or the model would never see a problem that comes to nothing."""
    file = write(tmp_path / f"zero.{kind}", [dict(problem="1-1", answer=0), dict(problem="1+1", answer=2)])
    problems = load(file, tokenizer)
    assert [p["problem"] for p in problems] == ["1-1", "1+1"]
    assert verify(r"\boxed{0}", problems[0]["answer"])


def test_rows_as_verl_reads_them(tmp_path, tokenizer):
    """DAPO's file among them: the turns of a chat, and the gold answer within another column."""
    rows = [dict(prompt=[dict(role="system", content="be brief"), dict(role="user", content="3*4")], ability="math",
                 reward_model=dict(ground_truth="12", style="rule"))]  # fmt: skip
    for kind in ("jsonl", "parquet"):
        problem = load(write(tmp_path / f"verl.{kind}", rows), tokenizer)[0]
        assert (problem["problem"], problem["answer"]) == ("3*4", "12")


def test_a_solution_that_names_no_answer_is_none(tmp_path, tokenizer, capsys):
    """A proof: what is in no box and after no #### would be compared in full, and nothing equals it."""
    rows = [dict(problem="Prove it.", solution="It is obvious."), dict(problem="3*4", solution=r"So \boxed{12}.")]
    assert [p["problem"] for p in load(write(tmp_path / "proof.jsonl", rows), tokenizer)] == ["3*4"]
    assert "dropped 1 row" in capsys.readouterr().out


@pytest.mark.parametrize("problem", ["", None])
def test_a_row_without_a_problem_is_dropped(tmp_path, tokenizer, capsys, problem):
    rows = [dict(problem=problem, answer="1"), dict(problem="3*4", answer="12")]
    assert [p["problem"] for p in load(write(tmp_path / "none.jsonl", rows), tokenizer)] == ["3*4"]
    assert "dropped 1 row" in capsys.readouterr().out


def test_an_alias_is_loaded_as_from_the_hub(tmp_path, tokenizer, monkeypatch):
    """A folder in the hub's layout: two splits; training reads `train`, the benchmark alias `test`."""
    for split, rows in (("train", [("1+1", "2"), ("2+2", "4")]), ("test", [("3+3", "6")])):
        write(tmp_path / f"{split}.jsonl", [dict(question=q, answer=f"so\n#### {a}") for q, a in rows])
    monkeypatch.setitem(DATA, "gsm8k", (str(tmp_path),))
    monkeypatch.setitem(DATA, "gsm8k-test", (str(tmp_path), None, "test"))
    assert [(p["problem"], p["answer"]) for p in load("gsm8k", tokenizer)] == [("1+1", "2"), ("2+2", "4")]
    assert [p["problem"] for p in load("gsm8k-test", tokenizer)] == ["3+3"]


REAL = Path(__file__).parents[2] / "shared/data"


FILES = dict(aime24=30, aime25=30, amc23=40, gsm8k=1319, math500=500, minerva=272, olympiadbench=675)


@pytest.mark.parametrize("name, count", [*FILES.items(), ("deepscaler_4k", 4000)])
def test_real_files(tokenizer, name, count):
    if not (REAL / f"{name}.jsonl").is_file():
        pytest.skip("the real problems are not here")
    problems = load(REAL / f"{name}.jsonl", tokenizer, longest=10**6)
    assert len(problems) == count
    assert all(p["problem"] and p["answer"] and len(p["answer"]) < 400 for p in problems)


def test_answer_wins_over_solution(tmp_path, tokenizer):
    file = write(tmp_path / "both.jsonl", [dict(problem="3*4", solution="so it is twelve", answer="12")])
    assert load(file, tokenizer)[0]["answer"] == "12"


def test_rows_without_a_usable_answer_and_long_prompts_are_dropped_and_counted(tmp_path, tokenizer, capsys):
    rows = [dict(problem="1+1", answer="2"), dict(problem="1+2", answer=""), dict(problem="1" * 11, answer="3"),
            dict(problem="1" * 10, answer="4"), dict(problem="1+3", answer=r"\boxed{}")]  # fmt: skip
    problems = load(write(tmp_path / "some.jsonl", rows), tokenizer, longest=10)
    assert [p["answer"] for p in problems] == ["2", "4"]
    answer, prompt = sorted(capsys.readouterr().out.splitlines(), key=lambda line: "prompt" in line)
    assert "2 rows" in answer and "answer" in answer
    assert "1 row" in prompt and "10 tokens" in prompt


def test_an_answer_that_is_null_is_no_usable_answer(tmp_path, tokenizer, capsys):
    rows = [dict(problem="1+1", answer="2"), dict(problem="1+2", answer=None)]
    assert len(load(write(tmp_path / "null.jsonl", rows), tokenizer)) == 1
    assert "dropped 1 row" in capsys.readouterr().out


def test_limit_takes_the_first(tmp_path, tokenizer):
    file = write(tmp_path / "many.jsonl", [dict(problem=f"{i}+1", answer=i + 1) for i in range(9)])
    assert [p["problem"] for p in load(file, tokenizer, limit=3)] == ["0+1", "1+1", "2+1"]
    assert len(load(file, tokenizer, limit=99)) == len(load(file, tokenizer)) == 9


@pytest.mark.parametrize("name, text, says", [
    ("broken.jsonl", '{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "ans\n', ["row 2", "JSON"]),
    ("column.jsonl", '{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "level": 3}\n', ["row 2", "level"]),
    ("list.jsonl", '[1, 2]\n', ["row 1", "problem"]),
    ("empty.jsonl", "", ["no usable problem"]),
    ("unusable.jsonl", '{"problem": "1+1", "answer": ""}\n', ["no usable problem", "1 row"]),
    ("latin.jsonl", b'{"problem": "1+1", "answer": "2"}\n{"problem": "caf\xe9", "answer": "2"}\n', ["row 2"]),
    ("column.csv", "problem,level\n1+1,3\n", ["row 1", "level", "answer"]),
    ("empty.csv", "", []),
    ("broken.parquet", "PAR1 but not for long", []),
])  # fmt: skip
def test_bad_files_raise_one_line_that_says_what_is_wrong_where(tmp_path, tokenizer, name, text, says):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((OSError, ValueError)) as error:
        load(tmp_path / name, tokenizer)
    assert all(word in str(error.value).splitlines()[0] for word in says), error.value


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.csv", "missing.parquet"])
def test_a_missing_file(tmp_path, tokenizer, name):
    with pytest.raises((OSError, ValueError)) as error:
        load(tmp_path / name, tokenizer)
    assert name in str(error.value).splitlines()[0]


def test_the_built_in_splits(tokenizer):
    train = [p["text"] for p in load("tiny", tokenizer, limit=300)]
    test = [p["text"] for p in load("tiny-test", tokenizer, limit=300)]
    hard = [p["text"] for p in load("tiny-hard", tokenizer, limit=300)]
    assert len(train) == len(test) == len(hard) == 300
    assert not set(train) & set(test) and not set(train) & set(hard)


# ------------------------------------------------------------------------------------------------ templates
@pytest.mark.parametrize("template, text", [
    ("none", "1+1"),
    ("plain", "1+1\nPlease reason step by step, and put your final answer within \\boxed{}.\n"),
    ("chat", "<|user|>1+1<|assistant|>"),
    ("cot", "<|user|>1+1 Let's think step by step and output the final answer within \\boxed{}.<|assistant|>"),
    ("Q: {problem}\nA:", "Q: 1+1\nA:"),
    ("{problem} = {x} {", "1+1 = {x} {"),  # other braces are text
])  # fmt: skip
def test_render(tokenizer, template, text):
    assert render("1+1", template, tokenizer) == text


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_holds_the_problem_once(tokenizer, template):
    problem = r"Find \frac{a}{b} if {problem} = {} {0}"  # braces in a problem are not fields
    assert render(problem, template, tokenizer).count(problem) == 1


def test_the_system_turn_comes_first():
    class Turns:
        def apply_chat_template(self, turns, tokenize, add_generation_prompt):
            assert not tokenize and add_generation_prompt
            return " ".join(f"{turn['role']}={turn['content']}" for turn in turns)

    text = render("1+1", "qwen-math", Turns())
    assert text == r"system=Please reason step by step, and put your final answer within \boxed{}. user=1+1"


def test_special_tokens_of_a_chat_template_are_one_token_each(tmp_path, tokenizer):
    file = write(tmp_path / "one.jsonl", [dict(problem="1+1", answer="2")])
    prompt = load(file, tokenizer, template="chat")[0]["prompt"]
    assert prompt.tolist() == [*tokenizer.convert_tokens_to_ids(["<|user|>", "1", "+", "1", "<|assistant|>"])]


def test_a_template_without_the_problem_is_an_error(tmp_path, tokenizer):
    """--template qwen_math is a slip for qwen-math: as a text it would be the same prompt for every problem."""
    file = write(tmp_path / "one.jsonl", [dict(problem="1+1", answer="2")])
    with pytest.raises((OSError, ValueError, SystemExit)):
        load(file, tokenizer, template="qwen_math")


# ------------------------------------------------------------------------------------------------ order
NUMBERED = [dict(number=i) for i in range(7)]


def numbers(first, count, seed=0):
    return [problem["number"] for problem in draw(NUMBERED, first, count, seed)]


def test_every_epoch_is_a_permutation():
    endless = numbers(0, 70)
    epochs = [endless[i : i + 7] for i in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) >= 9  # and another one each time


@pytest.mark.parametrize("count", [1, 2, 5, 7, 16])
def test_the_order_does_not_depend_on_how_it_is_cut(count):
    assert sum((numbers(first, count) for first in range(0, 80, count)), [])[:80] == numbers(0, 80)


def test_the_order_is_the_seeds():
    assert numbers(0, 70, seed=1) == numbers(0, 70, seed=1) != numbers(0, 70, seed=0)


def test_a_step_may_need_more_prompts_than_there_are():
    assert sorted(numbers(0, 14)) == sorted(2 * list(range(7)))
