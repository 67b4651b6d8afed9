"""What a run says in the end, as text."""

from collections.abc import Sequence

from shared.lifecycle import State
from tests.simulate import measure
from tests.simulate.promises import Check
from tests.simulate.recording import Recording


def text(recording: Recording, tenants: Sequence[str], checks: Sequence[Check]) -> str:
    lines = [*_head(recording), *_shares(recording, tenants), *_waits(recording), *_slots(recording), *_etas(recording)]
    for check in checks:
        lines.append(f"  {'kept  ' if check.ok else 'BROKEN'}  {check.what}: {check.found}")
    return "\n".join(lines)


def _head(recording: Recording) -> list[str]:
    states = ", ".join(f"{count} {state}" for state, count in measure.states(recording).items())
    refused = ", ".join(f"{count} {why}" for why, count in measure.refusals(recording).items())
    calls = sum(recording.counts.get(name, 0) for name in ("submit", "admit", "dispatch", "start", "finish", "beat"))
    lines = [
        f"  {recording.ended_s:.0f} s in {recording.took_s:.1f} s, seed {recording.seed}, schedulers {recording.schedulers}, {calls} calls",
        f"  tasks         {len(recording.told)}: {states}" + (f"; refused: {refused}" if refused else ""),
    ]
    if lost := sum(not stint.counted for stint in recording.stints):
        wasted = sum(stint.tokens for stint in recording.stints if not stint.counted)
        total = sum(stint.tokens for stint in recording.stints)
        faults = ", ".join(
            f"{recording.counts[kind]} {kind}" for kind in ("dies", "silent") if kind in recording.counts
        )
        lines.append(f"  broken off    {lost} runs, {wasted / total:.1%} of all tokens; workers: {faults or 'none'}")
    return lines


def _shares(recording: Recording, tenants: Sequence[str]) -> list[str]:
    if not tenants:
        return []
    window = measure.contested(recording, tenants)
    if window[0] == window[1]:
        return []
    lines = [
        f"  contested from {window[0]:.0f} s to {window[1]:.0f} s",
        "    tenant    weight      tokens   share   ideal   error",
    ]
    for one in measure.shares(recording, window, tenants):
        lines.append(
            f"    {one.tenant:9} {one.weight:6g} {one.tokens:11.0f} {one.share:7.1%} {one.ideal:7.1%} {one.error:+7.1%}"
        )
    return lines


def _waits(recording: Recording) -> list[str]:
    lines = ["  waited (s)      tasks      p50      p95      p99  longest"]
    for lane, one in measure.waits(recording).items():
        lines.append(
            f"    {lane:11} {one.count:7} {one.p50_s:8.2f} {one.p95_s:8.2f} {one.p99_s:8.2f} {one.longest_s:8.2f}"
        )
    return lines


def _slots(recording: Recording) -> list[str]:
    always, waiting = measure.utilisation(recording, (0.0, recording.ended_s)), measure.utilisation(recording)
    return [f"  slots in use  {always:.1%} of the time, {waiting:.1%} while tasks waited"]


def _etas(recording: Recording) -> list[str]:
    etas = measure.etas(recording)
    if etas is None:
        return []
    late = sum(task.state is State.EXPIRED for task in recording.told)
    errors = f"error p50 {etas.median_s:.2f} s, p90 {etas.p90_s:.2f} s, mean {etas.bias_s:+.2f} s"
    return [f"  predictions   {etas.count}; {errors}; {etas.close:.0%} within 1 s or a quarter; {late} tasks expired"]
