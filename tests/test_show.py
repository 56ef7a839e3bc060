"""show.py's page, and what runs record for it in samples.jsonl.

The page is opened in a real headless Chromium, where a script of the test moves the slider, flips the switches and
reads the numbers back; skipped where there is no Chromium."""

import hashlib
import html
import importlib
import json
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import read, toy_rollouts, write
from transformers import AutoModelForCausalLM

import grpo
import show
from conftest import ALGORITHMS, FEW, ROOT
from core import record

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
in_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian: apt-get install chromium)")


# ------------------------------------------------------------------------------------------------ helpers
TOOLS = """
"use strict";
{
const all = selector => [...document.querySelectorAll(selector)];
const texts = selector => all(selector).map(x => x.textContent);
const send = (node, event) => node.dispatchEvent(event);
const press = (key, on = document.body) => send(on, new KeyboardEvent("keydown", {key, bubbles: true}));
const set = (id, value) => { const x = document.querySelector(id); x.value = value; return x; };
const slide = place => send(set("#step", place), new Event("input"));
const shade = name => document.querySelector(`#shades input[value=${name}]`).click();
const prompt_ = i => all("#prompts button")[i].click();
const each = (card, selector, f) => [...card.querySelectorAll(selector)].map(f);
const cards = () => all("#runs .card").map(card => ({
  text: each(card, ".t", x => x.textContent.replaceAll("\\u23ce", "")),
  values: each(card, ".t", x => x.dataset.value === "null" ? null : Number(x.dataset.value)),
  kinds: each(card, ".t", x => x.className), facts: each(card, ".facts span", x => x.textContent),
  way: card.querySelector(".way").textContent}));
const look = () => ({now: document.querySelector("#now").textContent, sentences: texts(".sentence"), cards: cards(),
  legend: document.querySelector("#legend").textContent, detail: document.querySelector("#detail").textContent,
  hash: location.hash, theme: document.documentElement.dataset.theme, title: document.title});
const seen = [];
try { ACTIONS } catch (error) { seen.push(String(error.stack)); }
const read = document.createElement("pre");
read.id = "read";
read.textContent = JSON.stringify(seen);
document.body.append(read);
parent.postMessage(read.textContent, "*");
}
"""
FRAME = """<!DOCTYPE html><iframe src="PAGE" width="WIDTH" height="800"></iframe><pre id="read"></pre>
<script>addEventListener("message", event => { document.querySelector("pre").textContent = event.data; });</script>"""


def browse(page, actions: str, link="", frame=None):
    """What a script has put into `seen` in Chromium. It stands in a copy of the page, whose policy names it too. frame:
    the page is shown in a frame this wide, because windows on a desktop are at least 500 pixels wide."""
    script = TOOLS.replace("ACTIONS", actions)
    allowed = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8").replace("script-src ", f"script-src 'sha256-{allowed}' ", 1)
    copy = page.with_name("copy.html")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    address = f"file://{copy}{link}"
    if frame:
        around = page.with_name("frame.html")
        around.write_text(FRAME.replace("PAGE", copy.name + link).replace("WIDTH", str(frame)))
        address = f"file://{around}"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,900", "--virtual-time-budget=5000"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    done = subprocess.run([CHROMIUM, *flags, "--dump-dom", profile, address], capture_output=True, timeout=600)
    dom = done.stdout.decode("utf-8", errors="replace")
    assert '<pre id="read">' in dom, done.stderr.decode()[-2000:]
    return json.loads(html.unescape(dom.rsplit('<pre id="read">', 1)[1].split("</pre>")[0]))


def row(step=1, prompt_id=0, **changes) -> dict:
    """A row of samples.jsonl, written by hand: a response of two tokens."""
    base = dict(step=step, prompt_id=prompt_id, sample=0, reward=1.0, prompt="<q>1+1", response="2.", answer="2",
                correct=True, finished=True, problem="1+1", rewards=[1.0, 0.0], kept=True, advantage=0.5, weight=0.25,
                updates=[1], clipped=[1], tokens=["2", "."], old=[-1.0, -0.5], new=[-0.75, -0.75],
                entropy=[0.25, None])
    return base | changes


def group(rewards, advantages, kept=None, **changes) -> list[dict]:
    """The responses to one prompt as show.py reads them."""
    kept = [True] * len(rewards) if kept is None else kept
    return [row(reward=r, correct=r > 0, rewards=rewards, advantage=a, kept=k, **changes)
            for r, a, k in zip(rewards, advantages, kept, strict=True)]


