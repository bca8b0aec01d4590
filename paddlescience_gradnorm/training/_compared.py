"""Table, figures and page of runs that differ in their rule and seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from paddlescience_gradnorm.training._checkpoint_file import replace
from paddlescience_gradnorm.training._page import (
    figure_of,
    findings_of,
    page,
    png,
    section,
    table,
)
from paddlescience_gradnorm.training._runs import FAILED, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE, PAGE = "comparison.png", "comparison.html"
NEAR = 1.1  # times the smallest error: as good

# For each rule, in the order in which they were given.
_ByRule = Mapping[str, Sequence[Run]]


def markdown(runs: Sequence[Run], failed: Sequence[Run]) -> str:
    """The two tables, and a line for each rule of which runs have failed."""
    by_rule = _by_rule(runs)
    parts = []
    for header, rows in (_results(by_rule), _weights(by_rule)):
        lines = [_escaped(header), ["---"] * len(header), *map(_escaped, rows)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if failed:
        parts.append("\n".join(f"- {line}" for line in _failures(failed)))
    return "\n\n".join(parts) + "\n"


def _escaped(cells: Sequence[str]) -> list[str]:
    """A name of a loss or rule may have what would end a cell or a line."""
    return [" ".join(cell.split()).replace("|", "\\|") for cell in cells]


def write(
    folder: Path,
    runs: Sequence[Run],
    failed: Sequence[Run],
    settings: Mapping[str, Any],
    equation: str,
) -> None:
    """Write the figure and the page.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    by_rule = _by_rule(runs)
    rules, seeds = ", ".join(by_rule), len({run["seed"] for run in runs})
    what = "Error" if _errors_are_known(runs) else "Losses"
    image = png(_course(by_rule))
    replace(folder / FIGURE, [image])
    spread = (
        "Median of the seeds, and in shade from the smallest to the largest." if seeds > 1 else ""
    )
    by_loss = (
        "Losses are unweighted. The conflict is the smallest cosine of an angle between two "
        "losses' gradients; below 0 they pull against each other. The weights of a direction, such "
        "as ConFIG, are its coefficients in that very step, and may be negative."
    )
    findings = [
        f"{rule}, seed {run['seed']}: {finding}"
        for rule, of_rule in by_rule.items()
        for run in of_rule
        for finding in run["diagnosis"]
    ]
    tables = [
        table(header, [[cell.strip("*") for cell in row] for row in rows], kind="numbers")
        for header, rows in (_results(by_rule), _weights(by_rule))
    ]
    details = png(_details(by_rule))
    results = {"rules": len(by_rule), "seeds": seeds, "steps": runs[0]["steps"]}
    sections = [
        section("Results", f"{tables[0]}<br>{tables[1]}"),
        section(
            what, figure_of("Over steps and seconds", image, f"{what} of {rules}", spread, True)
        ),
        section(
            "By loss",
            figure_of("Over steps", details, f"losses and weights of {rules}", by_loss, True),
        ),
        section("Diagnosis", findings_of([*_failures(failed), *findings])),
        section("How it was made", table(["setting", "value"], settings.items())),
        '<p class="note">Seconds are those of the training, without the measurements. Runs that '
        "went on side by side slowed each other; the CPU time of a step shows little of it.</p>",
    ]
    text = page(str(settings["problem"]), "comparison of rules", equation, results, sections)
    replace(folder / PAGE, [text.encode()])


def _by_rule(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run["balance"]].append(run)
    return dict(found)


def _errors_are_known(runs: Sequence[Run]) -> bool:
    return all(run["error"] is not None for run in runs)


def _median(numbers: Iterable[float]) -> float:
    return float(np.median([*numbers]))


def _results(by_rule: _ByRule) -> tuple[list[str], list[list[str]]]:
    """Header and rows: errors, time, conflicts, the last losses."""
    runs = [run for of_rule in by_rule.values() for run in of_rule]
    header, columns = ["rule"], [[*by_rule]]
    if _errors_are_known(runs):
        errors = [[run["error"] for run in of_rule] for of_rule in by_rule.values()]
        medians = [*map(_median, errors)]
        cells = [f"{m:.2g} [{min(e):.2g}, {max(e):.2g}]" for m, e in zip(medians, errors)]
        near = [m <= NEAR * np.nanmin(medians) for m in medians]
        header.append("error [least, most]")
        columns.append([f"**{cell}**" if bold else cell for cell, bold in zip(cells, near)])
        if "equal" in by_rule:
            equal = medians[columns[0].index("equal")]
            header.append("over equal")
            columns.append([f"{m / equal:.2f}" if equal else "" for m in medians])
    # Runs side by side slow each other, but hardly change the time that each has of the CPU.
    on_cpu = all(run.get("cpu_seconds") is not None for run in runs)
    clock, time = ("cpu_seconds", "CPU ms a step") if on_cpu else ("seconds", "ms a step")
    header += [time, "conflict", *(f"loss {name}" for name in runs[0]["losses"])]
    rows = [
        [
            f"{_median(1e3 * run[clock] / run['steps'] for run in of_rule):.1f}",
            f"{_median(_median(run['conflicts']) for run in of_rule):.2f}",
            *(f"{_median(r['losses'][n] for r in of_rule):.1e}" for n in runs[0]["losses"]),
        ]
        for of_rule in by_rule.values()
    ]
    return header, [[*first, *rest] for first, rest in zip(zip(*columns), rows)]


