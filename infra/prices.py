"""Costs in money, energy and carbon of chip-hours, core-hours and stored bytes, by constants with a source.

    plan or account -> amounts -> `Prices` -> dollars, kWh, kgCO2e

    energy = (chip-hours x (chip W + its share of the host's vCPUs x W) + core-hours x W) x PUE
    carbon = energy x grid factor of the chip's region

Every constant has a unit, a source and a date, and a file can replace it (`read_prices`). The constants of a chip are
in infra/chips.py. Prices are list prices on demand; for the prices of a contract, a spot market or another region,
write such a file. The energy of storage and network is not counted, because no figure is public.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from infra.chips import CHIPS, CLOUD_REGIONS, OURS, PRICING, Constant, chip_called, constant
from infra.errors import UserError

MEASURED = f"{OURS}: 1.0 GB of packaged text on 2 cores of x86_64, start of Ray not included (docs/costs.md)"
UNKNOWN = f"{OURS}: a chip that has no price here counts nothing; say what yours costs in a file"
HIGHER = f"{OURS}: the higher of the demo and 137 MB of Python source (docs/costs.md)"
PER_CHIP = ("usd_per_chip_hour", "watts_per_chip", "vcpus_per_chip", "grid_kg_per_kwh")
"""constants of each chip: the names are fields of `Chip`, and follow the chip's name in a file of prices"""
OTHER = "other"
"""name for the constants of all chips without constants of their own"""
PRICED = (*CHIPS, OTHER)

CONSTANTS: Mapping[str, Constant] = {
    **{f"{chip.name}.{name}": getattr(chip, name) for name in PER_CHIP for chip in CHIPS.values()},
    "other.usd_per_chip_hour": constant(0, "USD", UNKNOWN, "2026-11"),
    "other.watts_per_chip": constant(0, "W", UNKNOWN, "2026-11"),
    "other.vcpus_per_chip": constant(0, "vCPU", UNKNOWN, "2026-11"),
    "other.grid_kg_per_kwh": constant(0.41272, "kgCO2e", f"us-central1; {CLOUD_REGIONS}", "2024"),
    "cpu.grid_kg_per_kwh": constant(0.41272, "kgCO2e", f"us-central1; {CLOUD_REGIONS}", "2024"),
    "cpu.usd_per_core_hour": constant(0.0486, "USD", f"{PRICING}: n2, a vCPU with 4 GB, us-central1", "2025"),
    "cpu.watts_per_core": constant(
        2.5, "W", "Cloud Carbon Footprint's method for Google Cloud: 0.71 idle to 4.26 busy, half way", "2023"
    ),
    "cpu.flops_per_core": constant(98.5e9, "FLOP/s", "docs/benchmarks.md: float32, 197e9 on 2 cores", "2026-11"),
    "pue": constant(1.10, "", "Google's 2024 Environmental Report: mean of its data centres in 2023", "2024-07"),
    "mfu": constant(
        0.40, "", f"{OURS}: between the bounds of docs/tpu-fit.md, 28 to 74 % on the paper's slices; not measured",
        "2026-11",
    ),
    "storage.usd_per_gb_month": constant(0.020, "USD", f"{PRICING}: Standard class, one US region", "2025"),
    "storage.months": constant(3, "months", f"{OURS}: how long everything is kept", "2026-11"),
    "egress.usd_per_gb": constant(
        0.08, "USD", f"{PRICING}: to the internet beyond 10 TB a month; inside the region 0", "2025"
    ),
    "text.bytes_per_token": constant(
        4.0, "B", f"{OURS}: Gemma's tokenizer gives 3.86 on technical Markdown; running English has more", "2026-11"
    ),
    "text.kept_fraction": constant(0.5, "", f"{OURS}: a placeholder until your corpus was filtered once", "2026-11"),
    "text.stored_fraction": constant(0.27, "", f"{HIGHER}: bytes of Parquet a byte of text", "2026-11"),
    "tokens.bytes_per_token": constant(1.3, "B", f"{HIGHER}: int32 ids, zstd", "2026-11"),
    "sequences.bytes_per_token": constant(2.4, "B", f"{HIGHER}: ids, segments, positions, mask, zstd", "2026-11"),
    "logits.ids_per_target": constant(12.0, "", "arXiv 2503.16870: distinct ids of 50 draws", "2025-03"),
    "logits.bytes_per_id": constant(1.6, "B", "docs/logits.md: at 256,000 ids and 12 of 50 draws", "2026-11"),
    "checkpoint.bytes_per_parameter": constant(12, "B", "training/checkpoints: float32, two moments", "2026-11"),
}  # fmt: skip


