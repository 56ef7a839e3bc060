"""The prose of docs/lab.md: what each paper says, and what we see. It describes the committed lab/results.json. When
those numbers change, read this prose again."""

PAPERS = {  # title, arXiv, what it says, what we see
    "minimalist": ("A minimalist approach to LLM reasoning", "2504.11343", """
Training on right answers alone (RAFT) is nearly as good as GRPO, above all with ratio and clip (RAFT++). What
GRPO gains over Reinforce comes from dropping prompts whose answers are all wrong, not from its normalisation.
Dropping all-right ones as well gives Reinforce-Rej.""", """
Right answers alone are not nearly as good but better: RAFT ends at 52 %, RAFT++ at 50 %, GRPO and Reinforce-Rej
at 44 %, and within 30 steps nobody passes anybody. RAFT++ stays three points below RAFT, with its clip or
without; the clip binds on about one token in 1,500, too few to help or to harm. All-wrong prompts do harm
Reinforce, by 13 points, as the paper says. But silencing them by subtracting the mean helps as well, by 9
points, and Reinforce-Rej and GRPO cannot be told apart in accuracy."""),
    "sober": ("A sober look at progress in language model reasoning", "2504.07086", """
With small benchmarks and few seeds results are a matter of luck; templates and length limits move them; wrong
answers are longer.""", """
All of it, as far as five seeds can tell. Without its template the base falls from 28 to 2 %. Wrong answers are
3 tokens longer than right ones in the base and 12 after GRPO, which stops guessing: what is wrong then are long
problems."""),
    "spurious": ("Spurious rewards", "2506.10947", """
Random or wrong rewards can make a model better, if they send it back to a strategy that it was good at;
clipping is what gives noise that direction.""", """
Votes are as good as the truth, and what the truth teaches is above all to switch to python, where that is the
better style. One example and even wrong labels shift the model to python too, by 19 to 33 points; wrong labels
gain nothing by it. Random rewards only harm, by 12 points with the clip and 19 without it, and the share of
python goes up in some seeds and down in others. The mechanism is real (28), but the clip binds on one token in
three thousand, and the noise of eight steps of Adam per rollout outweighs it. That random rewards harm the
model whose frequent style is the worse one (26) says little here: they harm the other one as well."""),
    "limit": ("Does RL really incentivize reasoning beyond the base model?", "2504.13837", """
RL makes the first sample better. What it solves within many samples the base solved already, and some of that
is lost.""", """
So it is: GRPO is ahead of the base by 13 points at k = 1, behind it from k = 5 on, and 13 points behind at k =
256, while distillation from a teacher that makes no mistakes is ahead everywhere. How much is lost differs from
seed to seed, so that most claims about its details stay undecided on 48 problems. Not one problem is solved by
all of 256 samples, before or after, which leaves one part of claim 20 without a number."""),
    "behaviors": ("Cognitive behaviors that enable self-improving reasoners", "2503.01307", """
A base that verifies and backtracks gains more from RL; whether the examples that taught it were right matters
little.""", """
Being right matters here. Primed with right searches the model starts at 54 % and RL takes it to 63 %; with
direct answers from 30 to 38 %. So RL adds as much to answers as to search, and the lead is what imitation gave.
Primed with searches that end wrong it starts at 22 % and reaches 26 %, and it stops searching: from one
rejected attempt per response to a quarter of one. Its verdicts were shown to be worthless, so nothing rewards
them. A large model may know better than the examples that prime it; this one knows only what it was shown."""),
    "reflection": ("Rethinking reflection in pre-training", "2504.04022", """
A model can correct a wrong solution when it is told to wait, and learns this during pretraining.""", """
Yes, in the small: told to wait, the base solves 5 % of the problems whose solution has gone wrong, told nothing
3 %, and both rise in the course of pretraining. (After 300 steps of it; the base of this project had 1,000.)"""),
    "others": ("Dr. GRPO, one-shot RLVR, TTRL", "2503.20783, 2504.20571, 2504.16084", """
How the loss is normalised decides how long wrong answers get; one example, or votes in place of labels, are
enough to learn.""", """
The weights are what Dr. GRPO says, but our problems fix the length of a solution, and a difference of a token
in the length of wrong answers is not established. One example gains 7 points, which is not clearly more than
the 2 points of rewarding the format."""),
    "real": ("Real models on real benchmarks", "the papers above", """
What the papers measured on models of 1.5 to 72 billion parameters.""", """
Of Qwen's single responses 18 % are right (GSM8K 23 %, MATH-500 7 %). The vote of 16 is right for 33 % of the problems,
and for 66 % at least one of the 16 is. SmolLM2 and Gemma were right in two of 1,536 responses each, too few to compare
their conditions. Seeds scatter by 5.6 to 7.1 points on 30 problems; chance alone gives 4.8 to 6.6. Qwen's right answers
are 45 tokens shorter, but most of them are to GSM8K, which is easier. Without a template 12.5 % are right, with one 15
to 20 % (sober 20, qwen-math 19, cot 18, chat 15). Which of these four is best remains open.

Qwen uses Python in 31 % of its responses, SmolLM2 in 2 %, Gemma in 0.4 %. But of its responses with Python only 10 %
are right, and 21 % of the others. That comes from GSM8K (12 and 29 %); on MATH-500 both are 7 %. Harder problems are
not the reason: compared within each problem, Python is 12 points worse. A likely one: nothing runs the code, so Qwen
has to guess what it prints. In the third and the fifth response below it guesses 4.0 for 8, and 255 for 570. Without a
template, 61 % of the responses use Python. If every response has to begin with "Let's solve this using Python.", 88 %
do, and 12 % are right in place of 18 %. (SmolLM2 and Gemma then use Python in only 27 and 22 %, so they test nothing.)
In the paper, Python helps Qwen2.5-Math. But forced, Qwen2.5-7B falls there too, from 42 to 22 %.

With "Wait," Qwen mends 7 of 384 wrong solutions, without it 1. That is undecided. And without it, Qwen mostly stops at
once, so this compares going on with stopping: it does not test the word. SmolLM2 mends 0 and 1.

Claims 42 and 43 are ten steps of RL, with 64 responses each. The prompt has three worked examples, and a response has
room for 64 tokens. If right answers are rewarded, Qwen goes from 22 to 82 % with GRPO and to 87 % with RAFT++, and
SmolLM2 from 16 to 43 and 45 %. Qwen learns to go step by step: it writes 3.3 equations per response in place of 1.9.
(More boxes, in 100 % of its responses in place of 85, explain only 4 points of its gain.)

If random responses are rewarded, Qwen falls from 22 to 17 % and writes fewer equations (1.5). The clip acts on 0.8 % of
the tokens, about as often as if right answers are rewarded (0.7 %). In the paper, random rewards bring Qwen back to
Python. Here they can't: Qwen uses Python in 1 % of these responses. So this does not test the paper's explanation.
SmolLM2 falls from 16 to 11 %: it writes fewer boxes.

If a box is rewarded, whatever is in it, both models soon write one in nearly every response. SmolLM2 gains 12 points,
of which the new boxes alone explain 7. The seeds of Qwen disagree: with two of them it falls to 9 and 11 % and writes
fewer equations (0.9 and 1.2), with the third it rises to 35 % and writes a few more (2.2)."""),
}

TENSION = """
**A tension inside this paper.** It credits GRPO's gain over Reinforce to dropping all-wrong prompts, and finds
that subtracting the mean (+ mean zero) raises the KL without a gain. Yet subtracting the mean gives all-right and
all-wrong prompts an advantage of exactly 0, so it silences both; with 4 responses and rewards of -1 and 1 its
advantages (1.5 and -0.5 with one right, 1 and -1 with two) differ from GRPO's by a factor of at most 1.155. A
method that is GRPO up to that factor can't do badly for a reason that lies in the advantages. What is left: one
seed per curve; the learning rate, since larger advantages are larger steps where the optimizer does not undo it;
the KL and entropy terms of the released code, which are not in the paper's formulas; the normalisation, since that
code counts silenced responses in its mean over tokens and dropped ones may not be; code for the variants was not
released. Here responses that mean zero silences count in the mean over tokens as well, and Adam undoes such a
factor; mean zero goes along with the variants that drop prompts (figure of the variants): above Reinforce in
accuracy, and in KL rather below it than above."""
