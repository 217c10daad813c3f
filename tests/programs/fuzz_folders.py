"""Hostile Hugging Face directories: wrong keys and values, weight maps, tensors and tokenizers, imported one by one."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from data.hf_tokenizer import MODEL_FILE
from model import save_hf
from model.hf_weights import INDEX_FILE
from pipelines.engine.errors import exit_code
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, resolve_inputs
from tests.programs.fuzz_runs import IMPORTED, MODEL
from tests.programs.in_process import InProcess
from tests.programs.reference import lively_model

CONFIG_FILE = "config.json"
TRIES = 150
"""directories of each kind"""
VALUES: tuple[Any, ...] = (
    None, True, False, "", "x", "2", -1, 0, 1, 2, 3, 2.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), 2**31, 10**9,
    10**40, [], [1], ["x"], {}, {"x": 1}, "x" * 10_000, "\x1b[31m",
)  # fmt: skip
"""values that a key gets"""
NEW_KEYS = ("num_experts", "rope_scaling", "rope_parameters", "layer_types", "quantization_config", "sliding_window ",
            "query_scale", "partial_rotary_factor", "auto_map", "\x1b[31m", "")  # fmt: skip
WHOLE = (b"", b"[]", b"3", b"null", b"\xff\xfe", b"{" * 100_000, b"[" * 100_000, b'{"model_type": "gemma2"', b"\0" * 99)
"""contents of a whole JSON file"""
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int32, torch.bool, torch.float8_e4m3fn,
          torch.complex64)  # fmt: skip
Change = Callable[[Path, random.Random], str]
"""changes a directory, and returns what names the change in an error"""


def change_config(folder: Path, draw: random.Random) -> str:
    path = folder / CONFIG_FILE
    stored = json.loads(path.read_bytes())
    kind = draw.randrange(8)
    if kind == 0:
        path.write_bytes(draw.choice(WHOLE))
        return CONFIG_FILE
    if kind == 1:
        del stored[draw.choice(sorted(stored))]
    elif kind == 2:
        stored[draw.choice(NEW_KEYS)] = draw.choice(VALUES)
    elif kind == 3:
        name = draw.choice(("rope_parameters", "rope_scaling"))
        stored[name] = {draw.choice(("rope_type", "type", "rope_theta", "factor", "local")): draw.choice(VALUES)}
    else:
        stored[draw.choice(sorted(stored))] = draw.choice(VALUES)
    path.write_text(json.dumps(stored))
    return str(folder)  # or a key, or tensors that do not fit


def change_weight_map(folder: Path, draw: random.Random) -> str:
    path = folder / INDEX_FILE
    index = json.loads(path.read_bytes())
    names, files = sorted(index["weight_map"]), sorted(set(index["weight_map"].values()))
    wrong = [*VALUES, "../model.safetensors", "/etc/passwd", "none.safetensors", CONFIG_FILE, ".", "..", "a\0b", *files]
    kind = draw.randrange(6)
    if kind == 0:
        path.write_bytes(draw.choice(WHOLE))
        return INDEX_FILE
    if kind == 1:
        index["weight_map"] = draw.choice(VALUES)
    elif kind == 2:
        del index["weight_map"][draw.choice(names)]
    elif kind == 3:
        index["weight_map"][draw.choice(("x", "", "lm_head.weight", "\x1b[31m"))] = draw.choice(files)
    elif kind == 4:
        (folder / draw.choice(files)).unlink()
    else:
        index["weight_map"][draw.choice(names)] = draw.choice(wrong)
    path.write_text(json.dumps(index))
    return str(folder)


def change_tensor(folder: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(folder.glob("*.safetensors")))
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    kind = draw.randrange(9)
    if kind == 0:
        tensors[name] = tensor.to(draw.choice(DTYPES))
    elif kind == 1:
        tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice((float("nan"), float("inf"), float("-inf")))
    elif kind == 2:
        tensors[name] = tensor.reshape(*tensor.shape[::-1]).contiguous()
    elif kind == 3:
        tensors[name] = draw.choice((torch.zeros(()), torch.zeros(0), tensor[:1].clone(), tensor[None].clone()))
    elif kind == 4:
        del tensors[name]
    elif kind == 5:
        tensors[draw.choice(("x", "lm_head.weight", name + " ", "\x1b[31m"))] = tensors.pop(name)
    elif kind == 6:
        tensors[draw.choice(("x", "lm_head.weight", "model.layers.9.mlp.up_proj.weight"))] = tensor.clone()
    else:
        path.write_bytes(damaged(path.read_bytes(), draw))
        return str(folder)
    save_file(tensors, path, metadata={"format": "pt"})
    return str(folder)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A file that is flipped in its head, cut, empty, or begins with another length."""
    head = bytearray(content)
    head[draw.randrange(min(2000, len(head)))] ^= 1 << draw.randrange(8)
    length = draw.choice((0, 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
    return draw.choice((bytes(head), bytes(head), content[: draw.randrange(len(content))], b"", length + content[8:]))


def change_tokenizer(folder: Path, draw: random.Random) -> str:
    path = folder / MODEL_FILE
    content = path.read_bytes()
    kind = draw.randrange(5)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(draw.choice(WHOLE))
    elif kind == 2:
        path.write_bytes((folder / CONFIG_FILE).read_bytes())
    elif kind == 3:
        path.write_bytes(draw.randbytes(draw.randrange(1, 5000)))
    else:
        path.write_bytes(damaged(content, draw))
    return str(folder)


CHANGES: dict[str, Change] = {
    "config.json": change_config,
    "weight map": change_weight_map,
    "tensors": change_tensor,
    "tokenizer": change_tokenizer,
}


def attack(folder: Path, tasks: Mapping[str, Task], seed: int) -> dict[str, Counter[str]]:
    """What is changed -> number of imports by outcome, for changed copies of a small model."""
    usual = folder / "usual"
    save_hf(lively_model(MODEL), usual, shard_bytes=100_000)
    run = Path(tasks["train_tokenizer"].directory)
    shutil.copyfile(next(run.glob(f"tokenizer/*{Path(MODEL_FILE).suffix}")), usual / MODEL_FILE)
    counts = {what: Counter[str]() for what in CHANGES}
    assert imported(folder, usual, "").startswith("accepted")
    for what, change in CHANGES.items():
        for number in range(TRIES):
            draw = random.Random(f"{seed} {what} {number}")
            changed = folder / "changed"
            shutil.copytree(usual, changed)
            result = imported(folder, changed, change(changed, draw))
            outcome = result.partition(" ")[0]
            counts[what][outcome] += 1
            if outcome in ("NAMELESS", "TRACEBACK"):
                print(f"{what} {number}: {result}", flush=True)
            shutil.rmtree(changed)
    return counts


def imported(folder: Path, weights: Path, name: str) -> str:
    """What import_model makes of a directory: the outcome, and the error. `name` has to be in the error."""
    stage, root = load_stage(IMPORTED), folder / "imported"
    try:
        inputs = resolve_inputs(stage, stage.config(), {"weights": [str(weights)]}, str(root))
        task = Task(stage=stage, config=stage.config(), inputs=inputs, root=str(root))
        run_task(task, Resources(device="cpu"), InProcess(), say=lambda _: None)
        return "accepted"
    except Exception as error:
        line = str(error)
        if exit_code(error) != 2:
            return f"TRACEBACK {error!r:.300}"
        return f"{'refused' if name in line and len(line.splitlines()) == 1 else 'NAMELESS'} {line:.300}"
    finally:
        shutil.rmtree(root, ignore_errors=True)
