"""Middleware that hides disconnects must not come in by the back door."""

import ast
from pathlib import Path

SERVER = Path(__file__).resolve().parent.parent.parent / "server"


def test_nobody_uses_starlette_s_http_middleware() -> None:
    for path in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = {alias.name for alias in node.names}
                assert "BaseHTTPMiddleware" not in names, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("middleware", "BaseHTTPMiddleware"), path
