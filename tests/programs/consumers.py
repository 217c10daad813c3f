"""Other programs read an export: their ids, greedy tokens and logits beside those of this project.

    python -m tests.programs.consumers write DIRECTORY                     an export, and our results (expected.json)
    PYTHON tests/programs/consumers.py check DIRECTORY CONSUMER [TOOL]     one line a kind of result, by that PYTHON

CONSUMER is transformers, transformers-slow, mlx, llama.cpp or lm-eval. `check` imports nothing of this project, so that
each consumer runs in an environment of its own. llama.cpp needs the packages xllamacpp and gguf, and as TOOL the path
of its convert_hf_to_gguf.py.
"""

import importlib.metadata
import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

EXPECTED = "expected.json"
NEW_TOKENS = 24
BOS = 2


def texts() -> list[str]:
    """Texts without named symbols: prose, scripts, code, and every run and tag that Gemma has a symbol for."""
    plain = [
        "",
        " ",
        "Hello, world!",
        "  two spaces before, and two after  ",
        "The year 1984, the price 3,000.50, and \u0661\u0662\u0663.",
        "def f(x):\n\treturn {'a': [x**2 for x in range(10)]}\n",
        "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3001\u0440\u0443\u0441\u0441\u043a\u0438\u0439, "
        "\u0939\u093f\u0928\u094d\u0926\u0940, \u0e44\u0e17\u0e22",
        "e\u0301 \u00e9 \ufb01 \u2126 \u200b\u00a0\ufeff",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0010ffff",
        "<s> </s> <0x41> <p>text</p> a<b>c",
        "Windows\r\nlines\r\n\r\nand\rreturns",
    ]
    runs = [character * count for character in " \n\t" for count in range(1, 36)]
    runs += [f"a{character * count}b" for character, count in product(" \n\t", (1, 2, 3, 17, 31, 32, 63, 64, 70))]
    runs += [f"x{' ' * spaces}{chr(10) * lines}{' ' * spaces}y" for spaces, lines in product((1, 2, 5), (1, 2, 3))]
    names = ["table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "h1", "h2", "h3", "h4", "h5", "h6"]
    names += ["blockquote", "strong", "em", "b", "i", "u", "s", "sub", "sup", "code"]
    tags = [f"{before}<{slash}{name}>{before}" for name, slash, before in product(names, ("", "/"), ("", "x"))]
    return plain + runs + tags


def symbols() -> list[str]:
    """Texts with named symbols, which a dialogue's writer wants matched."""
    return [
        "<start_of_turn>user\nKnock knock.<end_of_turn>\n<start_of_turn>model\n",
        "<mask> <2mass>",
        "<unused0><unused42>",
    ]


def write(directory: Path) -> None:
    """An export of a small model whose every part matters, with Gemma's own tokenizer if that is there."""
    import torch

    from data.hf_tokenizer import tokenizer_files
    from data.tokenizer import START_OF_TURN, Tokenizer, train_tokenizer
    from model import save_hf
    from model.sampling import generate
    from pipelines.stages.export_model import generation_config
    from tests.programs.places import GEMMA_TOKENIZERS
    from tests.programs.reference import lively_model

    gemma = next((path for path in GEMMA_TOKENIZERS if path.exists()), None)
    sample = [f"{word} {word[::-1]}. " * 9 for word in Path(__file__).read_text().split()]
    tokenizer_model = gemma.read_bytes() if gemma else train_tokenizer(sample, 1024)
    tokenizer = Tokenizer.from_bytes(tokenizer_model)
    model = lively_model(vocab_size=tokenizer.vocab_size, window=32)
    directory.mkdir(parents=True)
    save_hf(model, directory)
    for name, data in [*tokenizer_files(tokenizer_model), ("generation_config.json", generation_config())]:
        (directory / name).write_bytes(data)

    prompts = [[BOS, *tokenizer.encode(text)] for text in ("Hello, world!", "x" * 40, symbols()[0])]
    prompts.append([BOS, *tokenizer.encode(Path(__file__).read_text())][: 2 * model.config.window])
    greedy = generate(model, prompts, NEW_TOKENS, temperature=0.0, stop_ids=())
    with torch.no_grad():
        logits = [model(torch.tensor([prompt]))[0, -1, :64].tolist() for prompt in prompts]
        document = tokenizer.encode(Path(__file__).read_text()[:2000])
        row = torch.tensor([[BOS, *document]])
        nats = float(torch.nn.functional.cross_entropy(model(row)[0, :-1], row[0, 1:], reduction="sum"))
    expected = {
        "vocab_size": tokenizer.vocab_size,
        "ids": {text: tokenizer.encode(text) for text in texts()},
        "symbols": {text: tokenizer.encode(text, allow_special=True) for text in symbols()},
        "turn": {"ids": [START_OF_TURN, *tokenizer.encode("user"), 107], "text": "user"},
        "prompts": prompts,
        "greedy": greedy,
        "logits": logits,
        "document": {"text": tokenizer.decode(document), "nats": nats},
    }
    (directory / EXPECTED).write_text(json.dumps(expected))
    print(f"{directory}: {tokenizer.vocab_size:,} ids, {len(expected['ids'])} texts")


def differing(expected: dict[str, list[int]], got: Sequence[Sequence[int]]) -> str:
    wrong = [text for (text, ids), theirs in zip(expected.items(), got, strict=True) if ids != list(theirs)]
    return f"ids differ for {len(wrong)} of {len(expected)} texts" + (f", as {wrong[:3]}" if wrong else "")


def greedy_difference(expected: list[list[int]], got: Sequence[Sequence[int]]) -> str:
    """The last prompt is twice as long as the window, the prompts before it are shorter than the window."""
    wrong = [sum(a != b for a, b in zip(ours, theirs, strict=True)) for ours, theirs in zip(expected, got, strict=True)]
    return (
        f"greedy tokens differ at {sum(wrong[:-1])} of {sum(map(len, expected[:-1]))} positions, and at {wrong[-1]} of "
        f"{len(expected[-1])} after a prompt longer than the window"
    )


def check_transformers(directory: Path, expected: dict[str, Any], fast: bool = True) -> list[str]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=fast)
    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        logits = [model(torch.tensor([prompt])).logits[0, -1, :64] for prompt in expected["prompts"]]
        greedy = []
        for prompt in expected["prompts"]:
            row = list(prompt)
            for _ in range(NEW_TOKENS):
                row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
            greedy.append(row[len(prompt) :])
    largest = max(float((torch.tensor(a) - b).abs().max()) for a, b in zip(expected["logits"], logits, strict=True))
    turn = expected["turn"]
    decoded = tokenizer.decode(turn["ids"], skip_special_tokens=True)
    return [
        differing(expected["ids"], [tokenizer.encode(text, add_special_tokens=False) for text in expected["ids"]]),
        "named symbols: "
        + differing(expected["symbols"], [tokenizer.encode(t, add_special_tokens=False) for t in expected["symbols"]]),
        f"turn marks are {'left out' if decoded == turn['text'] else 'KEPT'} under skip_special_tokens ({decoded!r})",
        f"attention is {model.config._attn_implementation}",
        f"logits differ by at most {largest:.1g}",
        greedy_difference(expected["greedy"], greedy),
        f"texts end at ids {GenerationConfig.from_pretrained(directory).eos_token_id}",
    ]