def run_folder(folder, rows, metrics=({"step": 1, "accuracy": 0.5},), **config):
    """The folder of a run with these samples."""
    write(folder / "samples.jsonl", rows)
    write(folder / "metrics.jsonl", metrics)
    (folder / "config.json").write_text(json.dumps(dict(model="tiny", data="tiny", steps=1) | config))
    return folder


def fails(capsys, *arguments) -> str:
    """The one line that `python show.py ARGUMENTS` fails with."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", ["show.py", *map(str, arguments)])
        show.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1
    return err


# ------------------------------------------------------------------------------------------------ what is recorded
def test_which_responses_are_recorded():
    """Whole groups in the middle of equal parts of the batch; at most 16 responses and 3 of 64 prompts, but at least a
    prompt and four responses."""
    chosen = lambda prompts, n, length=5: record.choose_rows(toy_rollouts([length] * prompts * n, n))
    assert chosen(7, 4) == [12, 13, 14, 15]  # prompt 3 of 0..6
    assert [row // 4 for row in chosen(64, 4)[::4]] == [10, 32, 53] and len(chosen(64, 4)) == 12
    assert [row // 4 for row in chosen(1024, 4)[::4]] == [128, 384, 640, 896] and len(chosen(1024, 4)) == 16
    assert chosen(7, 1) == [0, 2, 4, 6]
    assert chosen(2, 1) == [0, 1]
    assert len(chosen(43, 8)) == 16 and len(chosen(16, 8)) == 8
    assert chosen(2, 40) == list(range(40, 56))  # the first 16 of the 40
    assert len(chosen(4, 4, length=20_000)) == 3  # 65,536 tokens at most
    assert len(chosen(4, 4, length=70_000)) == 1


def test_pieces_of_a_response(tokenizer):
    """Joined they are the response. Of tokens that share a character the first one has it."""
    text = "7+5 #12\n\\boxed{12} é😀<|end|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = record.pieces(ids, tokenizer)
    assert "".join(found) == text == tokenizer.decode(ids) and len(found) == len(ids)
    assert found[:4] == ["7", "+", "5", " "] and found[-8:] == [" ", "é", "", "😀", "", "", "", "<|end|>"]
    half = ids[found.index("😀")]  # the first of its four bytes, alone among others
    assert record.pieces([ids[0], half, ids[1]], tokenizer) == ["7", "\ufffd", "+"]


def test_pieces_keep_the_spaces_that_decoding_drops_at_the_start():
    """As SentencePiece's decoders do."""

    class Tokenizer:
        def decode(self, ids, words=("▁a", "b", "▁c")):
            return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert record.pieces([0, 1, 2], Tokenizer()) == [" a", "b", " c"]


def test_numbers_and_values_of_a_response():
    x = torch.tensor([0.123456, float("nan"), -2.0])
    assert record.numbers(x) == [0.1235, None, -2.0]
    assert record.one_or_all(torch.tensor([1 / 3, 1 / 3])) == 0.333333
    assert record.one_or_all(torch.tensor([0.5, -0.5])) == [0.5, -0.5]
    assert record.one_or_all(torch.zeros(0)) == []


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    """Two steps of GRPO with a checkpoint after each. One update a step, on all 7 x 4 responses."""
    out = tmp_path_factory.mktemp("trained") / "run"
    how = ["--steps", 2, "--save_every", 1, "--updates_per_step", 1, "--lr", 3e-4]
    evaluated = ["--eval_data", "tiny-test", "--eval_every", 1, "--eval_problems", 5]
    assert train(out, *FEW, *how, *evaluated, curves=True) == 0
    return out


