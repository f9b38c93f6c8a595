"""The script that runs clients in environments of their own: what of it needs no package index."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from book.tools import try_clients
from book.tools.try_clients import CLIENTS, PROGRAMS, Client, main, try_client


def test_every_client_has_a_program_and_the_other_way_round() -> None:
    found = {path.name for path in PROGRAMS.glob("*.py")}
    assert found == {client.program for client in CLIENTS.values()}
    for name in found:
        ast.parse((PROGRAMS / name).read_text())


def test_unknown_names_are_refused(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["try_clients.py", "--only", "openai,curl"])
    with pytest.raises(SystemExit):
        main()
    assert "got curl" in capsys.readouterr().err


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    """Environments without packages, and no pip: this interpreter stands in for them."""
    (tmp_path / "x" / "bin").mkdir(parents=True)
    (tmp_path / "x" / "bin" / "python").symlink_to(sys.executable)
    run = try_clients._run
    monkeypatch.setattr(
        try_clients, "_run", lambda command: "" if "pip" in command else run(command)
    )
    monkeypatch.setattr(try_clients, "PROGRAMS", tmp_path)
    monkeypatch.setattr(try_clients, "_VERSION", "print('1.0 of {}')")
    return tmp_path


def test_a_client_that_fails_is_reported_with_its_output(nothing_installed, capsys) -> None:
    client = Client("program.py", ("x",))
    (nothing_installed / "program.py").write_text("print('before'); raise SystemExit('broken')")
    assert not try_client("x", client, "http://127.0.0.1:1", nothing_installed)
    assert "x: FAILED\nbefore\nbroken" in capsys.readouterr().out


def test_a_client_gets_the_url_and_the_model(nothing_installed, capsys, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "elsewhere")
    (nothing_installed / "program.py").write_text(
        "import os, sys; assert 'OPENAI_BASE_URL' not in os.environ; print(*sys.argv[1:])"
    )
    assert try_client("x", Client("program.py", ("x",)), "http://here", nothing_installed)
    assert "x 1.0 of x: http://here smollm2" in capsys.readouterr().out


def test_the_openai_program_notices_a_server_that_answers_wrongly() -> None:
    class Wrong(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": []}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Wrong) as wrong:
        thread = threading.Thread(target=wrong.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{wrong.server_port}"
            program = [sys.executable, PROGRAMS / "openai_client.py", url, "m"]
            done = subprocess.run(program, capture_output=True, timeout=120)
        finally:
            wrong.shutdown()
            thread.join()
    assert done.returncode != 0
