"""The table of a plan or an account: a line for each step, totals, break-even of cached logits, the paper's carbon.

The figures of a plan are as good as its constants, which are printed below the table with their sources.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from infra.chips import OURS, TPUS
from infra.prices import OTHER, PRICED, Cost, Prices, priced_as
from pipelines.account.amounts import Amount, Cache, caches, estimate
from pipelines.recipes.gemma2 import PUBLISHED, PUBLISHED_TONNES_CO2E
from pipelines.report.words import size

if TYPE_CHECKING:
    from pipelines.recipes.recipe import Recipe

COLUMNS = ("step", "tokens", "FLOPs", "chip-hours", "core-hours", "stored", "USD", "kWh", "kgCO2e", "time")


def estimate_lines(recipe: "Recipe", prices: Prices) -> Iterator[str]:
    """The lines of a recipe's plan."""
    amounts = estimate(recipe, prices)
    yield f"Estimated cost of {recipe.name} (from configs and the constants below; nothing is measured):"
    yield from amount_lines(amounts, prices)
    for cache in caches(recipe, amounts, prices):
        yield from break_even_lines(cache, prices)
    yield from _egress_lines(amounts, prices)
    if recipe.name in PUBLISHED:
        yield from published_lines(prices)
    yield "constants (a JSON file after --prices replaces any of them):"
    chips = {f"{kind}." for amount in amounts for kind in amount.chips}
    prefixes = tuple(f"{chip}." for chip in PRICED)
    for name, constant in prices.constants.items():
        if not name.startswith(prefixes) or name.startswith(tuple(chips)):
            yield f"  {name} = {constant.value:g} {constant.unit}".rstrip() + f"  ({constant.source}; {constant.date})"


def amount_lines(amounts: Sequence[Amount], prices: Prices) -> Iterator[str]:
    """The lines of the table, with totals by kind of stored data below it."""
    costs = [amount.cost(prices) for amount in amounts]
    rows = [_cells(amount, cost) for amount, cost in zip(amounts, costs, strict=True)]
    total = sum(costs, Cost())
    rows.append(
        (
            "all",
            "",
            _number(sum(amount.flops for amount in amounts)),
            _number(sum(amount.chip_hours for amount in amounts)),
            _number(sum(amount.core_hours for amount in amounts)),
            size(sum(amount.stored_bytes for amount in amounts)),
            *_money(total),
            _time(sum(hours for amount in amounts if (hours := _hours(amount)))),
        )
    )
    yield from aligned([COLUMNS, *rows])
    kinds: dict[str, float] = {}
    for amount in amounts:
        for kind, count in amount.stored.items():
            kinds[kind] = kinds.get(kind, 0.0) + count
    yield "stored: " + "; ".join(f"{kind} {size(count)}" for kind, count in kinds.items())


def measured_lines(amounts: Sequence[Amount], prices: Prices) -> Iterator[str]:
    """The lines of the account of finished steps, with the scope of its figures."""
    yield from amount_lines(amounts, prices)
    yield from _egress_lines(amounts, prices)
    held: dict[str, float] = {}
    for amount in amounts:
        for kind, hours in amount.chips.items():
            held[kind] = held.get(kind, 0.0) + hours
    yield (
        "Times are those of the finished attempts, with waiting; core-hours count all cores of a machine"
        + ("; no chip was used." if not held else ", but not for steps with chips, whose price includes the host.")
    )
    if held:
        kinds = ", ".join(f"{_number(hours)} hours of {kind}" for kind, hours in held.items())
        yield f"Chips: {kinds}; training counts all attempts from a worker's start, other stages count their shards."
    for kind in held:
        if priced_as(kind) == OTHER and not prices["other.usd_per_chip_hour"]:
            yield (
                f"{kind} has no price and counts as free: give other.usd_per_chip_hour, other.watts_per_chip and "
                "other.vcpus_per_chip in a file after --prices"
            )


def _cells(amount: Amount, cost: Cost) -> tuple[str, ...]:
    return (
        amount.step,
        _number(amount.tokens),
        _number(amount.flops),
        _number(amount.chip_hours),
        _number(amount.core_hours),
        size(amount.stored_bytes) if amount.stored else "",
        *_money(cost),
        _time(_hours(amount)),
    )


