"""The command line of the lab."""

import argparse
import re
import signal
import sys
from pathlib import Path

import lab
from core.config import ROOT
from core.processes import bad_input, fail
from lab import real, report
from lab.claims import CLAIMS, SHOWN, TUNING_SEEDS, command_lines
from lab.experiments import Experiments


def main():
    how = dict(description=lab.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(prog="python -m lab", **how)
    parser.error = lambda message: fail(f"{message} (--help lists the flags)")
    parser.add_argument("claims", nargs="*", help="numbers, all (of the miniature), real (on real models), or tune")
    parser.add_argument("--seeds", help="how many, from 0 up; or first-last, such as 10-14 (default: each claim's own)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores")
    parser.add_argument("--report", action="store_true", help="write the report and its figures")
    parser.add_argument("--results", help="file of results (default: lab/results.json, OUT-MODEL/results.json)")
    parser.add_argument("--out", default="out/lab", help="folder for the runs")
    parser.add_argument("--model", default="tiny", help="as for the scripts; some claims need the built-in one")
    parser.add_argument("--data", default="numina-math", help="with --model: what to train on")
    parser.add_argument("--steps", type=int, default=0, help="training steps (default 30; with --model 300)")
    parser.add_argument("--launcher", default="", help="what starts a script instead of python, such as torchrun ...")
    args = parser.parse_args()
    given = args.seeds or "1"
    first, _, end = given.partition("-")
    good = re.fullmatch(r"\d+(-\d+)?", given) and args.jobs > 0 and args.steps >= 0
    seeds = list(range(int(first), int(end) + 1) if end else range(int(first))) if good else []
    ours = args.model == "tiny"  # another model has no section `real`, whose settings name their models
    sections = dict(all=CLAIMS) | (dict(real=real.CLAIMS) if ours else {})
    settings = command_lines(args.model, args.data, args.steps) | (real.SETTINGS if ours else {})
    out = Path(args.out if ours else f"{args.out}-{Path(args.model).name}")
    file = Path(args.results or (ROOT / "lab/results.json" if ours else out / "results.json"))
    claims = sum(sections.values(), [])
    groups = sections | {str(claim.number): [claim] for claim in claims} | (dict(tune=[]) if ours else {})
    if not seeds or set(args.claims) - set(groups):
        fail(f"{' '.join(sys.argv[1:])}: give claims, 1 to {len(claims)}, {', '.join(sections)} or tune; "
             "--seeds 5 or 10-14; --jobs 1 or more")
    with bad_input(f"{file}: "):
        runs = Experiments(settings, file, out.resolve(), args.launcher)
    seeds = seeds if args.seeds else None  # None: as many as each claim says
    numbers = {claim.number for word in args.claims for claim in groups[word]}
    asked = [claim for claim in claims if claim.number in numbers]
    own = report.seeds_of(asked, seeds)
    if "all" in args.claims:  # also the settings that only a figure shows; to_do() adds the worlds that they need
        own |= {name: seeds or range(SHOWN) for name, text in settings.items()
                if name not in own | real.SETTINGS and "@" not in name and "worlds.py" not in text.split()[0]}
    if "tune" in args.claims:
        own |= {name: TUNING_SEEDS for name in settings if "@" in name}
    wanted = [(name, seed) for name in own if name in settings for seed in own[name]]
    todo = runs.to_do(sorted(wanted, key=lambda run: run[1]))  # seed by seed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failures = runs.run_all(todo, args.jobs)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was")
        raise SystemExit(130) from None
    found, results = {}, runs.of_today()
    for section in sections.values():  # each is judged for itself
        found |= report.judge_all(section, results, seeds)
    for claim in asked or claims:
        print(f"{claim.number:2}  {found[claim.number]['verdict']:9}  {claim.text}")
        for part in found[claim.number]["parts"] if asked else ():
            print(f"    {part['verdict']:9}  {part['label']}: {report.value(part)} ({part['criterion']})")
    if "tune" in args.claims:
        print(report.rates(results))
    if args.report:
        report.write(file, claims, found, results, seeds)
    if failures:
        fail(f"{len(failures)} of {len(todo)} runs failed; the same command tries them again:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
