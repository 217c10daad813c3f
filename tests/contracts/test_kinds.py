"""No code but a kind's own decides by the name of a kind of cached distribution."""

import ast
from collections.abc import Iterator

from tests.contracts.test_layout import PACKAGES, modules, relative
from training.distill.kinds import KINDS

OWN = ("training/distill/kinds/", "pipelines/recipes/", "pipelines/study/")
"""where the names of kinds may stand: their own files, and those that choose one"""
OF_KINDS = ("data/", "training/distill/", "training/loss", "pipelines/stages/cache_", "pipelines/stages/audit_")
"""where "full" is always a kind; elsewhere it may be a value of `--remat`"""


def decisions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each kind in a comparison, a case, an argument `estimator`, or a table of several kinds."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare() | ast.MatchValue() | ast.keyword(arg="estimator"):
                least = 1
            case ast.Dict() | ast.Subscript(value=ast.Name(id="Literal")):
                least = 2  # one name may be that of a column
            case _:
                continue
        parts = node.keys if isinstance(node, ast.Dict) else list(ast.walk(node))
        named = [part for part in parts if isinstance(part, ast.Constant) and part.value in KINDS]
        if len(named) >= least:
            yield from ((part.lineno, str(part.value)) for part in named)


def test_no_code_decides_by_the_name_of_a_kind() -> None:
    wrong = [
        f"{relative(path)}:{line}: {name!r}"
        for path in modules(*PACKAGES)
        if not relative(path).startswith(OWN)
        for line, name in decisions(ast.parse(path.read_text()))
        if name != "full" or relative(path).startswith(OF_KINDS)
    ]
    assert wrong == []


def test_a_decision_by_the_name_of_a_kind_is_seen() -> None:
    for code in (
        'if spec.estimator == "sample": pass',
        'if name in ("best", "topk"): pass',
        'LOSSES = {"topk": loss, "sample": other}',
        'CodecSpec(estimator="topk")',
        'match kind:\n    case "full": pass',
        'name: Literal["sample", "topk"]',
    ):
        assert list(decisions(ast.parse(code))), code
