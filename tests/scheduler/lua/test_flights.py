"""Tasks that ask the same, moved at random by every script: all of them end, and each with an answer that it may have."""

import random

import pytest

from services.inference.scripts import Owner, start
from services.scheduler.scripts import dispatch, due, reap
from shared.bus.client import Bus
from shared.cancel import cancel
from shared.lifecycle import Lane, State
from tests.support import cached, tasks
from tests.support.cached import DIGEST, OTHER
from tests.support.tasks import CONFIG, LIMITS, SHARD

STEPS = 150


class Life:
    """One shard, one worker, and whatever comes."""

    def __init__(self, bus: Bus, owner: Owner, chance: random.Random) -> None:
        self.bus, self.owner, self.chance = bus, owner, chance
        self.asked: dict[str, str] = {}
        """The digest of each task."""
        self.runs = 0

    async def step(self) -> None:
        steps = (
            [self.ask] * 6 + [self.arrive] * 3 + [self.run_one] * 3 + [self.cancel_one, self.expire_one, self.lose_one]
        )
        await self.chance.choice(steps)()

    async def ask(self) -> None:
        digest = self.chance.choice([DIGEST, DIGEST, OTHER])
        wish, lane = self.chance.choice(["use", "use", "refresh"]), self.chance.choice(list(Lane))
        self.asked[await cached.asked(self.bus, digest=digest, wish=wish, lane=lane, session="s")] = digest

    async def arrive(self) -> None:
        await cached.arrive(self.bus)

    async def run_one(self) -> None:
        await dispatch(self.bus, SHARD, CONFIG, 1)
        for hand in await tasks.hands(self.bus, self.owner):
            await start(self.bus, self.owner, [hand])
            state = self.chance.choice([State.COMPLETED, State.COMPLETED, State.FAILED])
            self.runs += 1
            chunks = self.chance.choice([0, 2])
            await cached.end(self.bus, self.owner, hand, result=b'"%d"' % self.runs, chunks=chunks, state=state)

    async def cancel_one(self) -> None:
        if self.asked:
            await cancel(self.bus, SHARD, LIMITS, [self.chance.choice(list(self.asked))])

    async def expire_one(self) -> None:
        id = self.chance.choice([*self.asked, ""])
        if id and await self.bus.commands.call("ZSCORE", SHARD.expiry, id) is not None:
            await self.bus.commands.call("ZADD", SHARD.expiry, 1, id)
            await due(self.bus, SHARD, LIMITS)

    async def lose_one(self) -> None:
        """Its worker is silent for too long, and then comes back."""
        await dispatch(self.bus, SHARD, CONFIG, 1)
        for hand in await tasks.hands(self.bus, self.owner):
            await start(self.bus, self.owner, [hand])
            await self.bus.commands.call("HSET", SHARD.task(hand.id), "crashes", 0)
            await self.bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
            await reap(self.bus, SHARD, LIMITS)
        await self.bus.commands.call("XTRIM", SHARD.work(self.owner.worker), "MAXLEN", 0)
        await self.bus.commands.call("DEL", SHARD.held)

    async def finish(self) -> None:
        """Until nothing more happens by itself."""
        for _ in range(len(self.asked) + 1):
            await self.arrive()
            await self.run_one()

    async def check(self) -> None:
        """Who follows has a leader that has not ended, or an entry in `in` that will see to it."""
        seen_to = {digest for digest, _ in await cached.lead_entries(self.bus)}
        for digest in {DIGEST, OTHER} - seen_to:
            if followers := await self.bus.commands.call("ZRANGE", SHARD.followers(digest), 0, -1):
                leader = await self.bus.commands.call("GET", SHARD.flight(digest))
                assert leader is not None
                assert leader not in followers
                assert await cached.states(self.bus, [leader.decode()]) in (["pending"], ["processing"])

    async def check_end(self) -> None:
        for id, digest in self.asked.items():
            fields = await tasks.fields(self.bus, id)
            assert State(fields["state"]).terminal, fields
            assert "follows" not in fields or fields["state"] != "failed", "who follows does not run"
            if "served_from" in fields:
                source = await tasks.fields(self.bus, fields["served_from"])
                assert (source["state"], source["result"]) == ("completed", fields["result"])
                assert self.asked[fields["served_from"]] == digest
                if fields["cache"].endswith("refresh"):
                    assert int(source["finished_at_ms"]) >= int(fields["created_at_ms"]), "it had asked for a new one"
        left = [SHARD.flight(DIGEST), SHARD.flight(OTHER), SHARD.followers(DIGEST), SHARD.followers(OTHER)]
        left += [SHARD.expiry, SHARD.waiting, SHARD.leases, SHARD.later, *SHARD.turns]
        assert [key for key in left if await self.bus.commands.call("EXISTS", key)] == []


@pytest.mark.parametrize("seed", range(12))
async def test_all_end_and_nothing_is_left(bus: Bus, seed: int) -> None:
    life = Life(bus, await tasks.worker(bus, slots=100), random.Random(seed))
    for _ in range(STEPS):
        await life.step()
        await life.check()
    await life.finish()
    await life.check_end()
    assert 0 < life.runs < len(life.asked)
