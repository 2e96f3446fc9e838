"""Uploading to a stand-in for the Hugging Face hub that answers as its HTTP interface does."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from runs import run, small

from dgpo import UserError
from dgpo.run.hub import push, require_login

pytestmark = pytest.mark.slow


class Hub(BaseHTTPRequestHandler):
    """Takes a repository and one commit into it."""

    made: dict[str, Any]
    files: dict[str, bytes]
    broken = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Authorization"] == "Bearer hf_test"
        if self.broken:
            return self._answer({"error": "no room"}, 507)
        if self.path == "/api/repos/create":
            type(self).made = json.loads(body)
            return self._answer({"url": f"http://{self.headers['Host']}/me/model", "id": "me/model"})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self._answer({"files": modes})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        assert self.path == "/api/models/me/model/commit/main"
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        oid = "1" * 40
        return self._answer({"commitUrl": f"http://{self.headers['Host']}/me/model/commit/{oid}", "commitOid": oid})

    def do_GET(self) -> None:
        self._answer({})

    def _answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    handler: Any = type("Handler", (Hub,), {"made": {}, "files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield handler
    server.shutdown()
    server.server_close()


def test_a_finished_run_is_uploaded_as_it_lies(hub: Any, tiny_folder: Path, tmp_path: Path) -> None:
    result = run(small(tiny_folder, tmp_path / "run", iterations=1, push_to_hub="me/model"))
    assert (hub.made["organization"], hub.made["name"], hub.made["visibility"]) == ("me", "model", "private")
    own = {str(p.relative_to(result.run / "final")): p.read_bytes() for p in (result.run / "final").rglob("*.*")}
    assert own.keys() >= {"README.md", "pytorch_lora_weights.safetensors"}
    assert hub.files == own


def test_a_failed_upload_loses_nothing_and_says_how_to_go_on(hub: Any, tiny_folder: Path, tmp_path: Path) -> None:
    hub.broken = True
    with pytest.raises(UserError, match=r"(?s)upload to me/model failed: .*Nothing is lost.*hf upload me/model"):
        run(small(tiny_folder, tmp_path / "run", iterations=1, push_to_hub="me/model"))
    assert (tmp_path / "run" / "final" / "pytorch_lora_weights.safetensors").is_file()
    hub.broken = False
    assert push(tmp_path / "run" / "final", "me/model", private=False).endswith("/me/model")
    assert hub.made["visibility"] == "public"


def test_without_a_token_or_a_proper_name_nothing_starts(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=r"needs a Hugging Face token: log in"):
        run(small(tiny_folder, tmp_path / "run", push_to_hub="me/model"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="is no repository name"):
        require_login("me/too/many")