def logprobs_of(folder, rows, tokenizer) -> list[list[float]]:
    """The logprobs of recorded responses under a saved model, by transformers, one response at a time."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), []
    for row in rows:
        parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in row["tokens"]]
        assert all(len(part) == 1 for part in parts)
        prompt, response = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"], sum(parts, [])
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1, : len(tokenizer)]
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0].tolist())
    return found


def expected(trained, tokenizer):
    """(rows, advantage x weight, change of logprob) of the second step, computed from the checkpoints before and after
    it, from the rewards, and from the number of tokens that its one update had."""
    rows = [row for row in read(trained / "samples.jsonl") if row["step"] == 2]
    size = round(read(trained / "metrics.jsonl")[-1]["length"] * 28)  # 7 prompts x 4 responses
    before, after = (logprobs_of(trained / f"step_00000{step}", rows, tokenizer) for step in (1, 2))
    rewards = np.array([row["reward"] for row in rows])
    push = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6) / size
    return rows, [[p] * len(old) for p, old in zip(push, before)], [np.subtract(*x) for x in zip(after, before)]


def test_what_is_recorded_are_the_numbers_of_the_step(trained, tokenizer):
    rows, push, change = expected(trained, tokenizer)
    assert len(rows) == 4 and len({row["reward"] for row in rows}) == 2, "the seed was chosen for a mixed prompt"
    for row, p, d in zip(rows, push, change, strict=True):
        assert "".join(row["tokens"]) == row["response"] and row["rewards"] == [x["reward"] for x in rows]
        assert row["advantage"] * row["weight"] == pytest.approx(p[0], rel=1e-4)
        assert np.subtract(row["new"], row["old"]) == pytest.approx(d, abs=3e-4)
        assert row["kept"] and row["updates"] == [1] and row["clipped"] == []  # ratio 1 in the one update
        assert all(0 <= x < 5.6 for x in row["entropy"])
    assert max(abs(x) for d in change for x in d) > 0.01, "something has moved"


def test_clipped_tokens_are_those_whose_ratio_has_left_the_band(train, tmp_path):
    """At a high learning rate the second update of a step finds ratios outside of 0.8..1.2; the first one none."""
    how = [*FEW, "--steps", 2, "--lr", 1e-3, "--prompts_per_step", 43, "--reward", "random:0.5"]
    assert train(tmp_path / "run", *how) == 0
    rows = read(tmp_path / "run/samples.jsonl")
    assert {tuple(row["updates"]) for row in rows} >= {(1,), (2,)}
    assert all(not row["clipped"] for row in rows if row["updates"] != [2])
    clipped = [row for row in rows if row["clipped"]]
    assert clipped and all(0 <= i < len(row["tokens"]) and row["advantage"] for row in clipped for i in row["clipped"])
    assert train(tmp_path / "off", *how, "--steps", 1, "--clip", "false") == 0
    assert all(row["clipped"] is None for row in read(tmp_path / "off/samples.jsonl"))


def test_without_an_update_old_is_new(train, tmp_path):
    zero = lambda rewards, cfg: (torch.zeros_like(rewards), torch.ones_like(rewards, dtype=torch.bool))
    assert train(tmp_path / "run", *FEW, "--steps", 1, advantages=zero) == 0
    for row in read(tmp_path / "run/samples.jsonl"):
        assert row["old"] == row["new"] and row["updates"] == [] and row["advantage"] == 0 and row["kept"]


def test_a_loss_with_a_clip_of_its_own_shows_what_it_stops(train, tmp_path):
    """This one never moves the first token of a response."""
    own = lambda new, tokens, cfg: -new * tokens.adv * (tokens.position > 0)
    assert train(tmp_path / "run", *FEW, "--steps", 1, "--reward", "random:0.5", token_loss=own) == 0
    rows = [row for row in read(tmp_path / "run/samples.jsonl") if row["updates"]]
    assert rows and all(row["clipped"] == [0] for row in rows)


def test_advantages_of_single_tokens(train, tmp_path):
    """A fork's, here 0 and 1 in turn."""

    def minibatches(self, rollouts, adv, keep, real=grpo.common.Run.minibatches):
        return real(self, rollouts, torch.arange(len(rollouts.tokens.sampler)) % 2, keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo.common.Run, "minibatches", minibatches)
        assert train(tmp_path / "run", *FEW, "--steps", 1) == 0
    for row in read(tmp_path / "run/samples.jsonl"):
        assert len(row["advantage"]) == len(row["tokens"]) and set(row["advantage"]) == {0, 1}


@pytest.mark.slow
def test_a_long_run_records_whole_steps_but_not_each(train, tmp_path, monkeypatch):
    """Here with room for about two of six: the first, the last, and what comes between at an even pace."""
    flags = [*FEW, "--steps", 6]
    monkeypatch.setattr(record, "SHARE", 1)
    assert train(tmp_path / "all", *flags) == 0
    size = (tmp_path / "all/samples.jsonl").stat().st_size
    monkeypatch.setattr(record, "MOST", size / 3)
    assert train(tmp_path / "few", *flags) == 0
    steps = sorted({row["step"] for row in read(tmp_path / "few/samples.jsonl")})
    assert steps[0] == 1 and steps[-1] == 6 and len(steps) < 6
    assert (tmp_path / "few/samples.jsonl").stat().st_size < size / 3 + size / 2  # one step more, and the last
    rows = read(tmp_path / "all/samples.jsonl")
    assert read(tmp_path / "few/samples.jsonl") == [row for row in rows if row["step"] in steps]


