"""Models and data sets from the hub: all aliases through the real loading code, and what a user reads when the hub is
gated, dead, slow, overloaded, or breaks off. The hub is tests/fake_hub.py.

The libraries read HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when they are imported, which takes seconds. So a process of
its own imports them once (`serve`), and each call of `fresh` runs one of the functions below in a fork of it: a process
in which nothing has been asked yet. All of them share one HF_HOME, as the runs of a user do."""

import contextlib
import errno
import functools
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import DATA_SETS, FakeHub, add_data, add_models
from helpers import ROOT, TORCHRUN, output_of

WEIGHTS = (ROOT / "models/tiny/model.safetensors").stat().st_size
# Where each alias has to read. The made-up problems name their file.
FILES = {
    "numina-math": "ScaleML-RLHF/numina_math/data/train", "numina-cot": "AI-MO/NuminaMath-CoT/data/train",
    "math": "DigitalLearningGmbH/MATH-lighteval/data/train", "gsm8k": "openai/gsm8k/main/train",
    "deepscaler": "agentica-org/DeepScaleR-Preview-Dataset/deepscaler.json",
    "dapo-math": "BytedTsinghua-SIA/DAPO-Math-17k/data/dapo-math-17k.parquet",
    "gsm8k-test": "openai/gsm8k/main/test", "math500": "HuggingFaceH4/MATH-500/test.jsonl",
    "minerva": "knoveleng/Minerva-Math/data/train", "olympiadbench": "knoveleng/OlympiadBench/data/train",
    "aime24": "HuggingFaceH4/aime_2024/data/train", "aime25": "yentinglin/aime_2025/data/train",
    "amc23": "knoveleng/AMC-23/data/train",
}


# ------------------------------------------------------------------------------------------------ in the other process
def data(*names, split="train") -> list:
    """For each data set its problems as [text, answer], or the line that refuses it."""
    from core.data import load_data

    def load(name):
        cfg = SimpleNamespace(template="plain", max_prompt_tokens=10_000, prefix="")
        try:
            return [[row["problem"], row["answer"]] for row in load_data(name, tokenizer(), cfg, split=split)]
        except ValueError as error:
            return str(error)

    return [load(name) for name in names]


def models(*names, weights=True) -> list:
    """For each model how many bytes of weights it has (weights=False: its id), or the line that refuses it."""
    from transformers.utils import cached_file

    from core import config

    config.ROOT = Path("nowhere")  # a model that somebody keeps in models/ would come before the hub

    def load(name):
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.suppress(SystemExit):
            source, _, _ = config.find_model(name, "model")
            return os.path.getsize(cached_file(source, "model.safetensors")) if weights else source
        return said.getvalue().strip()

    return [load(name) for name in names]


def parameters(name) -> int:
    """The number of parameters of a model that is loaded as a run loads it."""
    from core.policy import Policy

    return sum(weight.numel() for weight in Policy(name, "cpu", vocab=261).parameters())


def has_file(name, file="model.safetensors") -> bool | str:
    """Or why that can't be found out."""
    from core import hub

    try:
        return hub.has_file(name, file)
    except OSError as error:
        return hub.why(error, name)


def choices(name) -> list:
    from core import hub

    return hub.choices(name)


def look(times=1) -> str:
    from core import hub

    return [hub.look_for_hub() for _ in range(times)][-1]


@functools.cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "models/tiny")


def no_pause(seconds):
    """The libraries wait 1, 2, 4, 8 and 8 s between their tries. Not here."""


def never_wait(seconds):
    raise AssertionError(f"waits {seconds} s")


def only_here(host, *args, look_up=socket.getaddrinfo, **keywords):
    """datasets asks a second host for statistics, whose name is looked up for seconds and then not found."""
    if host != "127.0.0.1":
        raise socket.gaierror(f"{host} is not of this test")
    return look_up(host, *args, **keywords)