def check_mlx(directory: Path, expected: dict[str, Any]) -> list[str]:
    import mlx.core as mx
    from mlx_lm import load

    model, tokenizer = load(str(directory))
    greedy, largest = [], 0.0
    for prompt, ours in zip(expected["prompts"], expected["logits"], strict=True):
        row = list(prompt)
        theirs = model(mx.array([row]))[0, -1, :64]
        if prompt is not expected["prompts"][-1]:
            largest = max(largest, float(mx.abs(theirs - mx.array(ours)).max()))
        for _ in range(NEW_TOKENS):
            row.append(int(mx.argmax(model(mx.array([row]))[0, -1])))
        greedy.append(row[len(prompt) :])
    return [
        differing(expected["ids"], [tokenizer.encode(text, add_special_tokens=False) for text in expected["ids"]]),
        f"logits differ by at most {largest:.1g} within the window",
        greedy_difference(expected["greedy"], greedy),
        f"texts end at ids {sorted(tokenizer.eos_token_ids)}",
    ]


def check_llama_cpp(directory: Path, expected: dict[str, Any], converter: str) -> list[str]:
    import xllamacpp

    gguf = directory / "model-f32.gguf"
    if not gguf.exists():
        command = [sys.executable, converter, str(directory), "--outtype", "f32", "--outfile", str(gguf)]
        subprocess.run(command, check=True, capture_output=True)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 1024, 1, False
    parameters.cpuparams.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(parameters)

    def ask(path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{server.listening_address}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tokenized(text: str, symbols: bool) -> list[int]:
        return list(ask("tokenize", content=text, add_special=False, parse_special=symbols)["tokens"])

    greedy = []
    for prompt in expected["prompts"]:
        answer = ask(
            "completion",
            prompt=prompt,
            n_predict=NEW_TOKENS,
            temperature=0.0,
            ignore_eos=True,
            return_tokens=True,
            cache_prompt=False,
            samplers=["temperature"],
        )
        greedy.append(answer["tokens"])
    return [
        differing(expected["ids"], [tokenized(text, symbols=False) for text in expected["ids"]]),
        "named symbols: " + differing(expected["symbols"], [tokenized(t, symbols=True) for t in expected["symbols"]]),
        greedy_difference(expected["greedy"], greedy),
    ]


def check_lm_eval(directory: Path, expected: dict[str, Any]) -> list[str]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    document = expected["document"]
    lines = [f"ours: {document['nats']:.4f} nats for the document"]
    for setting in ({}, {"add_bos_token": False}):
        model = HFLM(pretrained=str(directory), device="cpu", batch_size=1, **setting)
        request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(document["text"],), idx=0)
        (log_probability,) = model.loglikelihood_rolling([request], disable_tqdm=True)
        first = model.tok_encode("a b")[0] == BOS
        lines.append(f"{setting or 'defaults'}: {-log_probability:.4f} nats; <bos> before a question: {first}")
    return lines


VERSIONS = {"mlx": "mlx-lm", "llama.cpp": "xllamacpp", "lm-eval": "lm-eval"}


def check(directory: Path, consumer: str, *tool: str) -> None:
    expected = json.loads((directory / EXPECTED).read_text())
    checks = {
        "transformers": check_transformers,
        "transformers-slow": lambda *given: check_transformers(*given, fast=False),
        "mlx": check_mlx,
        "llama.cpp": check_llama_cpp,
        "lm-eval": check_lm_eval,
    }
    package = VERSIONS.get(consumer, "transformers")
    for line in checks[consumer](directory, expected, *tool):
        print(f"{consumer} ({package} {importlib.metadata.version(package)}): {line}")


if __name__ == "__main__":
    action, folder, *rest = sys.argv[1:]
    {"write": write, "check": check}[action](Path(folder), *rest)