@pytest.mark.slow
def test_with_few_prompts_not_every_step_is_recorded(train, tmp_path):
    """One prompt of 7 is three times as much as 3 of 64: so each fourth step, but all of the first four. A run that was
    interrupted leaves out the same ones."""
    flags = [*FEW, "--save_every", 3, "--show", "false"]
    assert train(tmp_path / "run", *flags, "--steps", 10) == 0
    for steps in (6, 10):
        assert train(tmp_path / "resumed", *flags, "--steps", steps, "--resume", "true") == 0
    rows = read(tmp_path / "run/samples.jsonl")
    assert [row["step"] for row in rows[::4]] == [1, 2, 3, 4, 5, 9] and len(rows) == 24
    assert (tmp_path / "run/samples.jsonl").read_bytes() == (tmp_path / "resumed/samples.jsonl").read_bytes()


def test_a_run_notes_its_script_and_its_unusual_settings(trained):
    about = json.loads((trained / "config.json").read_text())["about"]
    assert about["script"] == "grpo"
    assert {"lr", "updates_per_step", "prompts_per_step"} < about["unusual"].keys()
    assert not {"seed", "clip_high", "model", "out", "temperature"} & about["unusual"].keys()
    assert about["unusual"]["lr"] == "AdamW learning rate"


def test_a_run_writes_the_page_unless_told_not_to(train, trained, tmp_path, capsys):
    assert (trained / "show.html").stat().st_size < 300_000
    assert train(tmp_path / "run", *FEW, "--steps", 1, "--show", "false", curves=True) == 0
    assert not (tmp_path / "run/show.html").exists() and "show.html" not in capsys.readouterr().out
    assert read(tmp_path / "run/samples.jsonl")[0]["tokens"]  # it can be made later


