"""Compiles an HLO module for a TPU slice by libtpu's own compiler, on a machine without a TPU, and measures it.

    python -m infra.aot REQUEST.json ANSWER.json        in the environment of `make fit-env` (jax and libtpu, no torch)

Nothing is executed, so the answer does not cover the values that a program computes.

REQUEST: {"hlo": path of a serialized HloModuleProto, "topology": "v5p:4x4x4", "slices": 1, "num_partitions": 64,
"donated": [indices of arguments whose buffers the results may take]}, optionally "text": path for the optimized module.
ANSWER: see `Answer`. A program that does not fit in memory has an answer too. Any other refusal of the compiler is in
"error".

The functions of jax that are called here are not public, so jax and libtpu are pinned together in requirements-fit.txt.
Cost: seconds for a small program, minutes and a few GB for billions of parameters on thousands of chips.
"""

import dataclasses
import json
import os
import re
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.chips import COMPILING_HOST
from infra.hlo_account import account
from infra.slices import Topology, parse_topology, sent_bytes

QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": COMPILING_HOST,  # of the absent machine; if it is not set, libtpu warns
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is opened, so two compilations may run at once
    "TPU_LOG_DIR": "disabled",  # the default is /tmp/tpu_logs, which Ray's log monitor forwards
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
    """One of the largest buffers of a program that does not fit in memory."""

    bytes: int
    shape: str
    kind: str
    """kind of the allocation in the compiler's words, such as HLO temp or global"""
    operator: str
    """operation that made the buffer, by the framework's name"""
    label: str
    """instruction that made the buffer, by the compiler's name"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """All collectives of one kind, on one chip, in one run of the program."""

    kind: str
    calls: int
    """number of calls, each round of a loop counted"""
    operand_bytes: int
    ici_bytes: int
    """bytes sent to other chips of the slice (infra/slices.py has the formula)"""
    dcn_bytes: int
    """bytes sent between slices"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The compiler's result. Bytes are those of one chip."""

    fits: bool
    compile_seconds: float
    peak_memory_bytes: int
    """memory of the compiling process on this machine at its peak"""
    versions: dict[str, str]
    hbm_limit_bytes: int
    """HBM that the compiler lets a program use"""
    peak_bytes: int
    """HBM at the peak; for a program that does not fit, only its temporaries, as no arguments are placed yet"""
    argument_bytes: int = 0
    output_bytes: int = 0
    alias_bytes: int = 0
    """bytes of results that are in donated arguments"""
    temp_bytes: int = 0
    code_bytes: int = 0
    matrix_flops: float = 0.0
    """operations of dots and convolutions, with recomputation, without kernels"""
    hbm_bytes: float = 0.0
    """lower bound of the bytes read and written in HBM (infra/hlo_account.py)"""
    kernels: int = 0
    """number of runs of Mosaic (Pallas) kernels"""
    collectives: tuple[Traffic, ...] = ()
    unknown_loops: tuple[str, ...] = ()
    largest: tuple[Allocation, ...] = ()
    """largest buffers, if the program does not fit"""
    error: str = ""
    """reason why the program cannot be compiled; empty if it can, or if it only does not fit"""


def main(request_path: str, answer_path: str) -> int:
    """Writes the answer, also for a program that does not fit or does not compile. Returns the exit code 0."""
    request = json.loads(Path(request_path).read_text())
    os.environ.update(QUIET)
    answer = compile_answer(
        Path(request["hlo"]).read_bytes(),
        parse_topology(request["topology"], request.get("slices", 1)),
        num_partitions=request["num_partitions"],
        donated=request.get("donated", ()),
        text_path=request.get("text"),
    )
    Path(answer_path).write_text(json.dumps(dataclasses.asdict(answer), indent=1) + "\n")
    return 0


def compile_answer(
    hlo: bytes, topology: Topology, *, num_partitions: int, donated: Sequence[int], text_path: str | None = None
) -> Answer:
    """Compiles `hlo` (a serialized HloModuleProto, annotated for SPMD partitioning) for all chips of `topology`."""
    assert num_partitions == topology.chips, (
        f"the program has {num_partitions} partitions, but {topology.name} x {topology.slices} has {topology.chips} "
        f"chips; trace it for a mesh of {topology.chips} chips"
    )
    began = time.monotonic()
    limit = topology.chip.usable_hbm_bytes
    versions = _versions()
    try:
        executable, versions["libtpu_build"] = _compile(hlo, topology, donated)
    except _runtime_error() as error:
        return _refused(str(error), limit, round(time.monotonic() - began, 1), versions)
    seconds = time.monotonic() - began
    stats = executable.get_compiled_memory_stats()
    (optimized,) = executable.hlo_modules()
    text = optimized.to_string()
    if text_path is not None:
        Path(text_path).write_text(text)
    totals = account(text, topology.slices)
    return Answer(
        fits=stats.peak_memory_in_bytes <= limit,
        compile_seconds=round(seconds, 1),
        peak_memory_bytes=_own_peak(),
        versions=versions,
        hbm_limit_bytes=limit,
        peak_bytes=stats.peak_memory_in_bytes,
        argument_bytes=stats.argument_size_in_bytes,
        output_bytes=stats.output_size_in_bytes,
        alias_bytes=stats.alias_size_in_bytes,
        temp_bytes=stats.temp_size_in_bytes,
        code_bytes=stats.generated_code_size_in_bytes,
        matrix_flops=totals.matrix_flops,
        hbm_bytes=totals.hbm_bytes,
        kernels=totals.kernels,
        collectives=traffic(totals.collectives),
        unknown_loops=tuple(totals.unknown_loops),
    )


