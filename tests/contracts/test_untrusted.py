"""What comes from outside is never executed: no pickle, no `trust_remote_code`, weights as tensors only.

Each exception is named with its reason; a new use has to be added here, which is where a reviewer looks.
"""

import ast
from pathlib import Path

import pytest

from tests.contracts.test_layout import PACKAGES, git, modules, relative
from tests.programs.places import REPOSITORY

PICKLE_MAY = {
    "training/worker/driver.py": "between our driver and our workers, within one cluster and its token",
    "training/worker/on_worker.py": "between our driver and our workers, within one cluster and its token",
    "infra/ray_session.py": "tasks to our own workers, within one cluster and its token",
    "infra/warm_process.py": "tasks to our own process on the embedded Ray, and what they return",
    "training/backends/local_workers.py": "answers of our own child processes, in a directory that only we can read",
    "model/weight_files.py": "names an exception; torch.load there has weights_only=True",
}
PICKLES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
CREDENTIALS = ("GOOGLE_APPLICATION_CREDENTIALS=", "PRIVATE KEY-----", "service_account.json", "AIza")


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Dotted names of what the file calls."""
    return [
        (ast.unparse(node.func), node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]


def test_pickle_is_used_only_between_our_own_processes() -> None:
    users = set()
    for path in modules(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module or "", *(alias.name for alias in node.names)}
            elif isinstance(node, ast.Attribute):
                names = {node.attr}
            else:
                continue
            if names & PICKLES:
                users.add(relative(path))
    assert users == set(PICKLE_MAY)


def test_torch_load_takes_tensors_only() -> None:
    loads = [
        (relative(path), node) for path in modules(*PACKAGES) for name, node in calls(path) if name == "torch.load"
    ]
    assert loads, "google's .ckpt"
    for path, node in loads:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert options.get("weights_only") == "True", path


@pytest.mark.parametrize("word", ["trust_remote_code", "allow_pickle=True", "shell=True", "os.system", "verify=False"])
def test_a_word_is_nowhere(word: str) -> None:
    assert [relative(path) for path in modules(*PACKAGES) if word in path.read_text()] == []


def test_nothing_is_evaluated_and_yaml_is_only_written() -> None:
    called = {(relative(path), name) for path in modules(*PACKAGES) for name, _ in calls(path)}
    assert {(path, name) for path, name in called if name in CALLS} == set()
    assert {name for _, name in called if name.startswith("yaml.")} == {"yaml.safe_dump_all"}
    assert {path for path, name in called if name.startswith(("np.load", "numpy.load"))} <= {"data/classifier.py"}


def test_no_tracked_file_holds_a_credential() -> None:
    names = [name for name in git("ls-files", "-z") if name != "tests/contracts/test_untrusted.py"]
    texts = {name: (REPOSITORY / name).read_text(errors="replace") for name in names if (REPOSITORY / name).exists()}
    assert [(name, word) for name, text in texts.items() for word in CREDENTIALS if word in text] == []


def test_every_server_of_ours_is_told_to_listen_on_loopback() -> None:
    """0.0.0.0 stands only where a pod's own network, behind its policy, is meant."""
    open_to_all = [relative(path) for path in modules(*PACKAGES) if "0.0.0.0" in path.read_text()]
    assert open_to_all == ["infra/kubernetes.py"]
