"""scripts/peers/through_http.py with stand-ins for servers and AIPerf."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import httpx
import pytest

from scripts.peers.environments import PeerUnavailable
from scripts.peers.through_http import ROOT, aiperf, row, served

SERVER = """
import http.server, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""
AIPERF = """#!{python}
import json, pathlib, sys
given = dict(zip(sys.argv[1:], sys.argv[2:]))
assert len(pathlib.Path(given["--input-file"]).read_text().splitlines()) == 12
out = pathlib.Path(given["--artifact-dir"])
out.mkdir()
report = {{"output_token_throughput": {{"avg": float(given["--request-count"])}}, "time_to_first_token": {{"p50": 1.0, "p99": 2.5}}}}
(out / "profile_export_aiperf.json").write_text(json.dumps(report))
"""


def test_a_server_runs_while_it_is_asked(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with served([sys.executable, "-c", SERVER, str(port)], port, tmp_path / "log"):
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    with (
        pytest.raises(PeerUnavailable, match="does not serve: it is broken"),
        served([sys.executable, "-c", "import sys; sys.exit('it is broken')"], port, tmp_path / "log"),
    ):
        pass


def test_a_row_has_what_aiperf_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "aiperf"
    tool.write_text(AIPERF.format(python=sys.executable))
    tool.chmod(0o755)
    monkeypatch.setattr("scripts.peers.through_http.python_of", lambda work, name: tmp_path / "python")
    report = aiperf(tmp_path, 8000, 2, 7)
    assert row("resps", 2, report) == "| resps | 2 | 7 | 1, 2.5 | - | - | - |"
    assert json.loads((tmp_path / "mixed.jsonl").read_text().splitlines()[0])["text"] in (ROOT / "runtime/bench/mixed.jsonl").read_text()
    with pytest.raises(PeerUnavailable, match="AIPerf failed"):
        aiperf(tmp_path, 8000, 2, 7)  # its folder is there already, so the stand-in fails