def priced_as(kind: str) -> str:
    """The chip whose constants apply to a device's own name: `NVIDIA H100 80GB HBM3` -> h100, `v5e` -> v5e.

    `other` for a device that is not in the table.
    """
    chip = chip_called(kind)
    return chip.name if chip is not None else OTHER


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of work or of storage."""

    usd: float = 0.0
    kwh: float = 0.0
    kg_co2e: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(usd=self.usd + other.usd, kwh=self.kwh + other.kwh, kg_co2e=self.kg_co2e + other.kg_co2e)


@dataclass(frozen=True, kw_only=True)
class Prices:
    """The constants for a computation of costs."""

    constants: Mapping[str, Constant]

    def __getitem__(self, name: str) -> float:
        return self.constants[name].value

    def work(self, *, chip: str = "", chip_hours: float = 0.0, core_hours: float = 0.0) -> Cost:
        """Cost of hours of chips, with their hosts, and of hours of cores on plain machines. `chip` names the chip."""
        cores_kwh = core_hours * self["cpu.watts_per_core"] / 1000 * self["pue"]
        cost = Cost(
            usd=core_hours * self["cpu.usd_per_core_hour"],
            kwh=cores_kwh,
            kg_co2e=cores_kwh * self["cpu.grid_kg_per_kwh"],
        )
        if not chip_hours:
            return cost
        watts = self[f"{chip}.watts_per_chip"] + self[f"{chip}.vcpus_per_chip"] * self["cpu.watts_per_core"]
        kwh = chip_hours * watts / 1000 * self["pue"]
        return cost + Cost(
            usd=chip_hours * self[f"{chip}.usd_per_chip_hour"], kwh=kwh, kg_co2e=kwh * self[f"{chip}.grid_kg_per_kwh"]
        )

    def storage_usd_per_month(self, stored_bytes: float) -> float:
        return stored_bytes / 1e9 * self["storage.usd_per_gb_month"]

    def storage(self, stored_bytes: float) -> Cost:
        """Cost of storing bytes for `storage.months`."""
        return Cost(usd=self.storage_usd_per_month(stored_bytes) * self["storage.months"])

    def egress(self, sent_bytes: float) -> Cost:
        """Cost of sending bytes out of the cloud."""
        return Cost(usd=sent_bytes / 1e9 * self["egress.usd_per_gb"])


def read_prices(path: str | None, further: Mapping[str, Constant] | None = None) -> Prices:
    """The built-in constants and `further` ones, with the values of a JSON file: {"v5p.usd_per_chip_hour": 2.9, ...}.

    A value is a number, or {"value": 2.9, "source": "our contract", "date": "2026-11"}. Raises UserError for a file
    that cannot be read, an unknown name, or a value that is not a number of at least 0.
    """
    known = {**CONSTANTS, **(further or {})}
    if path is None:
        return Prices(constants=known)
    try:
        given = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(
            f"there is no file of prices {path!r}; give another path, or `--prices default` for the built-in prices"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is not JSON ({error}); write an object of names and numbers") from error
    if not isinstance(given, dict):
        raise UserError(
            f'{path} is JSON, but not an object of names and numbers; write it as in {{"v5p.usd_per_chip_hour": 2.9}}'
        )
    return Prices(constants={**known, **{name: _given(name, value, path, known) for name, value in given.items()}})


def _given(name: str, value: object, path: str, known: Mapping[str, Constant]) -> Constant:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        raise UserError(f"{path}: there is no constant {name!r}; {hint}")
    fields = value if isinstance(value, dict) else {"value": value}
    number = fields.get("value")
    if set(fields) - {"value", "source", "date"} or not isinstance(number, int | float) or not 0 <= number < 1e30:
        raise UserError(
            f"{path}: {name} is {value!r}; give a number of at least 0, or an object of value, source and date"
        )
    return replace(
        known[name],
        value=float(number),
        source=str(fields.get("source", path)),
        date=str(fields.get("date", "as given")),
    )
