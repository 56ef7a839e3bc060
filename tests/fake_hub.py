"""A hub on this machine, for tests without a network: it answers what huggingface_hub, transformers and datasets ask,
and misbehaves when a test says so.

    hub = FakeHub(folder)                               serves folder/models/OWNER/NAME and folder/datasets/OWNER/NAME
    hub.faults["openai/gsm8k"] = dict(gated=True)       what is wrong with one repository; "" stands for all
    hub.requests                                        (method, path, status) of all that was asked
    hub.stop()                                          from now on nobody answers

Faults: gated=True; status=503 for every request; delay=SECONDS before each answer; cut=BYTES, after which the
connection breaks while a file is sent, times=1: of each file once; only="TEXT": for paths with this text in them."""

import hashlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

BIG = (".safetensors", ".parquet")  # the hub keeps these elsewhere and redirects to them
TIME = "2025-01-01T00:00:00.000Z"


class Refused(Exception):
    """An answer that is an error: status, X-Error-Code, message, and further headers."""

    def __init__(self, status: int, code: str, message: str, **headers):
        super().__init__(message)
        self.status, self.headers = status, dict(X_Error_Code=code, X_Error_Message=message, **headers)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Repository:
    """A folder. It has one revision, main, whose commit is a hash of the files."""

    def __init__(self, root: Path, kind: str, name: str):
        self.kind, self.name, self.folder = kind, name, root / kind / name
        if not self.folder.is_dir():  # the hub says the same of a private one
            raise Refused(401, "RepoNotFound", "Invalid username or password.")
        self.files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        self.commit = hashlib.sha1("".join(map(digest, self.files)).encode()).hexdigest()

    def entry(self, path: Path) -> dict:
        """A file or a folder, as in the answers to tree and paths-info."""
        name = path.relative_to(self.folder).as_posix()
        if path.is_dir():
            return dict(type="directory", path=name, size=0, oid=hashlib.sha1(name.encode()).hexdigest())
        oid, size = digest(path), path.stat().st_size
        elsewhere = dict(lfs=dict(oid=oid, size=size, pointerSize=130)) if path.suffix in BIG else {}
        return dict(type="file", path=name, size=size, oid=oid[:40], **elsewhere)

    def ask(self, what: str = "", revision: str = "main", *below: str, query=(), body=b""):
        """The answer to GET or POST /api/KIND/NAME/WHAT/REVISION/BELOW."""
        if revision not in ("main", self.commit):
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if what in ("", "revision"):
            names = [dict(rfilename=path.relative_to(self.folder).as_posix()) for path in self.files]
            flags = dict.fromkeys(["private", "gated", "disabled"], False)
            return dict(id=self.name, sha=self.commit, siblings=names, tags=[], lastModified=TIME, **flags)
        if what == "tree":
            top = self.folder.joinpath(*below)
            if not top.is_dir():
                raise Refused(404, "EntryNotFound", f"{'/'.join(below)} does not exist")
            return [self.entry(path) for path in sorted(top.rglob("*") if "true" in query else top.iterdir())]
        if what == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            return [self.entry(self.folder / name) for name in wanted if (self.folder / name).exists()]
        raise Refused(404, "", f"this hub does not know {what}")


