"""A digest of the code that a stage depends on: `plan` uses it to warn that code changed and VERSION did not."""

import ast
import functools
import hashlib
from pathlib import Path

from infra.ray_session import REPOSITORY
from pipelines.engine.stage import Stage

CODE_PREFIXES = ("data", "model", "training", "pipelines.checkpoints.loaded", "pipelines.checkpoints.model_card")
"""modules that decide what a stage makes; other modules of pipelines/ decide when and where it runs"""
DECLARED = {"pipelines/checkpoints/model_card.py": "pipelines/checkpoints/card_sections.py"}
"""file -> file that it uses without an import, through the declarations of stages"""


def code_sha256(stage: Stage) -> str:
    """The digest of the stage's file and of the project's modules that it imports, directly or indirectly."""
    sources = {Path(stage.module.__file__ or "")}
    unread = list(sources)
    while unread:
        for path in _imported(unread.pop(), REPOSITORY) - sources:
            sources.add(path)
            unread.append(path)
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _imported(source: Path, repository: Path) -> frozenset[Path]:
    """Files of the project that `source` imports (in functions too) or uses through the declarations of stages."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = [repository / name.replace(".", "/") for name in names if name.startswith(CODE_PREFIXES)]
    candidates = [path for module in ours for path in (module.with_suffix(".py"), module / "__init__.py")]
    candidates += [repository / used for file, used in DECLARED.items() if repository / file == source]
    return frozenset(path for path in candidates if path.exists())
