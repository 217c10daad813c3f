"""The figures of a compiled step on one chip (memory, operations, traffic, roofline) and the lines that print them.

**Operations.** `model`: FLOPs of model/flops.py, with windows and without recomputation; those of training are 3 x
forward. `matrix`: the dots of the compiled program, loops included. `executed`: `matrix` plus the attention
kernels, whose inside is not counted. Their operations follow from the model's visible keys. A forward kernel is 2
products, the backward pass is 7 (3 in the kernel for the gradient of the queries, 4 in the kernel for the gradients of
keys and values; FlashAttention-2, arXiv 2307.08691, in two kernels). The number of forward kernels is read from the
program: kernels / layers - 2.

**Check.** `matrix` is compared with the products that the program should have: in a step tokens x (6 (block matrices +
V D) + 2 block matrices if remat is `full`), in a forward pass tokens x 2 (block matrices + V D). A ratio other than 1
shows that the compiler repeats or saves work, or that the count is wrong.

**MFU** = model / (roofline seconds x peak), once if all resources overlap and once if none overlap (infra/slices.py).
Both are computed bounds, not measurements: no latency, every kernel at its peak.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from infra.chips import GIB
from infra.slices import Roofline, model_flops_utilization, roofline
from model import forward_flops_per_token, parameter_count, train_flops_per_token
from pipelines.fit.cells import Cell, FitRequest

BACKWARD_KERNELS = 2
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 7
IMAGE_PIN = "torch_xla 2.9.0's own extra pins libtpu 0.0.21, which refuses the splash kernel; run this one on the TPU"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Numbers of one chip and one step; bytes, operations, seconds."""

    parameter_bytes: int
    optimizer_bytes: int
    peak_bytes: int
    """HBM at its fullest; if the compiler refused the program: temporaries plus parameters, moments and batch"""
    hbm_bytes: int
    """HBM that a program may use"""
    model_flops: float
    matrix_flops: float
    matrix_ratio: float
    """ratio of `matrix_flops` to the products that the program should have"""
    executed_flops: float
    bounds: Roofline | None
    """roofline; None: nothing was compiled"""
    best_mfu: float
    worst_mfu: float
    best_tokens_per_second: float
    worst_tokens_per_second: float


def figures(cell: Cell) -> Figures:
    """The figures of a cell that was judged."""
    assert not cell.problem, f"this cell has no figures: {cell.problem}"
    request, compiled = cell.request, cell.compiled
    chip = request.place.chip
    tokens = request.batch * request.seq / request.mesh.chips
    of_token = train_flops_per_token if request.keeps == "gradients" else forward_flops_per_token
    model_flops = tokens * of_token(request.model, request.seq)
    peak = int(compiled["peak_bytes"])
    parameters, optimizer = int(cell.trace["parameter_bytes_per_chip"]), int(cell.trace["optimizer_bytes_per_chip"])
    bounds = None
    executed = matrix = ratio = 0.0
    if compiled["code_bytes"]:
        matrix = float(compiled["matrix_flops"])
        ratio = matrix / _expected_matrix_flops(request, tokens)
        executed = matrix + _kernel_flops(request, tokens, int(compiled["kernels"]))
        sent = compiled["collectives"]
        bounds = roofline(
            request.place,
            flops=executed,
            hbm_bytes=float(compiled["hbm_bytes"]),
            ici_bytes=float(sum(collective["ici_bytes"] for collective in sent)),
            dcn_bytes=float(sum(collective["dcn_bytes"] for collective in sent)),
        )
    else:  # refused: the compiler reports the temporaries alone
        peak += parameters + optimizer + _batch_bytes(request)
    seconds = (bounds.best_seconds, bounds.worst_seconds) if bounds else (float("inf"), float("inf"))
    mfu = [model_flops_utilization(chip, model_flops=model_flops, seconds=bound) for bound in seconds]
    return Figures(
        parameter_bytes=parameters,
        optimizer_bytes=optimizer,
        peak_bytes=peak,
        hbm_bytes=int(compiled["hbm_limit_bytes"]),
        model_flops=model_flops,
        matrix_flops=matrix,
        matrix_ratio=ratio,
        executed_flops=executed,
        bounds=bounds,
        best_mfu=mfu[0],
        worst_mfu=mfu[1],
        best_tokens_per_second=tokens / seconds[0],
        worst_tokens_per_second=tokens / seconds[1],
    )


def _block_matrices(request: FitRequest) -> int:
    config = request.model
    _, non_embedding = parameter_count(config)
    return non_embedding - config.layers * 4 * config.d_model - config.d_model


def _expected_matrix_flops(request: FitRequest, tokens: float) -> float:
    blocks, head = _block_matrices(request), request.model.vocab_size * request.model.d_model
    if request.keeps != "gradients":
        return tokens * 2.0 * (blocks + head)
    return tokens * (6.0 * (blocks + head) + (2.0 * blocks if request.remat == "full" else 0.0))


def _kernel_flops(request: FitRequest, tokens: float, kernels: int) -> float:
    config = request.model
    matrices = 2.0 * (_block_matrices(request) + config.vocab_size * config.d_model)
    forward = forward_flops_per_token(config, request.seq) - matrices
    if request.keeps != "gradients":
        return tokens * forward * kernels / config.layers
    runs = kernels / config.layers - BACKWARD_KERNELS
    return tokens * forward * max(0.0, runs + BACKWARD_PRODUCTS / FORWARD_PRODUCTS) if kernels else 0.0