class Visit(BaseHTTPRequestHandler):
    """A connection, and what it is asked for."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    log_message = lambda self, *args: None

    def do_GET(self):
        url, body = urlsplit(self.path), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        query = parse_qs(url.query).get("recursive", [""])[0].lower()
        self.close_connection |= self.server.hub.down
        try:
            if not self.close_connection:
                self.serve(self.server.hub, [unquote(part) for part in url.path.strip("/").split("/")], query, body)
        except Refused as error:
            self.answer(error.status, json.dumps(dict(error=str(error))).encode(), **error.headers)
        except ConnectionError:  # the other side has gone
            self.close_connection = True

    do_HEAD = do_POST = do_GET

    def serve(self, hub, parts: list[str], query: str, body: bytes):
        front = parts.pop(0) if parts[0] in ("api", "elsewhere") else ""
        kind = parts.pop(0) if parts[:1] in (["models"], ["datasets"]) else "models"
        name, rest = "/".join(parts[:2]), parts[2:]
        faults = hub.faults.get("", {}) | hub.faults.get(name, {})
        faults = faults if faults.get("only", "") in self.path else {}
        time.sleep(faults.get("delay", 0))
        if "status" in faults:
            raise Refused(faults["status"], "", "as the test asks")
        if not name:
            return self.answer(200, b"the front page")
        repo = Repository(hub.root, kind, name)
        if front == "api":
            return self.answer(200, json.dumps(repo.ask(*rest, query=query, body=body)).encode())
        if len(rest) < 3 or rest[0] != "resolve":
            raise Refused(404, "", "no such page")
        repo.ask("revision", rest[1])
        self.send_file(hub, repo, "/".join(rest[2:]), faults, redirect=front != "elsewhere")

    def send_file(self, hub, repo: Repository, name: str, faults: dict, redirect: bool):
        file = repo.folder / name
        if faults.get("gated"):
            known = "Authorization" in self.headers
            raise Refused(403 if known else 401, "GatedRepo", f"Access to {repo.name} is restricted.")
        if not file.is_file():
            raise Refused(404, "EntryNotFound", "Entry not found", X_Repo_Commit=repo.commit)
        data, status, tag = file.read_bytes(), 200, f'"{digest(file)}"'
        about = dict(ETag=tag, X_Repo_Commit=repo.commit, Accept_Ranges="bytes")
        if redirect and file.suffix in BIG:
            there = f"{hub.url}/elsewhere/{repo.kind}/{repo.name}/resolve/{repo.commit}/{name}"
            return self.answer(302, Location=there, X_Linked_ETag=tag, X_Linked_Size=len(data), **about)
        if "Range" in self.headers:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            about["Content_Range"] = f"bytes {first}-{last or len(data) - 1}/{len(data)}"
            data, status = data[int(first) : int(last) + 1 if last else None], 206
        about["Content_Length"] = len(data)
        if faults.get("cut", len(data)) < len(data) and self.command == "GET":
            hub.cuts[file] += 1
            if hub.cuts[file] <= faults.get("times", hub.cuts[file]):
                data, self.close_connection = data[: faults["cut"]], True
        self.answer(status, data, **about)

    def answer(self, status: int, body: bytes = b"", **headers):
        self.server.hub.requests.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in (dict(Content_Length=len(body)) | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class FakeHub:
    def __init__(self, root: Path):
        self.root, self.faults, self.requests, self.cuts, self.down = Path(root), {}, [], Counter(), False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Visit)
        self.server.hub, self.server.daemon_threads = self, True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.down = True  # for the connections that are open
        self.server.shutdown()
        self.server.server_close()


# ------------------------------------------------------------------------------------------------ what is on it
def add_models(root: Path, names, folder: Path):
    """The model in `folder` under each of these ids."""
    for name in names:
        (root / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "models" / name).symlink_to(folder)


ONE, TWO = {"train": 1}, {"train": 1, "test": 1}
SUBJECTS = "algebra counting_and_probability geometry intermediate_algebra number_theory prealgebra precalculus".split()
# The data sets of core.data.DATA as they are on the hub: their columns ("answer=float" is row()'s float, here named
# answer), and either the one file that somebody uploaded, or what push_to_hub made: {config: {split: number of files}}.
DATA_SETS = {
    "openai/gsm8k": ("question answer=steps", dict(main=TWO, socratic=TWO)),
    "DigitalLearningGmbH/MATH-lighteval": ("problem level=Level solution type",
                                           dict.fromkeys([*SUBJECTS[:2], "default", *SUBJECTS[2:]], TWO)),
    "ScaleML-RLHF/numina_math": ("problem answer", dict(default=ONE)),
    "AI-MO/NuminaMath-CoT": ("source problem solution messages", dict(default={"train": 5, "test": 1})),
    "agentica-org/DeepScaleR-Preview-Dataset": ("problem answer solution", "deepscaler.json"),
    "BytedTsinghua-SIA/DAPO-Math-17k": ("data_source prompt ability reward_model extra_info",
                                        "data/dapo-math-17k.parquet"),
    "HuggingFaceH4/MATH-500": ("problem solution answer subject level unique_id", "test.jsonl"),
    "HuggingFaceH4/aime_2024": ("id problem solution answer url year", dict(default=ONE)),
    "yentinglin/aime_2025": ("id problem answer solution=empty url year", dict(default=ONE)),
    "knoveleng/AMC-23": ("id problem answer=float url", dict(default=ONE)),
    "knoveleng/Minerva-Math": ("problem solution type idx", dict(default=ONE)),
    "knoveleng/OlympiadBench": ("question answer=dollars", dict(default=ONE)),
}


def row(file: str, i: int) -> dict:
    """All columns that a data set may have. The problem names its file; the answer is i + 40."""
    problem, total, url = f"{file}: what is {i} + 40?", i + 40, "https://example.org"
    solution, order = f"{i} and 40 make $\\boxed{{{total}}}$.", "Put the answer on a line of its own.\n\n"
    return dict(problem=problem, question=problem, answer=str(total), float=float(total), dollars=f"${total}$", id=i,
                solution=solution, steps=f"{i} + 40 = <<{i}+40={total}>>{total}\n#### {total}", empty="", url=url,
                idx=i, unique_id=f"test/algebra/{i}.json", level=1, Level="Level 1", subject="Algebra", type="Algebra",
                year="2024", source="cn_k12", data_source="math_dapo", ability="MATH",
                messages=[dict(content=problem, role="user"), dict(content=solution, role="assistant")],
                prompt=[dict(content=order + problem, role="user")], extra_info=dict(index=f"{i:08x}-a46d"),
                reward_model=dict(ground_truth=str(total), style="rule-lighteval/MATH_v2"))


def add_data(root: Path, name: str, columns: str, layout, rows: int = 2):
    """A data set, see DATA_SETS, with so many rows in each file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files, configs, infos = [layout] if isinstance(layout, str) else [], [], []
    for config, splits in {} if files else layout.items():
        top = "data" if config == "default" else config
        files += [f"{top}/{split}-{k:05}-of-{n:05}.parquet" for split, n in splits.items() for k in range(n)]
        paths = [dict(split=split, path=f"{top}/{split}-*") for split in splits]
        configs.append(dict(config_name=config, data_files=paths) | (dict(default=True) if top == "data" else {}))
        sizes = [dict(name=split, num_bytes=1, num_examples=n * rows) for split, n in splits.items()]
        infos.append(dict(config_name=config, splits=sizes, download_size=1, dataset_size=1))
    pairs = [(column.split("=")[0], column.split("=")[-1]) for column in columns.split()]
    for file in files:
        path = root / "datasets" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        table = [{column: row(f"{name}/{file}", i)[source] for column, source in pairs} for i in range(rows)]
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(table), path)
        else:
            path.write_text("\n".join(map(json.dumps, table)) if path.suffix == ".jsonl" else json.dumps(table))
    card = dict(configs=configs, dataset_info=infos[0] if len(infos) == 1 else infos) if infos else dict(license="mit")
    (root / "datasets" / name / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")  # JSON is YAML, too
