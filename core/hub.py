"""The hub that models and data sets come from: whether it can be reached, and in one line what went wrong."""

import errno
import functools
import os
import sys
import threading

from huggingface_hub import HfApi, constants, errors, get_session, try_to_load_from_cache
from huggingface_hub.utils import enable_progress_bars
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from core.processes import say


# ------------------------------------------------------------------------------------------------ a dead hub
@functools.cache
def look_for_hub() -> str:
    """Call this before the first access to a hub id. If the hub is dead, this process goes offline: it uses what is
    cached and asks no more. Returns why the hub can't be reached, or "" if it can or if HF_HUB_OFFLINE is set.

    Without this the libraries ask a dead hub six times for each file, which takes 23 s, before they use the cache."""
    if constants.is_offline_mode():
        return ""
    seconds, answer = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 5), []

    def knock():  # at the front page; an error of the 400s is a sign of life, too
        try:
            status = get_session().head(constants.ENDPOINT, timeout=seconds, follow_redirects=False).status_code
            answer.append(f"it answers {status}" if status in (500, 502, 503, 504) else "")
        except Exception as error:  # of the network, a proxy, a certificate
            answer.append(_line(error))

    # In a thread: the time-out of a socket does not count the look-up of the name, and starts anew for each address.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(seconds)
    reason = answer[0] if answer else f"no answer within {seconds:g} s"
    if reason:  # do what HF_HUB_OFFLINE=1 would have done before the libraries were imported
        constants.HF_HUB_OFFLINE = True  # is_offline_mode() reads it, which huggingface_hub and transformers ask
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # for child processes and later imports
        if "datasets" in sys.modules:  # it made a copy when it was imported
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        say(f"the hub {constants.ENDPOINT} can't be reached ({reason}): only what is cached can be used")
    return reason


def has_file(repo: str, file: str) -> bool:
    """Whether a model, on the hub or in a local folder, has a file. A cached file counts. Raises OSError if that can't
    be found out, where transformers' has_file() would say False."""
    cached = try_to_load_from_cache(repo, file) if not os.path.isdir(repo) else os.path.join(repo, file)
    if isinstance(cached, str):
        return os.path.isfile(cached)
    if constants.is_offline_mode() and cached is None:
        raise errors.LocalEntryNotFoundError(f"{file} is not cached")
    return cached is None and HfApi().file_exists(repo, file)


def show_downloads():
    """Bars for downloads, on rank 0 alone, and none for what takes a second, such as loading weights."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # this also disables those of huggingface_hub
    if os.environ.get("RANK", "0") != "0":
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    elif not constants.HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars()


def announce_download(repo: str):
    """Without a terminal, where there are no bars: one line before the weights of a model are downloaded."""
    files = SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME
    cached = os.path.isdir(repo) or any(isinstance(try_to_load_from_cache(repo, file), str) for file in files)
    if not cached and not sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print(f"downloading the weights of {repo} to {constants.HF_HOME}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ what went wrong
UNREACHABLE = {"ConnectionError", "NetworkError", "TimeoutException", "ProxyError", "LocalEntryNotFoundError"}
VAGUE = ("An error occurred while generating", "Can't load the")  # they hide the reason, which is further down


def why(error, repo: str, kind: str = "model") -> str:
    """Why a repository (kind: "model" or "dataset") could not be loaded: one line, from any error of the libraries."""
    chain = _chain(error)
    names = {cls.__name__ for link in chain for cls in type(link).__mro__}
    text = "\n".join(map(str, chain))
    status = max((link.response.status_code for link in chain if isinstance(link, errors.HfHubHTTPError)), default=0)
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    if {errno.ENOSPC, errno.EDQUOT} & {getattr(link, "errno", None) for link in chain} or "enough disk space" in text:
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
    if "Couldn't find cache for" in text:  # offline, and this config is not there, but others are
        return "; ".join(str(error).splitlines())
    if UNREACHABLE & names and constants.is_offline_mode() and not look_for_hub():
        return "it is not cached, and HF_HUB_OFFLINE is set; unset it and go online"
    if UNREACHABLE & names:
        return f"it is not cached, and {constants.ENDPOINT} can't be reached; go online"
    error = next((link for link in chain if not str(link).startswith(VAGUE)), error)
    return "its files differ in their columns" if type(error).__name__ == "CastError" else _line(error)


def _chain(error, found=()) -> list:
    """The error and all that led to it, those that `from None` hides included."""
    if error is None or error in found:
        return list(found)
    return _chain(error.__context__, _chain(error.__cause__, [*found, error]))


def _line(error) -> str:
    """The first line of an error, with its class where that tells something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and type(error) in (OSError, ValueError):
        return lines[0]
    return ": ".join([type(error).__name__, *lines[:1]])


# ------------------------------------------------------------------------------------------------ names of data sets
def split_name(name: str) -> tuple:
    """ID, ID:CONFIG, ID:CONFIG:SPLIT or ID::SPLIT -> (id, config or None, split or None)."""
    parts = name.split(":")
    if not parts[0] or len(parts) > 3:
        raise ValueError(f"{name!r} is not ID, ID:CONFIG, ID:CONFIG:SPLIT or ID::SPLIT")
    repo, config, split = [*parts, "", ""][:3]
    return repo, config or None, split or None


def choices(repo: str, token=None) -> list[str]:
    """The names that can be given for a data set on the hub: ID:CONFIG:SPLIT, or ID:CONFIG above ten configs (each
    takes a second to look up). [] if that can't be found out."""
    import datasets  # here, because the import takes a second

    try:
        configs = datasets.get_dataset_config_names(repo, token=token)
        if len(configs) > 10:
            return [f"{repo}:{config}" for config in configs]
        return [f"{repo}:{config}:{split}" for config in configs
                for split in datasets.get_dataset_split_names(repo, config, token=token)]
    except Exception:  # the library has many kinds
        return []
