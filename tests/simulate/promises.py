"""What must be true of a run: Headrace's promises, as far as a simulation can keep or break them."""

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from shared.lifecycle import Lane, State
from tests.simulate import measure
from tests.simulate.measure import Which
from tests.simulate.recording import Recording

TENANTS = ("gold", "silver", "bronze")
WITHIN = 0.10
"""Of its ideal share: what Headrace promises."""


class Check(Struct, frozen=True):
    what: str
    ok: bool
    found: str


def all_done(recording: Recording) -> Check:
    found = measure.states(recording)
    done = found.get(State.COMPLETED, 0)
    ok = found.keys() <= {State.COMPLETED}
    return Check(
        "every task that was accepted is completed",
        ok,
        ", ".join(f"{n} {state}" for state, n in found.items()) or str(done),
    )


def nothing_left(recording: Recording) -> Check:
    return Check(
        "drained is empty: no slot, lease or count is left over",
        not recording.left,
        ", ".join(recording.left) or "nothing",
    )


def fair(recording: Recording, tenants: Sequence[str], *, least_s: float = 30.0) -> list[Check]:
    """Over the window in which all of them had tasks that waited."""
    window = measure.contested(recording, tenants)
    long = window[1] - window[0] >= least_s
    shares = measure.shares(recording, window, tenants)
    worst = max(shares, key=lambda share: abs(share.error))
    return [
        Check("the window is long enough to judge", long, f"{window[0]:.0f} s to {window[1]:.0f} s"),
        Check(
            f"shares of tokens within {WITHIN:.0%} of the weights",
            abs(worst.error) <= WITHIN,
            ", ".join(f"{share.tenant} {share.share:.1%} for {share.ideal:.1%}" for share in shares),
        ),
    ]


def work_conserving(recording: Recording, least: float = 0.95) -> Check:
    used = measure.utilisation(recording)
    return Check(f"slots at least {least:.0%} in use while tasks wait", used >= least, f"{used:.1%}")


def weights(recording: Recording) -> list[Check]:
    return [*fair(recording, TENANTS), all_done(recording), nothing_left(recording), work_conserving(recording)]


def coming_back(recording: Recording) -> list[Check]:
    """Gold comes while the others have queued for long."""
    began_s = measure.contested(recording, TENANTS)[0]
    runs_s = max(stint.ended_s - stint.began_s for stint in recording.stints)
    first = next(t for t in recording.told if t.row.tenant == "gold" and t.row.arrival_s >= began_s - 0.01)
    gold = measure.shares(recording, (began_s + runs_s, began_s + runs_s + 20), TENANTS)[0]
    return [
        *weights(recording),
        Check(
            "whoever comes waits for a slot, not for its turn",
            first.waited_s is not None and first.waited_s <= runs_s,
            f"{first.waited_s or 0:.2f} s; a task runs {runs_s:.1f} s",
        ),
        Check(
            "in its first 20 s it gets its share, and no more",
            abs(gold.error) <= WITHIN,
            f"{gold.share:.1%} for {gold.ideal:.1%}",
        ),
    ]


def overtaking(recording: Recording) -> list[Check]:
    behind = measure.overtaken(recording)
    return [
        Check(
            "a waiting interactive task gets the next slot, whatever else waits",
            max(behind) <= 1,
            f"of {len(behind)} that came alone, {sum(behind)} times another task started before; at worst {max(behind)}",
        ),
        all_done(recording),
        nothing_left(recording),
    ]


def by_demand(recording: Recording) -> dict[str, Which]:
    counts = Counter(task.row.tenant for task in recording.told)
    return {
        "tenants of 1 to 3 tasks": lambda task: counts[task.row.tenant] <= 3,
        "of 4 to 100 tasks": lambda task: 3 < counts[task.row.tenant] <= 100,
        "of more than 100 tasks": lambda task: counts[task.row.tenant] > 100,
    }


def starving(recording: Recording) -> list[Check]:
    few, _, many = (measure.waits(recording, which)[Lane.NORMAL] for which in by_demand(recording).values())
    return [
        Check(
            "who asks for little waits little: p95 below a quarter of that of the others",
            few.p95_s <= many.p95_s / 4,
            f"{few.p95_s:.2f} s, of the others {many.p95_s:.2f} s",
        ),
        Check(
            "nobody starves: the longest wait of those is below the p95 of the others",
            few.longest_s <= many.p95_s,
            f"{few.longest_s:.2f} s",
        ),
        all_done(recording),
        nothing_left(recording),
        work_conserving(recording),
    ]


def dying(recording: Recording) -> list[Check]:
    return [all_done(recording), nothing_left(recording), *fair(recording, TENANTS)]


def overload(recording: Recording) -> list[Check]:
    found, refused = measure.states(recording), measure.refusals(recording)
    return [
        Check(
            "every task that was accepted ends",
            found.keys() <= {State.COMPLETED, State.EXPIRED},
            ", ".join(f"{count} {state}" for state, count in found.items()),
        ),
        Check(
            "what cannot be done in time is refused at the door",
            refused.get("late", 0) > 0,
            f"{refused.get('late', 0)} tasks",
        ),
        nothing_left(recording),
    ]