def break_even_lines(cache: Cache, prices: Prices) -> Iterator[str]:
    """The lines that compare a teacher beside every student with logits that are stored once."""
    monthly = prices.storage_usd_per_month(cache.stored_bytes)
    months = prices["storage.months"]
    kept = monthly * months
    yield (
        f"{cache.step}: a teacher's pass costs {_usd(cache.work.usd)}; its logits, {size(cache.stored_bytes)}, cost "
        f"{_usd(monthly)} a month, {_usd(kept)} in {months:g} months."
    )
    if not cache.work.usd:
        return
    first = next((n for n in range(2, 10_000) if cache.work.usd + kept < n * cache.work.usd), None)
    yield (
        f"  online: each student pays for a pass (with {size(cache.teacher_bytes)} of teacher's parameters on its "
        f"chips); cached: one pass and the storage. The cache is "
        + (f"cheaper from {first} students (or epochs) on" if first else "not cheaper for any number of students")
        + (
            f", if it is stored less than {cache.work.usd / monthly:,.1f} months for each pass saved."
            if monthly
            else "."
        )
    )
    online, cached = _usd(cache.students * cache.work.usd), _usd(cache.work.usd + kept)
    here = "one student" if cache.students == 1 else f"{cache.students} students"
    yield f"  With the {here} of this recipe, online would cost {online} and cached costs {cached}."


def _egress_lines(amounts: Sequence[Amount], prices: Prices) -> Iterator[str]:
    read = sum(count for amount in amounts for kind, count in amount.stored.items() if kind in ("sequences", "logits"))
    trained = [amount for amount in amounts if amount.trains and amount.stored_bytes]
    if read and trained:
        yield (
            f"egress: none if bucket and slice are in one region; one pass over sequences and logits in another cloud "
            f"would cost {_usd(prices.egress(read).usd)} ({size(read)})"
        )


def published_lines(prices: Prices) -> Iterator[str]:
    """The lines that compare the carbon of the three recipes with the paper's figure."""
    from pipelines.recipes import registry as recipes

    tonnes, chips = {}, set()
    for name in PUBLISHED:
        amounts = estimate(recipes.load(name), prices)
        chips |= {chip for amount in amounts for chip in amount.chips}
        trained = sum(amount.cost(prices).kg_co2e for amount in amounts if amount.trains) / 1000
        tonnes[name] = (sum((amount.cost(prices) for amount in amounts), Cost()).kg_co2e / 1000, trained)
    total, training = (sum(pair[k] for pair in tonnes.values()) for k in (0, 1))
    each = ", ".join(f"{name} {all_of:,.0f} t" for name, (all_of, _) in tonnes.items())
    yield (
        f"The paper's three models: {total:,.0f} tCO2e here ({each}; {training:,.0f} t for training, the "
        f"rest for teachers' passes and data), {PUBLISHED_TONNES_CO2E:,.2f} tCO2eq published: ratio "
        f"{total / PUBLISHED_TONNES_CO2E:.2f}."
    )
    yield from (
        "  The published figure is metered (hourly energy of TPU data centres, with overhead), this one is computed:",
        f"  (1) utilization: {prices['mfu']:.0%} is assumed, and carbon is proportional to its inverse;",
        _watts_line(chips),
        "  (3) grids: the paper names no region; 0.1 or 0.6 kg/kWh everywhere would make it a third or twice as much;",
        "  (4) scope: whether the published figure has teachers' passes and failed or repeated runs is not known.",
    )


def _watts_line(chips: set[str]) -> str:
    published = sorted(name for name in chips if not TPUS[name].watts_per_chip.source.startswith(OURS))
    reckoned = sorted(chips - set(published))
    return (
        f"  (2) watts: those of {' and '.join(published)} are published (ASIC and HBM), those of "
        f"{' and '.join(reckoned)} are not;"
    )


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of the rows in columns: names aligned to the left, numbers to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def _hours(amount: Amount) -> float | None:
    """The wall time: measured, or estimated with all chips of the slices at once. None for plain machines, whose number
    is not known."""
    if amount.seconds is not None:
        return amount.seconds / 3600
    return amount.chip_hours / amount.place.chips if amount.place else None


def _time(hours: float | None) -> str:
    if not hours:
        return ""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 3600:,.0f} s"


def _money(cost: Cost) -> tuple[str, str, str]:
    return _number(cost.usd), _number(cost.kwh), _number(cost.kg_co2e)


def _usd(amount: float) -> str:
    return f"${_number(amount) or '0'}"


def _number(value: float) -> str:
    """The value with three significant digits, large values with a unit (T, B, M)."""
    if not value:
        return ""
    if value >= 1e15:
        return f"{value:.2e}".replace("e+", "e")
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.2f}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
