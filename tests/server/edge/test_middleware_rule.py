"""Middleware that hides disconnects must not come in by the back door."""

import ast

from tests.places import ROOT


def test_nobody_uses_starlette_s_http_middleware() -> None:
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = {alias.name for alias in node.names}
                assert "BaseHTTPMiddleware" not in names, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("middleware", "BaseHTTPMiddleware"), path
