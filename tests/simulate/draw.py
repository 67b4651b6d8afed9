"""Pictures of a recording, to be read at 800 pixels: who had which share, who waited how long, how busy the slots were.

Colours are Okabe and Ito's, which all readers can tell apart; no meaning is in a colour alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from tests.simulate import measure
from tests.simulate.measure import Which
from tests.simulate.recording import Recording
from tests.simulate.scenarios import Scenario

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
INK, FAINT = "#333333", "#BBBBBB"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}
STEPS = 150
"""Points of a line over time."""
WIDTH_IN, ROW_IN, DPI = 8.0, 2.7, 125
MOST_DOTS = 1500

Panel = Callable[[Axes, Recording], None]
Groups = dict[str, Which]


def draw(recording: Recording, scenario: Scenario, path: Path) -> None:
    """The kind of picture is that of the file's name: .png or .svg."""
    groups = scenario.groups(recording)
    wide: list[Panel] = []
    small: list[Panel] = [lambda axes, made: waits(axes, made, groups)]
    if scenario.tenants:
        wide.append(lambda axes, made: shares(axes, made, scenario.tenants))
    if scenario.refuses:
        wide.append(outcomes)
        small.append(predictions)
        wide.append(lambda axes, made: slots(axes, made, groups))
    elif scenario.tenants:
        small.append(lambda axes, made: slots(axes, made, groups))
    else:
        wide.append(lambda axes, made: slots(axes, made, groups))
    rows: list[Any] = [
        *([name, name] for name in map(str, range(len(wide)))),
        ["left", "right" if len(small) > 1 else "left"],
    ]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplot_mosaic(rows, figsize=(WIDTH_IN, ROW_IN * len(rows) + 0.4), layout="constrained")
        replicas = "1 scheduler" if recording.schedulers == 1 else f"{recording.schedulers} schedulers"
        figure.suptitle(f"{scenario.about[0].upper()}{scenario.about[1:]} ({replicas})", x=0.01, ha="left", fontsize=11)
        for name, panel in zip([*map(str, range(len(wide))), "left", "right"], [*wide, *small], strict=False):
            panel(axes[name], recording)
        figure.savefig(path, dpi=DPI, metadata={"Software": None} if path.suffix == ".png" else {"Date": None})
        plt.close(figure)


def shares(axes: Axes, recording: Recording, tenants: Sequence[str]) -> None:
    window = measure.contested(recording, tenants)
    step_s = max(2.0, recording.ended_s / STEPS)
    axes.axvspan(*window, color="#F2F2F2", lw=0)
    axes.annotate(
        "all of them have tasks that wait", (sum(window) / 2, 0.98), ha="center", va="top", fontsize=8, color="#666666"
    )
    times = [at * step_s for at in range(int(recording.ended_s / step_s))]
    smooth_s = 1.5 * step_s
    found = [measure.shares(recording, (t - smooth_s, t + smooth_s), tenants) for t in times]
    for place, tenant in enumerate(tenants):
        colour, one = COLOURS[place], [row[place] for row in found]
        worked = [
            (t, share.share) for t, share, row in zip(times, one, found, strict=True) if sum(s.tokens for s in row) > 0
        ]
        axes.plot(*zip(*worked, strict=True), color=colour, label=f"{tenant}, weight {one[0].weight:g}")
        axes.plot(window, [one[0].ideal] * 2, color=colour, ls=(0, (4, 3)), lw=1)
    axes.plot([], [], color=INK, ls=(0, (4, 3)), lw=1, label="by weight")
    axes.set(title="Share of the tokens", xlabel="time (s)", xlim=(0, recording.ended_s), ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(ncols=len(tenants) + 1, loc="lower center", bbox_to_anchor=(0.6, 1.0), borderpad=0)


def waits(axes: Axes, recording: Recording, groups: Groups) -> None:
    for place, (name, belongs) in enumerate(groups.items()):
        seconds = sorted(max(0.005, t.waited_s) for t in recording.told if t.waited_s is not None and belongs(t))
        if seconds:
            picked = seconds[:: max(1, len(seconds) // 2000)] + seconds[-1:]
            heights = [(at + 1) / len(picked) for at in range(len(picked))]
            axes.step(
                picked, heights, where="post", color=COLOURS[place], label=name, ls=("-", "--", "-.", ":")[place % 4]
            )
    axes.set(title="Waiting until the start", xlabel="at most so long (s)", ylim=(0, 1.02), xscale="log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel("of the tasks")
    axes.legend(loc="best")


def slots(axes: Axes, recording: Recording, groups: Groups) -> None:
    step_s = recording.ended_s / STEPS
    times = [(at + 0.5) * step_s for at in range(STEPS)]
    stacked = [measure.busy(recording, step_s, which=belongs)[:STEPS] for belongs in groups.values()]
    axes.stackplot(times, stacked, colors=COLOURS[: len(stacked)], labels=list(groups), lw=0, alpha=0.85, step="mid")
    there = measure.slots(recording, step_s)[:STEPS]
    axes.step(times, there, where="mid", color=INK, lw=1.2, label="there are")
    axes.set(title="Slots in use", xlabel="time (s)", xlim=(0, recording.ended_s), ylim=(0, max(there) * 1.25))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, ncols=len(labels), loc="upper left", handlelength=1, columnspacing=1)


def outcomes(axes: Axes, recording: Recording) -> None:
    """What became of the tasks, by when they came."""
    step_s = max(2.0, recording.ended_s / STEPS)
    kinds: Groups = {
        "completed": lambda task: task.state == "completed",
        "refused": lambda task: bool(task.refusal),
        "expired": lambda task: task.state == "expired",
    }
    stacked = []
    for belongs in kinds.values():
        counts = [0.0] * (int(recording.ended_s / step_s) + 1)
        for task in recording.told:
            counts[int(task.row.arrival_s / step_s)] += belongs(task) / step_s
        stacked.append(counts)
    times = [(at + 0.5) * step_s for at in range(len(stacked[0]))]
    axes.stackplot(times, stacked, colors=(COLOURS[5], COLOURS[1], COLOURS[3]), labels=list(kinds), lw=0, step="mid")
    axes.set(
        title="What came, and what became of it",
        xlabel="time (s)",
        ylabel="tasks a second",
        xlim=(0, recording.ended_s),
    )
    axes.set_ylim(0, max(map(sum, zip(*stacked, strict=True))) * 1.25)
    axes.legend(ncols=3, loc="upper right")


def predictions(axes: Axes, recording: Recording) -> None:
    pairs = [
        (t.eta_s, t.waited_s)
        for t in recording.told
        if not t.refusal and t.eta_s is not None and t.waited_s is not None
    ]
    pairs = pairs[:: max(1, len(pairs) // MOST_DOTS)]
    if pairs:
        most = max(max(pair) for pair in pairs) * 1.05
        axes.plot([0, most], [0, most], color=INK, lw=1, ls=(0, (4, 3)), label="as predicted")
        dots: Any = {"color": COLOURS[0], "alpha": 0.35, "lw": 0, "rasterized": True}
        axes.scatter([eta_s for eta_s, _ in pairs], [waited_s for _, waited_s in pairs], s=6, label="a task", **dots)
        axes.set(xlim=(0, most), ylim=(0, most))
    axes.set(title="Predicted and real wait", xlabel="predicted at submission (s)", ylabel="waited (s)")
    axes.legend(loc="lower right", markerscale=2)