def serve():
    """Import everything, then do what stdin asks for: [function, arguments, keywords, environment, pause]."""
    import datasets
    import transformers

    import core.config
    import core.data

    assert core.config and core.data
    socket.getaddrinfo = only_here
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    tokenizer()
    print("ready", flush=True)
    for line in sys.stdin:
        function, args, keywords, variables, pause = json.loads(line)
        child = os.fork()
        if child == 0:
            os.environ |= variables
            time.sleep = globals()[pause] if pause else time.sleep
            out = io.StringIO()
            try:
                with contextlib.redirect_stdout(out):
                    value = globals()[function](*args, **keywords)
                answer = dict(value=value, said=out.getvalue())
            except BaseException as error:
                answer = dict(failed=f"{type(error).__name__}: {error}")
            print(json.dumps(answer), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    os._exit(0)  # to tear down all that was imported takes seconds


# ------------------------------------------------------------------------------------------------ in this process
class Fresh:
    """Runs functions of this file in fresh processes that look for models and data at a hub. After a call, `said` is
    what it printed."""

    def __init__(self, hub, home, **variables):
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        clean |= dict(HF_ENDPOINT=hub.url, HF_HOME=str(home), PYTHONPATH=paths, NO_PROXY="*", no_proxy="*") | variables
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([sys.executable, "-c", "import test_hub; test_hub.serve()"], env=clean, **pipes)
        self.ready = False

    def __call__(self, function, *args, variables=(), pause=None, **keywords):
        self.ready = self.ready or self.process.stdout.readline().strip() == "ready"
        wish = [function.__name__, args, keywords, dict(variables), pause and pause.__name__]
        print(json.dumps(wish), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline() or '{"failed": "the process has gone"}')
        assert "failed" not in answer, answer
        self.said = answer["said"]
        return answer["value"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with the models and data sets of the tables, some broken ones, and u/ok-1 ... which are as good as any."""
    from core.config import MODELS

    root = tmp_path_factory.mktemp("hub")
    add_models(root, [source for source, _ in MODELS.values() if not Path(source).is_dir()], ROOT / "models/tiny")
    add_models(root, [f"u/ok-{i}" for i in range(10)], ROOT / "models/tiny")
    for name, (columns, layout) in DATA_SETS.items():
        add_data(root, name, columns, layout)
    for i in range(10):
        add_data(root, f"u/ok-{i}", "problem answer", "train.jsonl")
    add_data(root, "u/levels", "problem answer", dict(default={"train": 1}, hard={"train": 1}))
    add_data(root, "u/many", "problem answer", {f"part{i}": {"train": 1} for i in range(11)})
    for name, text in {"u/broken": '{"problem": "1", "answer": "1"}\n{"prob\n', "u/two-kinds": '{"a": "1"}\n'}.items():
        add_data(root, name, "problem answer", "a.jsonl")
        (root / "datasets" / name / "b.jsonl").write_text(text)
    config = json.loads((ROOT / "models/tiny/config.json").read_text()) | dict(model_type="strange")
    for name, extra in {"u/code": dict(auto_map=dict(AutoConfig="code.Strange")), "u/strange": {}}.items():
        (root / "models" / name).mkdir(parents=True)
        (root / "models" / name / "config.json").write_text(json.dumps(config | extra))
    hub = FakeHub(root)
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def processes(hub, home):
    """Two that fork: one that may ask the hub, and one that was started with HF_HUB_OFFLINE=1."""
    pair = Fresh(hub, home), Fresh(hub, home, HF_HUB_OFFLINE="1")
    yield pair
    for fresh in pair:
        fresh.process.stdin.close()
        fresh.process.wait()


@pytest.fixture
def fresh(processes, hub):
    """A process online; before each test the hub is well and its list of requests empty."""
    hub.faults.clear()
    hub.requests.clear()
    return processes[0]


@pytest.fixture
def offline(processes, hub):
    hub.requests.clear()
    return processes[1]


@pytest.fixture(scope="module")
def cold(processes):
    """What the aliases of the tables give when nothing is cached: (data, models)."""
    from core.config import MODELS

    return processes[0](data, *FILES), processes[0](models, *MODELS)


def paths(hub) -> list:
    return [path for _, path, _ in hub.requests]


# ------------------------------------------------------------------------------------------------ the tables
def test_every_data_alias_reads_its_config_and_split(cold):
    for (alias, file), rows in zip(FILES.items(), cold[0], strict=True):
        assert isinstance(rows, list), rows
        assert all(file in problem for problem, _ in rows), alias
        assert [answer.strip("$") for _, answer in rows] == ["40", "41"] * (len(rows) // 2) != [], alias


def test_the_table_above_has_all_aliases():
    from core.rows import DATA

    assert FILES.keys() == {alias for alias, (path, *_) in DATA.items() if path}


def test_every_model_alias_loads(cold):
    assert set(cold[1]) == {WEIGHTS}  # they all are the built-in model here


def test_a_run_loads_its_model_from_the_hub(fresh, offline):
    assert fresh(parameters, "u/ok-9") == offline(parameters, "u/ok-9") == 674_432


def test_what_is_cached_is_not_loaded_again(cold, fresh, hub):
    assert fresh(data, *FILES) == cold[0]
    assert not [path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]


def test_local_folders_and_files_ask_the_hub_for_nothing(fresh, hub, problems_file, tiny_path):
    assert fresh(data, str(problems_file), "tiny-hard", "./nowhere.jsonl")
    assert fresh(models, "tiny", tiny_path, "./nowhere")
    assert hub.requests == []


# ------------------------------------------------------------------------------------------------ names
@pytest.mark.parametrize("name, parts", [
    ("openai/gsm8k", ("openai/gsm8k", None, None)),
    ("openai/gsm8k:main", ("openai/gsm8k", "main", None)),
    ("openai/gsm8k:main:test", ("openai/gsm8k", "main", "test")),
    ("HuggingFaceH4/MATH-500::test", ("HuggingFaceH4/MATH-500", None, "test")),
    ("a/b:", ("a/b", None, None)),
    ("a/b::", ("a/b", None, None)),
])
def test_a_name_has_up_to_three_parts(name, parts):
    from core.hub import split_name

    assert split_name(name) == parts


@pytest.mark.parametrize("name", ["", ":main", "::", "a/b:main:test:more", "a/b:::"])
def test_other_names_are_refused(name):
    from core.hub import split_name

    with pytest.raises(ValueError, match="ID:CONFIG:SPLIT"):
        split_name(name)


def test_config_and_split_of_an_id(fresh):
    files = {
        "openai/gsm8k:main": "openai/gsm8k/main/train", "openai/gsm8k:main:test": "openai/gsm8k/main/test",
        "openai/gsm8k:socratic:train": "openai/gsm8k/socratic/train",
        "HuggingFaceH4/MATH-500::test": "HuggingFaceH4/MATH-500/test.jsonl",
        "HuggingFaceH4/MATH-500:default:test": "HuggingFaceH4/MATH-500/test.jsonl",
        "DigitalLearningGmbH/MATH-lighteval": "DigitalLearningGmbH/MATH-lighteval/data/train",
        "DigitalLearningGmbH/MATH-lighteval:algebra:test": "DigitalLearningGmbH/MATH-lighteval/algebra/test",
        "knoveleng/AMC-23": "knoveleng/AMC-23/data/train",
    }
    for (name, file), rows in zip(files.items(), fresh(data, *files)):
        assert isinstance(rows, list) and file in rows[0][0], (name, rows)


def test_an_evaluation_reads_the_split_test_of_an_id(fresh):
    names = ["HuggingFaceH4/MATH-500", "openai/gsm8k:main", "openai/gsm8k:main:train"]
    math, gsm, train = fresh(data, *names, split="test")
    assert "MATH-500/test" in math[0][0] and "main/test" in gsm[0][0] and "main/train" in train[0][0]


def test_an_ambiguous_id_lists_the_choices(fresh):
    config, split, wrong_config, wrong_split = fresh(
        data, "openai/gsm8k", "HuggingFaceH4/MATH-500", "openai/gsm8k:mian", "openai/gsm8k:main:tset")
    for line in (config, wrong_config, wrong_split):
        assert "openai/gsm8k:main:train, openai/gsm8k:main:test, openai/gsm8k:socratic:train" in line
    assert "HuggingFaceH4/MATH-500:default:test" in split
    assert "\n" not in config + split + wrong_config + wrong_split


def test_the_choices_of_a_data_set(fresh, hub):
    assert fresh(choices, "openai/gsm8k") == [f"openai/gsm8k:{x}" for x in "main:train main:test socratic:train "
                                              "socratic:test".split()]
    assert fresh(choices, "u/many")[-1] == "u/many:part10"  # of so many the splits are not looked up
    assert fresh(choices, "u/nobody") == []
    assert not [path for path in paths(hub) if path.endswith(".parquet")]  # without a download


def test_a_misspelt_alias_gets_the_nearest(fresh, hub):
    [line], [model] = fresh(data, "deepscalr"), fresh(models, "qwen2.5-0.5")
    assert "did you mean deepscaler?" in line
    assert model.startswith("error: --model qwen2.5-0.5: ") and "did you mean qwen2.5-0.5b?" in model
    assert hub.requests == []


# ------------------------------------------------------------------------------------------------ refused
def test_a_repository_that_is_not_there(fresh):
    [line], [model] = fresh(data, "u/nobody"), fresh(models, "u/nobody")
    for text in (line, model):
        assert "u/nobody" in text and "not on the hub, or it is private" in text and "HF_TOKEN" in text
        assert "go online" not in text and "\n" not in text


@pytest.mark.parametrize("token", ["", "hf_of_somebody_who_may_not"])
def test_gated_names_the_licence_page(cold, fresh, hub, token):
    hub.faults |= {name: dict(gated=True) for name in ("u/ok-0", "meta-llama/Llama-3.1-8B-Instruct")}
    token = dict(HF_TOKEN=token) if token else {}
    [line] = fresh(data, "u/ok-0", variables=token)
    model, alias = fresh(models, "u/ok-0", "llama-3.1-8b-instruct", variables=token)
    assert f"{hub.url}/datasets/u/ok-0," in line
    assert f"{hub.url}/u/ok-0," in model
    for text in (line, model):
        assert "hf auth login" in text and "HF_TOKEN" in text
        assert "go online" not in text and "huggingface.co" not in text and "\n" not in text
    assert alias == WEIGHTS  # cached, and the licence was accepted then


def test_code_of_a_repository_is_never_run_and_nobody_is_asked(fresh, hub):
    code, strange = fresh(models, "u/code", "u/strange")
    assert "needs code of its own, which is never run" in code and "\n" not in code
    assert "strange" in strange and "KeyError" not in strange and "\n" not in strange
    assert not [path for path in paths(hub) if path.endswith(".py") and "/u/code/" in path]


def test_a_broken_data_file_is_named_as_such(fresh):
    broken, kinds = fresh(data, "u/broken", "u/two-kinds")
    assert "JSON parse error" in broken and "\n" not in broken
    assert "differ in their columns" in kinds and "\n" not in kinds


# ------------------------------------------------------------------------------------------------ a sick hub
def test_a_download_that_breaks_off_once_is_continued(fresh, hub):
    hub.faults["u/ok-1"] = dict(cut=100, times=1)
    [rows], [model] = fresh(data, "u/ok-1", pause=no_pause), fresh(models, "u/ok-1", pause=no_pause)
    assert len(rows) == 2 and model == WEIGHTS
    assert [method for method, path, _ in hub.requests if path.endswith("train.jsonl")] == ["HEAD", "GET", "GET"]


def test_a_download_that_always_breaks_off_is_one_line(fresh, hub):
    hub.faults["u/ok-2"] = dict(cut=10)
    for [line] in (fresh(data, "u/ok-2", pause=no_pause), fresh(models, "u/ok-2", pause=no_pause)):
        assert "u/ok-2" in line and "cut in the middle" in line and "\n" not in line


@pytest.mark.parametrize("status, reason", [(429, "too many requests (429)"), (503, "out of order (503)")])
def test_a_hub_that_answers_no_is_one_line(fresh, hub, status, reason):
    hub.faults["u/ok-3"] = dict(status=status)
    for [line] in (fresh(data, "u/ok-3", pause=no_pause), fresh(models, "u/ok-3", pause=no_pause)):
        assert "u/ok-3" in line and reason in line and "try again later" in line and "\n" not in line


def test_503_for_one_repository_uses_what_is_cached(cold, fresh, hub):
    hub.faults |= {name: dict(status=503) for name in ("openai/gsm8k", "Qwen/Qwen2.5-0.5B")}
    assert fresh(data, "gsm8k", pause=no_pause) == [cold[0][list(FILES).index("gsm8k")]]
    assert fresh(models, "qwen2.5-0.5b", pause=no_pause) == [WEIGHTS]


def test_503_for_the_weights_is_not_a_repository_without_weights(fresh, hub):
    """transformers' has_file() says False for a file that the hub does not want to talk about."""
    hub.faults["u/ok-4"] = dict(status=503, only="model.safetensors")
    [line] = fresh(models, "u/ok-4", pause=no_pause)
    assert "503" in line and "no weights" not in line and "\n" not in line


def test_whether_a_repository_has_a_file(cold, fresh, offline, hub):
    assert fresh(has_file, "u/ok-4") is True and fresh(has_file, "u/ok-4", "model.bin") is False
    hub.faults |= {"u/ok-4": dict(gated=True), "Qwen/Qwen2.5-0.5B": dict(gated=True)}
    assert "gated" in fresh(has_file, "u/ok-4") and fresh(has_file, "Qwen/Qwen2.5-0.5B") is True  # cached
    hub.faults["u/ok-4"] = dict(status=503)
    assert "503" in fresh(has_file, "u/ok-4", pause=no_pause)
    assert "not cached" in offline(has_file, "u/ok-4") and offline(has_file, "Qwen/Qwen2.5-0.5B") is True


# ------------------------------------------------------------------------------------------------ HF_HUB_OFFLINE=1
def test_offline_needs_no_hub_for_what_is_cached(cold, offline, hub):
    from core.config import MODELS

    assert offline(data, *FILES) == cold[0]
    assert offline(models, *MODELS) == cold[1]
    assert offline(look) == "" and hub.requests == []


def test_offline_says_what_to_do_for_what_is_not_cached(offline, hub):
    [line], [model] = offline(data, "u/ok-5"), offline(models, "u/ok-5")
    for text in (line, model):
        assert "u/ok-5" in text and "not cached" in text and "unset" in text and "HF_HUB_OFFLINE" in text
        assert "\n" not in text
    assert hub.requests == []


def test_offline_weights_that_are_not_cached_are_not_missing_from_the_repository(fresh, offline):
    """Config and tokenizer can be cached alone, as after an evaluation with --perplexity that was broken off."""
    fresh(models, "u/ok-6", weights=False)
    [line] = offline(models, "u/ok-6")
    assert "not cached" in line and "\n" not in line


def test_offline_another_config_is_not_taken_for_the_one_that_is_meant(fresh, offline):
    """datasets, offline and without a name, loads whichever config is cached if it is the only one."""
    [hard] = fresh(data, "u/levels:hard")
    assert "hard/train" in hard[0][0]
    same, other, default = offline(data, "u/levels:hard", "u/levels:easy", "u/levels")
    assert same == hard
    assert "easy" in other and "hard" in other and "\n" not in other  # what is asked for, what there is
    assert isinstance(default, str) and "hard" in default and "\n" not in default


# ------------------------------------------------------------------------------------------------ a dead hub
def test_a_hub_out_of_order_is_asked_once_if_all_is_cached(cold, fresh, hub):
    hub.faults[""] = dict(status=503)
    assert fresh(data, *FILES, pause=never_wait) == cold[0]
    assert fresh.said == f"the hub {hub.url} can't be reached (it answers 503): only what is cached can be used\n"
    assert hub.requests == [("HEAD", "/", 503)]
    assert fresh(models, "qwen2.5-0.5b", "olmo-2-7b", pause=never_wait) == [WEIGHTS] * 2
    assert len(hub.requests) == 2


def test_a_hub_out_of_order_is_asked_once_if_nothing_is_cached(fresh, hub):
    hub.faults[""] = dict(status=503)
    [line], [model] = fresh(data, "u/ok-7", pause=never_wait), fresh(models, "u/ok-7", pause=never_wait)
    for text in (line, model):
        assert "u/ok-7" in text and "not cached" in text and hub.url in text and "go online" in text
        assert "HF_HUB_OFFLINE" not in text and "\n" not in text  # which nobody has set
    assert len(hub.requests) == 2


def test_the_hub_is_looked_for_once(fresh, hub):
    assert fresh(look, 3) == "" and fresh.said == ""
    assert hub.requests == [("HEAD", "/", 200)]


def test_any_answer_below_500_is_a_sign_of_life(fresh, hub):
    hub.faults[""] = dict(status=404)
    assert fresh(look) == ""


def test_a_hub_that_does_not_answer_is_dead(fresh, hub):
    hub.faults[""] = dict(delay=5)
    assert fresh(look, variables=dict(HF_HUB_ETAG_TIMEOUT="0.2"))
    assert "can't be reached" in fresh.said


def test_without_a_hub_all_that_is_cached_works_at_once(cold, fresh, hub):
    """The last one here that needs the hub: it stops it."""
    from core.config import MODELS

    hub.stop()
    assert fresh(data, *FILES, pause=never_wait) == cold[0]
    assert "Connection refused" in fresh.said and fresh.said.count("\n") == 1
    assert fresh(models, *MODELS, pause=never_wait) == cold[1]
    [line], [model] = fresh(data, "u/ok-8", pause=never_wait), fresh(models, "u/ok-8", pause=never_wait)
    assert "not cached" in line and "not cached" in model


# ------------------------------------------------------------------------------------------------ has_file, why
def test_a_file_of_a_local_folder(tiny_path):
    from core import hub

    assert hub.has_file(tiny_path, "config.json") and not hub.has_file(tiny_path, "model.safetensors.index.json")


def raised(error, *causes):
    """The error as if raised from the first cause, this one from the second, and so on."""
    try:
        raise error from (raised(*causes) if causes else None)
    except type(error) as caught:
        return caught


def test_why_a_full_disk():
    from core.hub import why

    full = OSError(errno.ENOSPC, "No space left on device")
    assert "disk is full" in why(full, "u/x") and "HF_HOME" in why(full, "u/x")
    assert "disk is full" in why(raised(OSError("Can't load the model for 'u/x'."), full), "u/x")
    assert "disk is full" in why(OSError("Not enough disk space. Needed: 3 GiB"), "u/x", "dataset")


def test_why_anything_else_is_its_first_line():
    from datasets.exceptions import DatasetGenerationError

    from core.hub import why

    assert why(ValueError("\n\n  first\nsecond"), "u/x") == "first"
    assert why(KeyError("weights"), "u/x") == "KeyError: 'weights'"
    assert why(OSError(), "u/x") == "OSError"
    vague = raised(DatasetGenerationError("An error occurred while generating the dataset"), TypeError("bad cell"))
    assert why(vague, "u/x", "dataset") == "TypeError: bad cell"


def test_why_ends_for_errors_that_lead_to_each_other():
    from core.hub import why

    one, two = ValueError("Can't load the one"), ValueError("Can't load the two")
    one.__context__, two.__context__ = two, one
    assert why(one, "u/x").startswith("Can't load the")


# ------------------------------------------------------------------------------------------------ commands
HERE = "--template chat --max_new_tokens 8".split()


@pytest.fixture
def other_hub(hub, tmp_path):
    """The same models and data on a hub that is still alive, and variables for commands that use it."""
    other = FakeHub(hub.root)
    yield other, dict(HF_ENDPOINT=other.url, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0", no_proxy="*")
    other.stop()


@pytest.mark.slow
def test_an_evaluation_from_the_hub_and_then_without_it(other_hub, tmp_path):
    other, variables = other_hub
    command = [sys.executable, ROOT / "eval.py", "--model", "qwen2.5-0.5b", "--bench", "aime24,amc23", *HERE]
    command += ["--samples", "1", "--seeds", "1", "--out"]
    text = output_of(*command, tmp_path / "online", **variables)
    assert "aime24" in text and "amc23" in text and "can't be reached" not in text
    other.faults[""] = dict(status=503)
    other.requests.clear()
    text = output_of(*command, tmp_path / "dead", **variables)
    assert "aime24" in text and "amc23" in text and text.count("can't be reached (it answers 503)") == 1
    assert other.requests == [("HEAD", "/", 503)]


@pytest.mark.slow
def test_of_two_processes_one_says_that_the_hub_is_dead(other_hub, tmp_path):
    other, variables = other_hub
    command = [ROOT / "grpo.py", "--model", "qwen2.5-0.5b", "--data", "gsm8k", *HERE, "--steps", "1"]
    command += "--eval_every 0 --prompts_per_step 2 --samples_per_prompt 2 --reference false --out".split()
    output_of(sys.executable, *command, tmp_path / "online", **variables)
    other.faults[""] = dict(status=503)
    other.requests.clear()
    text = output_of(*TORCHRUN, *command, tmp_path / "dead", **variables)
    assert text.count("can't be reached") == 1
    assert other.requests == [("HEAD", "/", 503)] * 2
