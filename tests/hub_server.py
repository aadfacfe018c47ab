"""A hub of models on this machine, as `huggingface_hub` asks it."""

import hashlib
import http.server
import json
import os
import pathlib
import sys
import threading
import unittest
import urllib.parse
from unittest import mock

from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.lm.pretrained.load import Pretrained, save_pretrained
from gradmem_jax.memory.gradmem import GradMem, GradMemConfig
from gradmem_jax.tokenizers.text_tokenizer import word_tokenizer

FIRST, SECOND = "1" * 40, "2" * 40  # commits


def save_model(folder, seed=0):
    """Writes a tiny language model of words."""
    import jax

    tokenizer = word_tokenizer(["Mary went to the garden . Where is Mary ?"])
    lm = LlamaConfig(
        vocab_size=tokenizer.vocab_size, width=8, num_layers=1, num_heads=2, max_positions=64
    )
    params = GradMem(GradMemConfig(lm=lm)).init(jax.random.key(seed))
    save_pretrained(folder, Pretrained(lm, params["lm"], tokenizer))


class Hub:
    """What a hub has, and what it was asked for.

    Attributes:
        commits: folders by repository and commit.
        refs: commits by repository and branch or tag.
        gated: repositories that need the token "secret".
        sizes: what it says of sizes of files, if that is not true.
        asked: methods and paths.
    """

    def __init__(self):
        self.commits, self.refs, self.gated, self.sizes, self.asked = {}, {}, set(), {}, []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def publish(self, repository, commit, folder, *refs):
        self.commits[repository, commit] = pathlib.Path(folder)
        for ref in ("main", *refs):
            self.refs[repository, ref] = commit

    def fetched(self):
        """Files that were sent, and forgets what it was asked."""
        asked, self.asked = self.asked, []
        return sorted(p.rpartition("/")[2] for m, p in asked if m == "GET" and "/resolve/" in p)

    def handler(hub):
        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.do_GET()

            def answer(self, status, content=b"", size=None, **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(content) if size is None else size))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def do_GET(self):
                path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
                hub.asked.append((self.command, path))
                is_api = path.startswith("/api/models/")
                owner, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
                repository, verb = f"{owner}/{name}", rest.pop(0) if rest else "revision"
                revision, file = (rest or ["main"])[0], "/".join(rest[1:])
                if not any(repository == known for known, _ in hub.commits):
                    return self.answer(404, X_Error_Code="RepoNotFound")
                if repository in hub.gated and "secret" not in str(self.headers["Authorization"]):
                    return self.answer(403, X_Error_Code="GatedRepo")
                commit = hub.refs.get((repository, revision), revision)
                folder = hub.commits.get((repository, commit))
                if folder is None:
                    return self.answer(404, X_Error_Code="RevisionNotFound")
                if is_api:
                    files = [x.name for x in folder.iterdir()]
                    described = {"id": repository, "sha": commit}
                    described["siblings"] = [{"rfilename": x} for x in files]
                    tree = [{"type": "file", "path": x, "size": 1, "oid": "0"} for x in files]
                    return self.answer(
                        200, json.dumps(tree if verb == "tree" else described).encode()
                    )
                if not (folder / file).is_file():
                    return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                content = (folder / file).read_bytes()
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                size = hub.sizes.get(file)
                return self.answer(200, content, size, X_Repo_Commit=commit, ETag=etag)

        return Handler


class HubTest(unittest.TestCase):
    """Base of tests with a hub whose users have a cache and no token."""

    def start_hub(self, cache):
        try:
            import huggingface_hub  # noqa: F401
        except ImportError as error:
            raise unittest.SkipTest("huggingface_hub is not installed") from error
        self.hub = Hub()
        self.addCleanup(self.hub.close)
        kept = {name: module for name, module in sys.modules.items() if _is_of_hub(name)}
        self.addCleanup(sys.modules.update, kept)
        self.addCleanup(_forget_modules)
        self.environment = {"HF_ENDPOINT": self.hub.address, "HF_HOME": os.fspath(cache)}
        self.environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        self.set_environment()

    def set_environment(self, **more):
        """Sets variables, which `huggingface_hub` reads when it is imported."""
        _forget_modules()
        others = {n: x for n, x in os.environ.items() if not n.startswith(("HF_", "HUGGING"))}
        patch = mock.patch.dict(os.environ, others | self.environment | more, clear=True)
        patch.start()
        self.addCleanup(patch.stop)


def _forget_modules():
    for name in [*filter(_is_of_hub, sys.modules)]:
        del sys.modules[name]


def _is_of_hub(name):
    return name.partition(".")[0] == "huggingface_hub"