def _refused(message: str, limit: int, seconds: float, versions: dict[str, str]) -> Answer:
    used, limit = parse_out_of_memory(message) or (0, limit)
    return Answer(
        fits=False,
        compile_seconds=seconds,
        peak_memory_bytes=_own_peak(),
        versions=versions,
        hbm_limit_bytes=limit,
        peak_bytes=used,
        temp_bytes=used,
        largest=parse_allocations(message) if used else (),
        error="" if used else _first_lines(message),
    )


def _compile(hlo: bytes, topology: Topology, donated: Sequence[int]) -> tuple[Any, str]:
    import numpy as np
    from jax._src import compiler
    from jax._src.lib import _jax, xla_client
    from jax.experimental import topologies

    described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **_topology_options(topology))
    devices = list(described.devices)
    assert len(devices) == topology.chips, (len(devices), topology)
    mlir = _jax.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(hlo))
    module = _with_donors(mlir, donated)
    options = compiler.get_compile_options(
        num_replicas=1,
        num_partitions=len(devices),
        device_assignment=np.array([[device.id for device in devices]]),
        use_spmd_partitioning=True,
    )
    build = options.executable_build_options
    build.allow_spmd_sharding_propagation_to_parameters = [True]
    build.allow_spmd_sharding_propagation_to_output = [True]
    client = devices[0].client
    # the number in "Built on ... (seconds) cl/..." tells builds of one version apart
    return client.compile(module, _jax.DeviceList(tuple(devices)), options), client.platform_version.replace("\n", " ")


def _topology_options(topology: Topology) -> dict[str, Any]:
    """Options of the compiler besides the name of the topology."""
    slices: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    return {**slices, **topology.chip.compiler_options}


def _with_donors(mlir: str | bytes, donated: Sequence[int]) -> bytes:
    """The module with `jax.buffer_donor` on the donated arguments of @main: the compiler finds results that fit."""
    from jax._src.interpreters import mlir as jax_mlir
    from jax._src.lib.mlir import ir

    with jax_mlir.make_ir_context():
        module = ir.Module.parse(mlir)
        function = next(operation for operation in module.body.operations if operation.name.value == "main")
        arg_attrs = next((entry.attr for entry in function.attributes if entry.name == "arg_attrs"), None)
        count = len(function.type.inputs)
        attributes = [dict(_items(arg_attrs[place])) if arg_attrs is not None else {} for place in range(count)]
        for place in donated:
            attributes[place]["jax.buffer_donor"] = ir.BoolAttr.get(True)
        function.attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(entry) for entry in attributes])
        return jax_mlir.module_to_bytecode(module)


def _items(attributes: Any) -> list[tuple[str, Any]]:
    return [(attribute.name, attribute.attr) for attribute in attributes]


def traffic(collectives: Sequence[Any]) -> tuple[Traffic, ...]:
    """Sums `infra.hlo.Collective`s by kind."""
    sums: dict[str, dict[str, int]] = {}
    for collective in collectives:
        entry = sums.setdefault(collective.kind, dict.fromkeys(("calls", "operand_bytes", "ici_bytes", "dcn_bytes"), 0))
        sent = int(collective.times * sent_bytes(collective.kind, collective.operand_bytes, collective.group))
        entry["calls"] += collective.times
        entry["operand_bytes"] += collective.times * collective.operand_bytes
        entry["dcn_bytes" if collective.between_slices else "ici_bytes"] += sent
    return tuple(Traffic(kind=kind, **entry) for kind, entry in sorted(sums.items()))


def parse_out_of_memory(message: str) -> tuple[int, int] | None:
    """(bytes that the program needs, bytes that it may use) from the compiler's error; None for another error."""
    match = re.search(r"Used ([\d.]+[BKMGT]?) of ([\d.]+[BKMGT]?) hbm", message)
    return (parse_size(match[1]), parse_size(match[2])) if match else None


def parse_allocations(message: str) -> tuple[Allocation, ...]:
    """The compiler's own list of the largest allocations, largest first, without those below 1 MiB."""
    allocations = []
    for part in re.split(r"\n\s*\d+\. (?=Size: )", message)[1:]:
        fields: Mapping[str, str] = dict(re.findall(r"^\s*([A-Z][\w ]*?): (.*?)\s*$", "  " + part, re.MULTILINE))
        operator = re.search(r'op_name="([^"]*)"', fields.get("Operator", ""))
        allocations.append(
            Allocation(
                bytes=parse_size(fields["Size"]),
                shape=fields.get("Shape", "").partition("{")[0],
                kind=fields.get("Allocation type", "unknown"),
                operator=operator[1] if operator else fields.get("Operator", ""),
                label=fields.get("XLA label", "").partition(" = ")[0],
            )
        )
    return tuple(allocation for allocation in allocations if allocation.bytes >= 2**20)


def parse_size(text: str) -> int:
    """Bytes of a size such as `2.50G`. The compiler's units are powers of 1024."""
    unit = text[-1] if text[-1] in UNITS else "B"
    return round(float(text.rstrip("BKMGT")) * UNITS[unit])


def _first_lines(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:3])[:600]


def _runtime_error() -> type[Exception]:
    import jax

    return jax.errors.JaxRuntimeError


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("jax", "jaxlib", "libtpu")}


def _own_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2]))
