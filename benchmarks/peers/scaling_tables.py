"""The simulated steps of `benchmarks/scaling.py` as a table, in words and as a plot."""

from collections.abc import Mapping
from pathlib import Path

from peers import table
from peers.scaling_model import MODES, Mode, Step

ByDevices = Mapping[int, Mapping[Mode, Step]]
"""The best step of each mode, by the number of devices."""


def step_table(found: ByDevices) -> str:
    """A row for each number of devices: seconds of a step, the best split as ranks + servers, and its phases."""
    header = ["devices", "colocate s", "disaggregated s", "split", "ahead s", "split", "generate", "learn", "sync",
              "fastest", "x one device", "efficiency"]  # fmt: skip
    base = found[min(found)].get("colocate")
    rows = []
    for devices, steps in found.items():
        fastest = min(steps.values(), key=lambda each: each.total, default=None)
        cells = [f"{devices}", seconds(steps.get("colocate"))]
        for mode in ("disaggregated", "ahead"):
            cells += [seconds(steps.get(mode)), split(steps.get(mode))]
        cells += [f"{getattr(fastest, phase):.3g}" if fastest else "" for phase in ("generate", "learn", "sync")]
        speed = base.total / fastest.total if base is not None and fastest is not None else None
        cells += [fastest.mode if fastest else "none", "" if speed is None else f"{speed:.1f}"]
        cells.append("" if speed is None else f"{100 * speed * min(found) / devices:.0f} %")
        rows.append(cells)
    return table.markdown(header, rows) + "\n\ngenerate, learn and sync are the fastest mode's."


def where_each_wins(found: ByDevices) -> str:
    """A line for each mode: the numbers of devices at which it is the fastest."""
    winners = {n: min(steps.values(), key=lambda each: each.total).mode for n, steps in found.items() if steps}
    lines = []
    for mode in MODES:
        counts = ", ".join(str(devices) for devices, winner in winners.items() if winner == mode)
        lines.append(f"- {mode} is the fastest at {counts or 'none of these'}")
    return "\n".join(lines)


def seconds(found: Step | None) -> str:
    return "" if found is None else f"{found.total:.3g}"


def split(found: Step | None) -> str:
    return "" if found is None else f"{found.ranks} + {found.servers}"


def plot(found: Mapping[float, ByDevices], path: Path) -> None:
    """Seconds of a step over devices, both logarithmic, a panel for each speed of a device."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(6.5 * len(found), 5), layout="constrained", squeeze=False)
    for axes, (faster, by_devices) in zip(panels[0], found.items(), strict=True):
        for mode, marker in zip(MODES, "os^", strict=True):
            points = [(devices, steps[mode].total) for devices, steps in by_devices.items() if mode in steps]
            if points:
                axes.plot(*zip(*points, strict=True), marker=marker, label=mode)
        first = min(by_devices)
        if "colocate" in by_devices[first]:
            ideal = [by_devices[first]["colocate"].total * first / devices for devices in by_devices]
            axes.plot(list(by_devices), ideal, linestyle=":", color="grey", label="one device / N")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set(xlabel="devices", ylabel="seconds of a step (simulated)",
                 title="the device as measured" if faster == 1 else f"devices {faster:g} times as fast")  # fmt: skip
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