def test_a_page_that_fails_does_not_fail_the_run(train, tmp_path, capsys, monkeypatch):
    (tmp_path / "show.py").write_text("raise SystemExit('error: samples.jsonl: no')")
    (tmp_path / "plot.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert train(tmp_path / "run", *FEW, "--steps", 1, curves=True) == 0
    text = capsys.readouterr().out
    assert "warning: show.py: samples.jsonl: no" in text and "warning: plot.py: exit status 3" in text
    assert (tmp_path / "run/final").is_dir() and "evaluate it:" in text


# ------------------------------------------------------------------------------------------------ in words
FIRST, SILENT = [True, False, False, True], "Every advantage is 0: nothing to learn from. "
SENTENCES = [
    ("grpo", group([1, 0, 0, 1], [0.5, -0.5, -0.5, 0.5]), "Two of the four are right. GRPO pushes A and D up and B"),
    ("grpo", group([1, 1, 1, 1], [0] * 4), f"All four are right. {SILENT}An advantage is"),
    ("grpo", group([0, 0], [0, 0]), f"None of the two is right. {SILENT}"),
    ("raft_pp", group([1, 0, 0, 1], [1] * 4, FIRST), "are right. RAFT++ pushes A and D up and rejects B and C. It"),
    ("raft", group([0, 0, 0], [1] * 3, [False] * 3), "RAFT rejects all of them: nothing to learn from. It imitates"),
    ("reinforce_rej", group([1, 0], [1, -1]), "One of the two is right. Reinforce-Rej pushes A up and B down. Right"),
    ("ppo", group([1, 0], [[0.5, -0.1], [-1, 0.2]]), "PPO pushes A up and B down, on average over the tokens. Its"),
    ("ppo", group([0], [[0.0, 0.0]]), f"The only response is not right. {SILENT}"),
    ("iterative_dpo", group([1, 0, 1], [0, -1, 1], [False, True, True]), "takes a pair, C over B, and ignores A. A"),
    ("mine", group([1, 0], [0.2, 0]), "One of the two is right. mine pushes A up."),
    ("mine", group([1, 0], [0.2, -1], updates=[]), "mine pushes A up and B down; but the update was skipped."),
    ("mine", group([1, 0], [None, None]), "One of the two is right. What mine makes of them was not recorded."),
    ("grpo", group([1], [1.0], [False]), "The only response is right. GRPO rejects it: nothing to learn from."),
]


@pytest.mark.parametrize("script, responses, says", SENTENCES)
def test_the_sentence_of_a_group(script, responses, says):
    assert says in show.sentence(script, responses)


def test_the_sentence_tells_rewarded_from_right():
    """With a reward that is not the truth."""
    responses = [row(reward=r, correct=c, rewards=[1, 0]) for r, c in ((1, False), (0, True))]
    assert show.sentence("grpo", responses).startswith("One of the two is rewarded. ")


def test_every_method_has_its_sentence():
    assert show.METHODS.keys() == set(ALGORITHMS)


# ------------------------------------------------------------------------------------------------ bad input
def test_bad_input_is_one_line(tmp_path, capsys):
    good = row()
    assert "nowhere: no such folder; give" in fails(capsys, tmp_path / "nowhere")
    assert "no recorded responses in it" in fails(capsys, run_folder(tmp_path / "empty", []))
    old = {name: good[name] for name in "step reward prompt response answer correct finished".split()}
    assert "older version, without tokens; train again" in fails(capsys, run_folder(tmp_path / "old", [old]))
    folder = run_folder(tmp_path / "broken", [good, good])
    file = folder / "samples.jsonl"
    file.write_text(file.read_text().replace('"step"', "step", 1))
    assert "samples.jsonl, line 1: not a JSON object; mend or remove the line" in fails(capsys, folder)
    for wrong in (dict(old=[1.0]), dict(tokens=[1, 2]), dict(tokens=None), dict(step="x")):
        folder = run_folder(tmp_path / "x", [good, good | wrong])
        assert "samples.jsonl, line 2: no recorded response" in fails(capsys, folder)
    assert "line 1: no recorded response" in fails(capsys, run_folder(tmp_path / "y", [{"step": 1, "tokens": []}]))
    assert "line 1: not a JSON object" in fails(capsys, run_folder(tmp_path / "y", ["text"]))
    assert "samples.jsonl: values of a wrong kind" in fails(capsys, run_folder(tmp_path / "y", [row(advantage="much")]))
    folder = run_folder(tmp_path / "evaluated", [good])
    write(folder / "eval/step_000001/tiny-test.jsonl", [dict(problem="1+1")])
    assert "tiny-test.jsonl, line 1: no saved response" in fails(capsys, folder)
    (folder / "config.json").unlink()
    assert "config.json" in fails(capsys, folder)
    folder = run_folder(tmp_path / "settings", [good])
    for wrong in ("[]", "{", '{"about": 1}', '{"about": {}}'):
        (folder / "config.json").write_text(wrong)
        assert f"{folder}/config.json: not the settings of a run" in fails(capsys, folder)


def test_the_command_prints_the_path_of_the_page_and_loads_neither_torch_nor_matplotlib(tmp_path):
    folder = run_folder(tmp_path / "run", [row()])
    done = subprocess.run([sys.executable, ROOT / "show.py", folder], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder / 'show.html'}\n", "")
    code = "import sys, show; assert not {'torch', 'matplotlib', 'numpy'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_broken_last_line_is_left_out(tmp_path):
    """The run was killed while it wrote it. Rows of an older version, which a run has resumed, are left out too."""
    folder = run_folder(tmp_path / "run", [dict(step=1, response="old"), row(step=2)])
    with open(folder / "samples.jsonl", "a") as file:
        file.write('{"step": 3, "tok')
    assert list(show.read_samples(folder / "samples.jsonl")) == [2]


def test_a_page_has_as_many_steps_as_fit(tmp_path):
    """Evenly spaced, with the first and the last."""
    folder = run_folder(tmp_path / "run", [row(step=step) for step in range(1, 10)])
    steps = lambda most: [step["step"] for step in show.load(folder, most)["steps"]]
    assert steps(10**6) == list(range(1, 10))
    size = len(json.dumps(show.load(folder, 10**6)["steps"]))
    assert steps(size) == list(range(1, 10))
    assert steps(size - 1) == steps(size * 2 // 3) == [1, 3, 5, 7, 9] and steps(100) == [1, 9]
    folder = run_folder(tmp_path / "run", [row(step=step, response="x" * 10**6) for step in range(1, 41)])
    assert show.write([folder]).stat().st_size < 5_000_000


# ------------------------------------------------------------------------------------------------ in the browser
@in_browser
def test_the_shaded_numbers_are_those_of_the_checkpoints(trained, tokenizer):
    """Read from the page: advantage x weight and the change of the logprob, token by token."""
    rows, push, change = expected(trained, tokenizer)
    actions = 'slide(1); for (const kind of ["push", "change", "entropy"]) { shade(kind); seen.push(look()); }'
    pushed, changed, uncertain = browse(trained / "show.html", actions)
    assert pushed["now"] == "step 2 of 2" and pushed["sentences"] == [show.sentence("grpo", rows)]
    for i, row in enumerate(rows):
        assert pushed["cards"][i]["text"] == row["tokens"]
        assert pushed["cards"][i]["values"] == pytest.approx(push[i], rel=1e-4)
        assert changed["cards"][i]["values"] == pytest.approx(change[i], abs=3e-4)
        assert uncertain["cards"][i]["values"] == row["entropy"]
        assert set(pushed["cards"][i]["kinds"]) == {"t up" if row["reward"] else "t down"}
        assert pushed["cards"][i]["way"] == ("▲ pushed up" if row["reward"] else "▼ pushed down")
        assert f"reward {row['reward']:.0f}" in pushed["cards"][i]["facts"]


@in_browser
def test_slider_switches_keys_and_links(tmp_path):
    """Three recorded steps with two prompts each."""
    rows = [row(step, p, problem=f"problem {p} of step {step}") for step in (1, 2, 5) for p in (0, 1)]
    folder = run_folder(tmp_path / "run", rows, [dict(step=s, accuracy=s / 10) for s in range(1, 6)], steps=5)
    page = show.write([folder])
    actions = """
    const chosen = () => document.querySelector("#shades input:checked").value;
    const note = () => seen.push([look().now, texts("#runs .problem")[0].split("   ")[0], chosen(), look().theme]);
    note(); press("ArrowRight"); note();
    press("ArrowRight"); press("ArrowRight"); note();
    press("ArrowLeft"); note();
    press("p"); note(); press("p"); note();
    press("2"); note(); shade("clipped"); note();
    press("t"); note(); slide(2); note();
    document.querySelector("#back").click(); prompt_(1); note();
    seen.push(location.hash, cards());
    for (const key of ["ArrowRight", "ArrowRight"]) press(key, document.querySelector(".tokens"));
    seen.push(look().detail); note();
    seen.push(texts(".curve b"));"""
    seen = browse(page, actions, "#step=1")
    first, second = "problem 0 of step {}".format, "problem 1 of step {}".format
    assert seen[:11] == [
        ["step 1 of 5", first(1), "push", "light"], ["step 2 of 5", first(2), "push", "light"],
        ["step 5 of 5", first(5), "push", "light"], ["step 2 of 5", first(2), "push", "light"],
        ["step 2 of 5", second(2), "push", "light"], ["step 2 of 5", first(2), "push", "light"],
        ["step 2 of 5", first(2), "change", "light"], ["step 2 of 5", first(2), "clipped", "light"],
        ["step 2 of 5", first(2), "clipped", "dark"], ["step 5 of 5", first(5), "clipped", "dark"],
        ["step 2 of 5", second(2), "clipped", "dark"]]
    assert seen[11] == "#step=2&prompt=2&shade=clipped&problem=1"
    assert seen[12][0]["values"] == [0, 1] and seen[12][0]["kinds"] == ["t", "t clip"]
    assert seen[13] == ("A, token 2 of 2: “.” · log p −0.5 → −0.75 (−0.25) · entropy not recorded · advantage +0.5 × "
                        "weight 0.25 = +0.125 · clipped")
    assert seen[14][0] == "step 2 of 5", "arrows within a response move in it, not in the run"
    assert seen[15] == ["0.2"]  # the curve of the accuracy, at the step
    again = browse(page, "seen.push(look());", "#step=4&prompt=2&shade=change")
    assert again[0]["now"] == "step 5 of 5" and again[0]["cards"][0]["values"] == [0.25, -0.25]
    assert "change of log p" in again[0]["legend"] and "0.25" in again[0]["legend"]
    assert browse(page, "seen.push(look());", "#step=x&prompt=99&shade=constructor")[0]["now"] == "step 1 of 5"


@in_browser
def test_runs_side_by_side_with_different_steps(tmp_path):
    one = run_folder(tmp_path / "one", [row(1), row(3)], about=dict(script="raft", unusual={}), steps=3)
    two = run_folder(tmp_path / "two", [row(2, prompt_id=p) for p in (0, 1)], about=dict(script="mine", unusual={}))
    page = show.write([one, two], tmp_path / "both.html")
    actions = "slide(1); prompt_(1); seen.push(look(), texts('#runs h2'), texts('.card .facts').length);"
    look, heads, cards = browse(page, actions)
    assert look["title"] == "What RAFT and mine learned" and look["now"] == "step 2 of 3" and cards == 2
    assert heads == [f"RAFT · {one} · step 1", f"mine · {two}"]
    assert [text.split(".")[1].split()[0] for text in look["sentences"]] == ["RAFT", "mine"]


@in_browser
def test_before_during_and_after(trained):
    """The answers of the run's evaluations, of the problem that is chosen, and at the slider's step the last one so
    far."""
    saved = {step: read(trained / f"eval/step_{step:06d}/tiny-test.jsonl") for step in (0, 1, 2)}
    actions = """const columns = () => seen.push(texts("#rest .columns h3"), texts("#rest .columns .text"));
    columns(); send(set("#problem", 3), new Event("change")); columns();"""
    heads, answers, _, others = browse(trained / "show.html", actions)
    assert heads == ["Before: step 0", "Then: step 1", "After: step 2"]
    for problem, found in ((0, answers), (3, others)):
        rows = [row for step in (0, 1, 2) for row in saved[step] if row["problem_id"] == problem]
        mark = lambda row: f"{'✓' if row['correct'] else '✗'} {row['response']}"
        assert [text.removesuffix(" … cut off") for text in found] == [mark(row) for row in rows] and len(rows) == 12


EVIL = ["</script><script>window.hurt = 1</script>", "<img src=x onerror='window.hurt = 1'>", "\u2028\u2029", "\ud800",
        "<!--", "a\x00b\x07c", "\u202eabc", "PAGE_DATA SCRIPT_HASH", "&lt;b&gt; &amp;", "]]>", "\udc00\ud83d",
        "🙂é"]


@in_browser
def test_hostile_text_is_shown_and_none_of_it_runs(tmp_path):
    """In each place that a model, a data set or a command line can fill; in 100,000 characters; in no token at all."""
    numbers = dict(old=[-1.0] * len(EVIL), new=[-1.0] * len(EVIL), entropy=[0.0] * len(EVIL), clipped=[])
    all_of_it = "".join(EVIL)
    evil = row(tokens=EVIL, response=all_of_it, problem=all_of_it, prompt=all_of_it, answer=all_of_it, **numbers)
    none = row(tokens=[], response="", old=[], new=[], entropy=[], clipped=[], advantage=[], weight=[])
    long = row(tokens=["x" * 99_999, "y"], response="x" * 99_999 + "y")
    about = dict(script="<b onclick=hurt()>", unusual={"</script>": all_of_it})
    folder = run_folder(tmp_path / "<i>run", [evil, none, long], data=all_of_it, about=about)
    answer = dict(problem_id=0, problem=all_of_it, gold=all_of_it, response=all_of_it, correct=False, finish="stop")
    write(folder / "eval/step_000001/x.jsonl", [answer])
    page = show.write([folder])
    actions = """
    seen.push(cards().map(card => card.text.join("")), typeof window.hurt, all("script").length);
    seen.push(all("img").length, texts("#runs .problem")[0], texts("#rest .columns .text")[0], texts("#rest li")[0]);
    seen.push(look().title, all("b[onclick], i").length);
    press("ArrowRight", document.querySelector(".tokens"));
    seen.push(look().detail);"""
    texts, hurt, scripts, images, problem, answered, unusual, title, tags, detail = browse(page, actions)
    shown = ("".join(EVIL[:2]) + "⟨U+2028⟩⟨U+2029⟩⟨U+D800⟩<!--a⟨U+0000⟩b⟨U+0007⟩c⟨U+202E⟩abc" + "".join(EVIL[7:10])
             + "⟨U+DC00⟩⟨U+D83D⟩🙂é")
    assert texts == [shown, "", "x" * 99_999 + "y"]
    assert (hurt, scripts, images, tags) == ("undefined", 3, 0, 0)  # data, the page's script, the test's
    assert shown in problem and shown in answered and shown in unusual
    assert title == "What <b onclick=hurt()> learned"
    assert detail.startswith("A, token 1 of 12: “</script><script>window.hurt = 1</script>”")
    inert = page.read_text().split('id="data">')[1].split("</script>")[0]
    assert "<" not in inert and inert.isascii()


def test_the_page_loads_and_sends_nothing(trained):
    """Its policy allows its own script and style alone; there is no address in it but SVG's name."""
    text = (trained / "show.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert re.fullmatch(r"default-src 'none'; script-src 'sha256-[\w+/=]{44}'; style-src 'sha256-[\w+/=]{44}'; "
                        r"base-uri 'none'; form-action 'none'", policy)
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\bsrc=|\bhref=", text)


@in_browser
def test_the_page_is_as_wide_as_a_phone(trained):
    """Nothing has to be scrolled sideways, and the responses stand below each other."""
    actions = """seen.push(document.documentElement.scrollWidth, window.innerWidth);
    seen.push(all("#runs .card").map(card => card.offsetLeft));"""
    needed, width, lefts = browse(trained / "show.html", actions, frame=390)
    assert needed <= width == 390 and len(set(lefts)) == 1


@in_browser
@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_page_of_each_method(train, tmp_path, name):
    """Every step and prompt in every shade; the sentence names the method; what is rejected is not shaded."""
    out = tmp_path / "run"
    flags = ["--steps", 2, "--prompts_per_step", 43, "--updates_per_step", 2, "--eval_data", ""]
    assert train(out, *flags, module=importlib.import_module(name), curves=True) == 0
    rows = read(out / "samples.jsonl")
    actions = """for (const step of [0, 1]) for (const p of [0, 1])
      for (const kind of ["push", "change", "entropy", "clipped"]) {
        slide(step); prompt_(p); shade(kind);
        seen.push([kind, look()]);
      }"""
    seen = browse(out / "show.html", actions)
    prompts = {step: sorted({row["prompt_id"] for row in rows if row["step"] == step}) for step in (1, 2)}
    for number, (kind, look) in enumerate(seen):
        step, prompt = 1 + number // 8, number // 4 % 2
        group = [row for row in rows if row["step"] == step and row["prompt_id"] == prompts[step][prompt]]
        assert look["sentences"] == [show.sentence(name, group)] and show.METHODS[name][1] in look["sentences"][0]
        for card, row in zip(look["cards"], group, strict=True):
            assert "".join(card["text"]) == row["response"]
            advantage, weight = (np.broadcast_to(row[name], len(row["tokens"])) for name in ("advantage", "weight"))
            values = dict(push=advantage * weight, change=np.subtract(row["new"], row["old"]), entropy=row["entropy"])
            if kind != "clipped":
                assert card["values"] == pytest.approx(list(values[kind]), rel=1e-6, abs=1e-12)
            elif name in ("raft", "iterative_dpo"):
                assert set(card["values"]) == {None}
            else:
                assert [i for i, x in enumerate(card["values"]) if x] == row["clipped"]
            if kind == "push" and not row["kept"]:
                assert set(card["kinds"]) == {"t"} and card["way"] == "rejected" and "rejected" in card["facts"]
                assert ("advantage +1 (unused)" in card["facts"]) == name.startswith("raft")
    assert any(row["updates"] for row in rows) and any(look["cards"][0]["values"] for _, look in seen)


@in_browser
@pytest.mark.slow
def test_a_page_of_a_real_model(train, tmp_path):
    """SmolLM2, whose tokens are words with their spaces."""
    name = "smollm2-135m-instruct"
    model = next((place for place in (ROOT / "models" / name, Path(sys.prefix) / name) if place.is_dir()), None)
    if not model:
        pytest.skip("no SmolLM2 here; test_smollm2 fetches it")
    size = ["--steps", 2, "--prompts_per_step", 4, "--samples_per_prompt", 4, "--max_new_tokens", 24]
    data = ["--model", model, "--eval_data", "", "--data", "easy", "--template", "easy", "--max_prompt_tokens", 256]
    assert train(tmp_path / "run", *size, *data, "--tokens_per_micro", 2048, "--lr", 1e-5, base=[], curves=True) == 0
    rows = [row for row in read(tmp_path / "run/samples.jsonl") if row["step"] == 2]
    (look,) = browse(tmp_path / "run/show.html", "slide(1); shade('change'); seen.push(look());")
    for card, row in zip(look["cards"], rows, strict=True):
        assert "".join(row["tokens"]) == row["response"] == "".join(card["text"])
        assert card["values"] == pytest.approx(list(np.subtract(row["new"], row["old"])), abs=1e-9)
    assert any(text.startswith(" ") for row in rows for text in row["tokens"])