def _batch_bytes(request: FitRequest) -> int:
    """The batch of one chip: tokens, segments, positions, mask.

    To distill there are 50 ids and counts at each target, and to draw 50 ids three uniform numbers each.
    """
    a_token = 13 + (50 * 8 if request.objective == "distill" else 0) + (50 * 12 if request.keeps == "draws" else 0)
    return a_token * request.seq * request.batch // request.mesh.row_shards


def as_json(cell: Cell) -> dict[str, Any]:
    """The output of `fit --json`: the cell and, if it was judged, its figures."""
    document: dict[str, Any] = {"fits": cell.fits, "problem": cell.problem, **asdict(cell)}
    if not cell.problem:
        result = figures(cell)
        document["figures"] = asdict(result)
        for key in ("best_mfu", "worst_mfu", "best_tokens_per_second", "worst_tokens_per_second"):
            if result.bounds is None:
                document["figures"][key] = None
    return document


def headline(request: FitRequest) -> str:
    place = request.place
    chips = f"{request.slices} x {request.topology}" if request.slices > 1 else request.topology
    where = f"{chips} ({place.chips} chips), mesh {request.mesh.text}"
    rows = f"{request.batch} rows x {request.seq} tokens"
    if request.keeps != "gradients":
        return f"{request.name}, forward pass to {request.keeps}, {rows} on {where}, {request.parameter_dtype}"
    return (
        f"{request.name}, {request.objective}, {rows} a step on {where}, remat {request.remat}, "
        f"{request.parameter_dtype}"
    )


def describe(cell: Cell) -> list[str]:
    """The lines that `fit` prints for a cell."""
    lines = [headline(cell.request)]
    if cell.problem:
        return [*lines, f"  not judged       {cell.problem}"]
    result, compiled = figures(cell), cell.compiled
    share = result.peak_bytes / result.hbm_bytes
    verdict = "fits" if cell.fits else "DOES NOT FIT"
    lines.append(
        f"  {verdict:<16} {gib(result.peak_bytes)} of {gib(result.hbm_bytes)} HBM of a chip at the peak ({share:.0%})"
    )
    lines.append(f"  parameters       {gib(result.parameter_bytes)}, optimizer {gib(result.optimizer_bytes)}")
    if not cell.fits:
        lines += _largest(cell)
    if result.bounds is not None:
        lines += _speed(result, compiled["collectives"])
        if compiled["unknown_loops"]:
            lines.append(f"  counted once     loops of unknown length: {', '.join(compiled['unknown_loops'])}")
    versions = compiled["versions"]
    lines.append(
        f"  compiler         libtpu {versions['libtpu']} with jax {versions['jax']}, "
        f"{compiled['compile_seconds']:.0f} s, {gib(compiled['peak_memory_bytes'])} of this machine; "
        f"trace {cell.trace['process_seconds']:.0f} s"
    )
    lines.append(f"  versions         {IMAGE_PIN}")
    return lines


def _speed(result: Figures, collectives: list[Mapping[str, Any]]) -> list[str]:
    bounds = result.bounds
    assert bounds is not None
    lines = [
        f"  operations       {result.model_flops:.3e} of the model, {result.executed_flops:.3e} executed; "
        f"dots are {result.matrix_ratio:.3f} of the formula",
    ]
    for collective in collectives:
        sizes = {net.upper(): collective[f"{net}_bytes"] for net in ("ici", "dcn")}
        wires = [f"{gib(size)} sent over {net}" for net, size in sizes.items() if size]
        lines.append(f"  {collective['kind']:<16} {collective['calls']:,} times, {', '.join(wires) or 'nothing sent'}")
    lines.append(
        f"  roofline         compute {bounds.compute_seconds:.3f} s, HBM {bounds.memory_seconds:.3f}, ICI "
        f"{bounds.ici_seconds:.3f}, DCN {bounds.dcn_seconds:.3f}; bound by {bounds.bound_by}"
    )
    lines.append(
        f"  at most          {result.best_tokens_per_second:,.0f} tokens/s a chip, MFU {result.best_mfu:.1%} (all "
        f"overlaps); {result.worst_tokens_per_second:,.0f}, {result.worst_mfu:.1%} (nothing does)"
    )
    return lines


def _largest(cell: Cell) -> list[str]:
    lines = ["  largest          allocations of the compiler:"]
    for allocation in cell.compiled["largest"][:8]:
        made = allocation["operator"].rpartition("/")[2] or allocation["label"]
        lines.append(
            f"    {gib(allocation['bytes']):>10}  {shape_in_words(allocation['shape'], cell.request)}  "
            f"({allocation['kind']}, {made})"
        )
    return lines


def shape_in_words(shape: str, request: FitRequest) -> str:
    """`f32[4,8192,2304]` -> `f32[4 x 8192 tokens x 2304 d_model]`: known sides get their names."""
    kind, _, sides = shape.rstrip("]").partition("[")
    config, mesh = request.model, request.mesh
    names: dict[int, str] = {}
    for name, size in (
        ("tokens", request.seq), ("vocabulary", config.vocab_size), ("ffw", config.ffw_dim),
        ("d_model", config.d_model), ("vocabulary of a chip", config.vocab_size // mesh.model),
        ("ffw of a chip", config.ffw_dim // mesh.model), ("rows of a chip", request.batch // mesh.row_shards),
        ("pairs of layers", config.layers // 2),
    ):  # fmt: skip
        names.setdefault(size, name)
    known = [
        f"{side} {names[int(side)]}" if side.isdecimal() and int(side) in names else side for side in sides.split(",")
    ]
    return f"{kind}[{' x '.join(known)}]"


def gib(amount: float) -> str:
    return f"{amount / GIB:.2f} GiB"