def _weights(by_rule: _ByRule) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the last weights."""
    names = [*next(iter(by_rule.values()))[0]["weights"]]
    rows = [
        [rule, *(f"{_median(run['weights'][name][-1] for run in of_rule):.3g}" for name in names)]
        for rule, of_rule in by_rule.items()
    ]
    return ["rule", *(f"weight {name}" for name in names)], rows


def _failures(failed: Sequence[Run]) -> list[str]:
    return [
        f"{rule}: {len(of_rule)} {'run' if len(of_rule) == 1 else 'runs'} failed, the first with "
        f"{of_rule[0][FAILED]}"
        for rule, of_rule in _by_rule(failed).items()
    ]


def _course(by_rule: _ByRule) -> Figure:
    """Errors, or without them losses, over the steps and over the seconds."""
    runs = [run for of_rule in by_rule.values() for run in of_rule]
    drawn: dict[str, Callable[[Run], Sequence[float]]] = {"error": _errors}
    if not _errors_are_known(runs):
        drawn = {f"loss {name}": _values_of("loss_curves", name) for name in runs[0]["losses"]}
    figure = _figure(9, 1 + 2.7 * len(drawn))
    panels = figure.subplots(len(drawn), 2, squeeze=False, sharex="col", sharey="row")
    for axes, (what, values) in zip(panels, drawn.items()):
        for axis, column in zip(axes, (0, 1)):
            draw(axis, by_rule, values, column)
            axis.set_yscale("log")
        axes[0].set_ylabel(what, parse_math=False)
    for axis, unit in zip(panels[-1], ("step", "seconds of training")):
        axis.set_xlabel(unit)
    _add_key(figure, panels[0, 0])
    return figure


def _details(by_rule: _ByRule) -> Figure:
    """A column for each loss, with the loss and its weight, and one for the conflict."""
    names = [*next(iter(by_rule.values()))[0]["losses"]]
    figure = _figure(3 * len(names) + 3, 5.5)
    panels = figure.subplots(2, len(names) + 1, sharex=True, squeeze=False)
    for axes, name in zip(panels.T, names):
        draw(axes[0], by_rule, _values_of("loss_curves", name))
        draw(axes[1], by_rule, _values_of("weights", name))
        axes[0].set_title(f"loss {name}", parse_math=False)
        axes[0].set_yscale("log")
        # Coefficients of a direction may be 0 or negative.
        above = all(
            min(run["weights"][name]) > 0 for of_rule in by_rule.values() for run in of_rule
        )
        scale = "log" if above else "linear"
        axes[1].set_title(f"weight {name}", parse_math=False)
        axes[1].set(yscale=scale, xlabel="step")
    conflict, empty = panels[:, -1]
    draw(conflict, by_rule, lambda run: run["conflicts"])
    conflict.axhline(0, color="gray", linewidth=0.8, linestyle=":")
    conflict.set(title="conflict", ylim=(-1.05, 1.05), xlabel="step")
    conflict.tick_params(labelbottom=True)
    empty.axis("off")
    _add_key(figure, conflict)
    return figure


def draw(
    axes: Axes,
    by_rule: _ByRule,
    values: Callable[[Run], Sequence[float]],
    column: int = 0,
) -> None:
    """A line for each rule over its moments: the median of its runs, with their range in shade.

    Args:
        axes: To draw on.
        by_rule: The runs of each rule. One without runs keeps its color.
        values: A number for each moment of a run.
        column: Of the curve: 0 for steps, 1 for seconds.
    """
    for number, (rule, runs) in enumerate(by_rule.items()):
        if not runs:
            continue
        shortest = min(len(run["curve"]) for run in runs)
        moments = np.median([[x[column] for x in run["curve"][:shortest]] for run in runs], axis=0)
        found = np.array([values(run)[:shortest] for run in runs], float)
        color = f"C{number}"
        # More than ten rules share the ten colors.
        style = ("-", "--", ":")[number // 10 % 3]
        axes.plot(moments, np.median(found, axis=0), style, color=color, linewidth=1.3, label=rule)
        if len(runs) > 1:
            low, high = found.min(axis=0), found.max(axis=0)
            axes.fill_between(moments, low, high, color=color, alpha=0.15, linewidth=0)
    axes.grid(alpha=0.25)


def _errors(run: Run) -> Sequence[float]:
    return [point[2] for point in run["curve"]]


def _values_of(what: str, loss: str) -> Callable[[Run], Sequence[float]]:
    return lambda run: run[what][loss]


def _add_key(figure: Figure, axes: Axes) -> None:
    lines, rules = axes.get_legend_handles_labels()
    legend = figure.legend(lines, rules, loc="outside lower center", ncols=min(6, len(rules)))
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may have dollars


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figure and page need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")
