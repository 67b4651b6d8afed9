"""Rates of tenants and keys, as a submitter meets them."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus.client import Bus
from shared.config import Config
from shared.errors import RateLimited, TokenRateLimited, TokensOverLimit, WrongKeyType
from shared.keys import METERED, quota
from shared.lifecycle import Lane
from shared.messages import Task
from shared.policy import EVERYBODY, Key, Live, Policy, Tenant
from shared.quota import Quotas, Window, overdue, request_window, windows_of
from tests.support import tasks
from tests.support.redis import spoil
from tests.support.server import starving

DIGEST = "0" * 64


def config(**named: Tenant) -> Config:
    tenants = {name.replace("everybody", EVERYBODY): tenant for name, tenant in named.items()}
    keys = {
        "slow": Key(tenant="acme", sha256=DIGEST, requests_per_s=0.001),
        "small": Key(tenant="acme", sha256=DIGEST, tokens_per_min=50),
        "free": Key(tenant="acme", sha256=DIGEST),
    }
    return Config(pools=tasks.CONFIG.pools, live=Live(Policy(tenants=tenants, keys=keys)))


def task(tenant: str = "acme", *, lane: Lane = Lane.NORMAL, key: str = "") -> Task:
    return Task(route="/v1/completions", model=tasks.MODEL, tenant=tenant, lane=lane, key=key)


@given(st.floats(min_value=0.001, max_value=1e5))
def test_requests_of_any_rate_fit_their_span_exactly(per_s: float) -> None:
    window = request_window(per_s)
    assert window.limit >= 1
    assert window.length_ms >= 1000
    assert 1000 * window.limit / window.length_ms <= per_s < 1000 * window.limit / (window.length_ms - 1)
    assert window.width_ms * 50 >= window.length_ms


def test_a_rate_of_zero_is_no_limit() -> None:
    assert [window.limit for window in windows_of(Tenant(), Tenant(tokens_per_min=5))] == [0, 0, 0, 5]
    assert windows_of(Tenant(requests_per_s=20, tokens_per_min=9)) == [Window(20, 1000, 20), Window(9, 60_000, 1000)]


def test_rates_hold_for_tenants_and_keys_in_all_lanes_but_batch() -> None:
    none: Bus = None  # type: ignore[assignment]
    quotas = Quotas(none, config(acme=Tenant(requests_per_s=1), beta=Tenant(weight=2)))
    assert quotas.limits(task())
    assert quotas.limits(task(lane=Lane.INTERACTIVE))
    assert not quotas.limits(task(lane=Lane.BATCH))
    assert not quotas.limits(task("beta"))
    assert not quotas.limits(task("unknown"))
    assert Quotas(none, config(everybody=Tenant(tokens_per_min=1))).limits(task("unknown"))
    only_keys = Quotas(none, config())
    assert [only_keys.limits(task(key=key)) for key in ("slow", "small", "free", "gone", "")] == [True, True] + [
        False
    ] * 3


async def test_a_task_is_reserved_once(bus: Bus) -> None:
    quotas = Quotas(bus, config(acme=Tenant(tokens_per_min=1000)))
    assert [await quotas.take(task(), "t1", 100) for _ in range(2)] == [True, False]
    assert await Quotas(bus, config(acme=Tenant(tokens_per_min=1000))).take(task(), "t1", 100) is False
    assert await quotas.take(task("other"), "t2", 100) is False
    assert await bus.commands.call("HKEYS", quota("acme", "reserved")) == [b"t1"]


async def test_a_refusal_says_whose_limit_how_much_is_used_and_when_to_come_again(bus: Bus) -> None:
    quotas = Quotas(bus, config(acme=Tenant(requests_per_s=0.01, tokens_per_min=100)))
    await quotas.take(task(), "t1", 80)
    with pytest.raises(RateLimited) as caught:
        await quotas.take(task(), "t2", 10)
    error = caught.value
    assert (error.status, error.body.code, error.body.type) == (429, "rate_limit_requests", "rate_limit_error")
    assert "The tenant acme has used 1 of 1 requests in 100 s (requests_per_s = 0.01)." in str(error)
    assert error.retry_after_s is not None
    assert 90 < error.retry_after_s <= 102
    assert f"Try again in {error.retry_after_s} s." in str(error)


async def test_a_refusal_for_its_tokens_has_a_code_of_its_own(bus: Bus) -> None:
    quotas = Quotas(bus, config(acme=Tenant(tokens_per_min=100)))
    await quotas.take(task(), "t1", 80)
    with pytest.raises(TokenRateLimited, match="80 of 100 tokens in 60 s") as caught:
        await quotas.take(task(), "t2", 30)
    assert caught.value.body.code == "rate_limit_tokens"
    assert 1 <= (caught.value.retry_after_s or 0) <= 61


async def test_a_key_that_is_over_its_own_limit_is_named(bus: Bus) -> None:
    quotas = Quotas(bus, config(acme=Tenant(tokens_per_min=1000)))
    await quotas.take(task(key="slow"), "t1", 10)
    with pytest.raises(RateLimited, match="The API key slow"):
        await quotas.take(task(key="slow"), "t2", 10)
    assert await quotas.take(task(key="free"), "t3", 10)


async def test_what_can_never_be_met_is_no_reason_to_try_again(bus: Bus) -> None:
    quotas = Quotas(bus, config(acme=Tenant(tokens_per_min=100)))
    for asked, who in ((task(), "The tenant acme"), (task(key="small"), "The API key small")):
        with pytest.raises(TokensOverLimit, match="can never be accepted") as caught:
            await quotas.take(asked, "t1", 101 if not asked.key else 51)
        assert (caught.value.status, caught.value.retry_after_s) == (400, None)
        assert who in str(caught.value)
        with pytest.raises(TokensOverLimit):
            quotas.check(asked, 101 if not asked.key else 51)
    quotas.check(task(), 100)
    quotas.check(task(lane=Lane.BATCH), 10_000)


async def test_what_was_settled_can_be_taken_again(bus: Bus) -> None:
    quotas = Quotas(bus, config(acme=Tenant(tokens_per_min=100)))
    for number in range(5):
        assert await quotas.take(task(), f"t{number}", 100)
        await quotas.settle("acme", f"t{number}", 0)
        await quotas.settle("acme", f"t{number}", 0)
    await quotas.settle("nobody", "t1", 5)


async def test_submitters_at_once_get_as_much_as_there_is_and_share_few_calls(bus: Bus) -> None:
    quotas = Quotas(bus, config(acme=Tenant(tokens_per_min=1000)))
    await bus.commands.call("CONFIG", "RESETSTAT")
    calls = [quotas.take(task(), f"t{number}", 10) for number in range(200)]
    verdicts = await asyncio.gather(*calls, return_exceptions=True)
    assert verdicts.count(True) == 100
    assert sum(isinstance(verdict, TokenRateLimited) for verdict in verdicts) == 100
    info = (await bus.commands.call("INFO", "commandstats")).decode()
    assert "cmdstat_evalsha:calls=2," in info or "cmdstat_evalsha:calls=3," in info


async def test_nothing_is_kept_for_tenants_that_nobody_waits_for(bus: Bus) -> None:
    quotas = Quotas(bus, config(everybody=Tenant(tokens_per_min=1000)))
    for number in range(20):
        await quotas.take(task(f"tenant{number}"), "t1", 10)
        await quotas.settle(f"tenant{number}", "t1", 10)
    await asyncio.sleep(0)  # the last sender ends
    assert (len(quotas._taking), len(quotas._settling)) == (0, 0)


async def test_a_reload_holds_from_the_next_task_on(bus: Bus) -> None:
    held = config(acme=Tenant(tokens_per_min=100))
    quotas = Quotas(bus, held)
    await quotas.take(task(), "t1", 100)
    held.live.policy = msgspec.structs.replace(held.policy, tenants={"acme": Tenant(tokens_per_min=150)})
    assert await quotas.take(task(), "t2", 50)
    held.live.policy = Policy()
    assert not await quotas.take(task(), "t3", 5000)


async def test_a_tenant_that_has_reservations_is_noted_for_the_sweep(bus: Bus) -> None:
    quotas = Quotas(bus, config(everybody=Tenant(tokens_per_min=100)))
    for number in range(3):
        await quotas.take(task("acme"), f"t{number}", 1)
    await quotas.take(task("beta"), "t9", 1)
    assert sorted(await bus.commands.call("ZRANGE", METERED, 0, -1)) == [b"acme", b"beta"]
    assert await overdue(bus, "acme", 2**50, 2) == ["t0", "t1"]
    assert await overdue(bus, "acme", 1, 2) == []


async def test_a_full_redis_keeps_no_task_from_its_quota(bus: Bus) -> None:
    """Tasks that wait for their turn must drain."""
    quotas = Quotas(bus, config(acme=Tenant(tokens_per_min=100)))
    async with starving(bus):
        assert await quotas.take(task(), "t1", 60)
        await quotas.settle("acme", "t1", 10)
        assert await quotas.take(task(), "t2", 90)


async def test_a_foreign_key_is_named(bus: Bus) -> None:
    await spoil(bus, quota("acme", "tokens"))
    with pytest.raises(WrongKeyType, match="remove it"):
        await Quotas(bus, config(acme=Tenant(tokens_per_min=100))).take(task(), "t1", 60)
