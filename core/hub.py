"""The Hugging Face hub: can it be reached, and what went wrong, in one line."""

import functools
import os
import sys
import threading

from huggingface_hub import HfApi, constants, errors, get_session, try_to_load_from_cache
from huggingface_hub.utils import enable_progress_bars
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from core.files import causes, disk_is_full
from core.processes import say


@functools.cache
def look_for_hub() -> str:
    """Call this before the first use of a hub id. If the hub is dead, this process goes offline and uses its cache.

    Returns why the hub can't be reached, or "" if it can be or if HF_HUB_OFFLINE is set.
    The libraries would ask a dead hub six times for each file, in 23 s, and only then use the cache."""
    if constants.is_offline_mode():
        return ""
    seconds, answer = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 5), []

    def knock():  # 404 and the like also show that the hub is alive
        try:
            status = get_session().head(constants.ENDPOINT, timeout=seconds, follow_redirects=False).status_code
            answer.append(f"it answers {status}" if status in (500, 502, 503, 504) else "")
        except Exception as error:  # the network, a proxy or a certificate
            answer.append(_line(error))

    # Wait for a thread, because the time-out of a socket doesn't cover the DNS look-up and restarts for each address.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(seconds)
    reason = answer[0] if answer else f"no answer within {seconds:g} s"
    if reason:  # as if HF_HUB_OFFLINE=1 had been set from the start
        constants.HF_HUB_OFFLINE = True  # huggingface_hub and transformers look here
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # for child processes and later imports
        if "datasets" in sys.modules:  # has its own copy
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        say(f"the hub {constants.ENDPOINT} can't be reached ({reason}): only what is cached can be used")
    return reason


def has_file(repo: str, file: str) -> bool:
    """Whether a model, on the hub or in a local folder, has a file. A cached file counts.

    Raises OSError if the hub doesn't say (transformers' has_file() would return False)."""
    if os.path.isdir(repo):
        return os.path.isfile(os.path.join(repo, file))
    cached = try_to_load_from_cache(repo, file)
    if isinstance(cached, str):
        return True
    if constants.is_offline_mode() and cached is None:
        raise errors.LocalEntryNotFoundError(f"{file} is not cached")
    return cached is None and HfApi().file_exists(repo, file)


def show_downloads():
    """Show progress bars for downloads on rank 0, and no other bars of the libraries."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # also switches off the bars of huggingface_hub
    if os.environ.get("RANK", "0") != "0":
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    elif not constants.HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars()


def announce_download(repo: str):
    """Print one line before a model is downloaded, if there is no terminal and so no progress bar."""
    files = SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME
    cached = os.path.isdir(repo) or any(isinstance(try_to_load_from_cache(repo, file), str) for file in files)
    if not cached and not sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print(f"downloading the weights of {repo} to {constants.HF_HOME}", file=sys.stderr, flush=True)


UNREACHABLE = {"ConnectionError", "NetworkError", "TimeoutException", "ProxyError", "LocalEntryNotFoundError"}
VAGUE = ("An error occurred while generating", "Can't load the")  # the reason is in the error that led to this one


def why(error, repo: str, kind: str = "model") -> str:
    """One line: why a repository could not be loaded. error: any error of the libraries. kind: "model" or "dataset"."""
    chain = causes(error)
    names = {cls.__name__ for link in chain for cls in type(link).__mro__}
    text = "\n".join(map(str, chain))
    status = max((link.response.status_code for link in chain if isinstance(link, errors.HfHubHTTPError)), default=0)
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    if disk_is_full(error) or "enough disk space" in text:
        return f"the disk is full; make room, or set HF_HOME to a folder on another disk (now {constants.HF_HOME})"
    if "GatedRepoError" in names or "is a gated" in text:
        return f"it is gated; accept its licence at {page}, then `hf auth login` or set HF_TOKEN"
    if "trust_remote_code" in text:
        return "it needs code of its own, which is never run; give a model that transformers knows"
    if status == 401 and "Invalid credentials" in text:
        return "the hub refuses your token; `hf auth login` again, or set HF_TOKEN to one that is valid"
    if {"RepositoryNotFoundError", "DatasetNotFoundError"} & names:
        return "it is not on the hub, or it is private; check the name, or `hf auth login` or set HF_TOKEN"
    if status == 429:
        return "too many requests (429); try again later, or `hf auth login` or set HF_TOKEN, which allows more"
    if status >= 500:
        return f"the hub is out of order ({status}); try again later"
    if {"RemoteProtocolError", "ReadError", "ReadTimeout"} & names or "Consistency check failed" in text:
        return "the download was cut in the middle; try again, what is complete is kept"
    if "Couldn't find cache for" in text:  # offline, only other configs are cached
        return "; ".join(str(error).splitlines())
    if UNREACHABLE & names and constants.is_offline_mode() and not look_for_hub():
        return "it is not cached, and HF_HUB_OFFLINE is set; unset it and go online"
    if UNREACHABLE & names:
        return f"it is not cached, and {constants.ENDPOINT} can't be reached; go online"
    error = next((link for link in chain if not str(link).startswith(VAGUE)), error)
    return "its files differ in their columns" if type(error).__name__ == "CastError" else _line(error)


def _line(error) -> str:
    """The first line of an error. The class comes first, unless it is OSError or ValueError."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and type(error) in (OSError, ValueError):
        return lines[0]
    return ": ".join([type(error).__name__, *lines[:1]])


def split_name(name: str) -> tuple:
    """ID, ID:CONFIG, ID:CONFIG:SPLIT or ID::SPLIT -> (id, config or None, split or None)."""
    parts = name.split(":")
    if not parts[0] or len(parts) > 3:
        raise ValueError(f"{name!r} is not ID, ID:CONFIG, ID:CONFIG:SPLIT or ID::SPLIT")
    repo, config, split = [*parts, "", ""][:3]
    return repo, config or None, split or None


def choices(repo: str) -> list[str]:
    """The names that can be given for a data set on the hub, ID:CONFIG:SPLIT. [] if the hub doesn't say.

    With more than ten configs only ID:CONFIG, because the splits of a config take a second to look up."""
    import datasets  # here, because the import takes a second

    try:
        configs = datasets.get_dataset_config_names(repo)
        if len(configs) > 10:
            return [f"{repo}:{config}" for config in configs]
        return [f"{repo}:{config}:{split}" for config in configs
                for split in datasets.get_dataset_split_names(repo, config)]
    except Exception:  # the library has many kinds
        return []
