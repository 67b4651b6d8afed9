"""The Tiltfile is Starlark, and agrees with the base and the images."""

import ast
from typing import Any

from tests.deploy.reading import ROOT, SERVICES, STAGES, TARGETS, containers, port_of

STARLARK = (
    *(
        ast.FunctionDef,
        ast.If,
        ast.For,
        ast.Return,
        ast.Assign,
        ast.AugAssign,
        ast.Expr,
        ast.Pass,
        ast.Break,
        ast.Continue,
    ),
)
"""Statements that Starlark has; `if` and `for` only inside a function."""
NOT_STARLARK = (
    ast.JoinedStr,
    ast.Set,
    ast.SetComp,
    ast.GeneratorExp,
    ast.Await,
    ast.Yield,
    ast.NamedExpr,
    ast.Is,
    ast.IsNot,
)


def tilt() -> ast.Module:
    return ast.parse((ROOT / "Tiltfile").read_text())


def calls(name: str) -> list[tuple[list[Any], dict[str, Any]]]:
    """Calls of a function at the top level, with literal arguments; an expression as its source."""
    found = []
    for statement in tilt().body:
        if (
            isinstance(statement, ast.Expr)
            and isinstance(call := statement.value, ast.Call)
            and ast.unparse(call.func) == name
        ):
            arguments = {keyword.arg or "": value(keyword.value) for keyword in call.keywords}
            found.append(([value(argument) for argument in call.args], arguments))
    return found


def value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def test_the_tiltfile_is_short_and_starlark() -> None:
    assert len((ROOT / "Tiltfile").read_text().splitlines()) < 120
    for node in ast.walk(tilt()):
        assert not isinstance(node, NOT_STARLARK), ast.unparse(node)
        if isinstance(node, ast.stmt):
            assert isinstance(node, STARLARK), ast.unparse(node)
    assert not any(isinstance(statement, ast.If | ast.For) for statement in tilt().body)


def test_the_tiltfile_serves_every_service_from_its_target_on_its_port() -> None:
    services = {positional[0]: named for positional, named in calls("service")}
    assert set(services) == set(SERVICES)
    images = {name: container["image"] for name, _, container in containers()}
    for name, named in services.items():
        assert images[name] == f"headrace/{named.get('image', name)}"
        assert named["port_forwards"] == [f"{port_of(name)}:{port_of(name)}"]
        assert named["label"]
        for path in named.get("build_files", []):
            assert (ROOT / path).is_file()
    assert services["inference"]["target"] == "'inference-' + engine()"
    assert {"inference-echo", "inference-cpu"} <= TARGETS.keys()


def test_the_tiltfile_syncs_code_to_where_the_image_has_it() -> None:
    (service,) = (s for s in tilt().body if isinstance(s, ast.FunctionDef) and s.name == "service")
    source = ast.unparse(service)
    assert "fall_back_on(['pyproject.toml'])" in source
    assert "sync('services/' + name, '/app/services/' + name)" in source
    assert "sync('shared', '/app/shared')" in source
    assert (ROOT / "deploy" / "Dockerfile").read_text().count("\nWORKDIR /app\n") == 1
    assert STAGES["base"].env["PYTHONPATH"] == "/app"
