"""Which model a user gets: in the shares that were asked for, always the same one, and moved as rarely as can be."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import Pool
from shared.errors import ModelNotFound
from shared.policy import Alias, Policy, Shadow, Target
from shared.routing import Branch, Casting, Choice, choose, draw, names, title, uniform

USERS = [f"user-{number}" for number in range(4000)]
POOLS = {name: Pool(model=f"model-{name}", engine="echo") for name in "abc"}

weights = st.lists(st.sampled_from([0.1, 1.0, 2.0, 3.0, 10.0]), min_size=2, max_size=5)


def targets(given: list[float]) -> list[Target]:
    return [Target(model=f"m{number}", weight=weight) for number, weight in enumerate(given)]


def policy(**alias: object) -> Policy:
    return Policy(aliases={"chat": Alias(**alias)})  # type: ignore[arg-type]


# -- the draw


@settings(max_examples=30)
@given(weights)
def test_users_are_spread_by_weight(given_weights: list[float]) -> None:
    """Six standard deviations: no run in a million is so far off if the shares are right."""
    drawn = Counter(draw(targets(given_weights), "chat", user).model for user in USERS)
    for number, weight in enumerate(given_weights):
        share = weight / sum(given_weights)
        tolerance = 6 * (share * (1 - share) / len(USERS)) ** 0.5
        assert abs(drawn[f"m{number}"] / len(USERS) - share) < tolerance


@given(weights, st.text(), st.randoms())
def test_a_user_gets_the_same_target_whatever_the_order_of_the_targets(
    given_weights: list[float], user: str, random: object
) -> None:
    first = targets(given_weights)
    again = targets(given_weights)
    random.shuffle(again)  # type: ignore[attr-defined]
    assert draw(first, "chat", user) == draw(again, "chat", user)


@given(weights, st.data(), st.sampled_from([0.2, 0.5, 2.0, 7.0]))
def test_a_changed_weight_moves_users_only_to_that_target_or_only_away_from_it(
    given_weights: list[float], data: st.DataObject, factor: float
) -> None:
    changed = data.draw(st.integers(0, len(given_weights) - 1))
    after = [weight * factor if number == changed else weight for number, weight in enumerate(given_weights)]
    for user in USERS[:200]:
        old, new = (draw(targets(each), "chat", user).model for each in (given_weights, after))
        if old != new:
            assert (new if factor > 1 else old) == f"m{changed}"


@given(weights)
def test_a_target_that_goes_moves_only_its_own_users(given_weights: list[float]) -> None:
    before, after = targets(given_weights), targets(given_weights)[:-1]
    for user in USERS[:200]:
        old = draw(before, "chat", user).model
        assert old == before[-1].model or draw(after, "chat", user).model == old


def test_as_few_users_move_as_the_shares_allow() -> None:
    """From 9:1 to 8:2 a tenth must move, and no more than that does."""
    moved = sum(
        draw(targets([9, 1]), "chat", user).model != draw(targets([8, 2]), "chat", user).model for user in USERS
    )
    assert 0.08 < moved / len(USERS) < 0.12


def test_groups_of_two_aliases_do_not_coincide() -> None:
    both = Counter(
        (draw(targets([1, 1]), "one", user).model, draw(targets([1, 1]), "two", user).model) for user in USERS
    )
    assert len(both) == 4
    assert min(both.values()) > 0.2 * len(USERS)


@given(st.lists(st.text(), min_size=1))
def test_the_number_of_a_user_lies_between_0_and_1(parts: list[str]) -> None:
    assert 0 < uniform(*parts) < 1


def test_two_names_that_join_alike_are_two_names() -> None:
    assert uniform("a", "bc") != uniform("ab", "c")


# -- the choice


def test_a_model_is_what_it_is() -> None:
    assert choose(Policy(), POOLS, "model-b", "u") == Choice("model-b", "", "b")


def test_an_adapter_goes_to_the_pool_of_its_model() -> None:
    pools = {"a": Pool(model="m", adapters=["poet"]), "b": Pool(model="n")}
    assert choose(Policy(), pools, "poet", "u") == Choice("poet", "", "a")
    assert list(names(Policy(), pools)) == ["m", "poet", "n"]


def test_what_nobody_serves_is_refused_with_all_names() -> None:
    with pytest.raises(ModelNotFound, match="Served here: model-a, model-b, model-c, chat"):
        choose(policy(targets=[Target(model="model-a")]), POOLS, "gpt-9", "u")


def test_an_alias_names_the_model_its_pool_and_the_branch() -> None:
    split = policy(targets=[Target(model="model-a", variant="canary")])
    assert choose(split, POOLS, "chat", "u") == Choice("model-a", "canary", "a")
    plain = policy(targets=[Target(model="model-a")])
    assert choose(plain, POOLS, "chat", "u").variant == "model-a"


def test_an_alias_goes_before_a_model_of_its_name() -> None:
    split = Policy(aliases={"model-a": Alias(targets=[Target(model="model-b")])})
    assert choose(split, POOLS, "model-a", "u").model == "model-b"
    assert list(names(split, POOLS)) == ["model-a", "model-b", "model-c"]


def test_without_a_user_every_request_draws_anew() -> None:
    split = policy(targets=[Target(model="model-a"), Target(model="model-b")])
    assert len({choose(split, POOLS, "chat", "").model for _ in range(100)}) == 2
    assert len({choose(split, POOLS, "chat", "u").model for _ in range(100)}) == 1


def test_fallbacks_are_the_others_in_their_order_each_once() -> None:
    split = policy(
        targets=[Target(model="model-a"), Target(model="model-c", weight=1e-9, variant="old")],
        fallbacks=["model-a", "model-c", "model-b", "model-c"],
    )
    choice = choose(split, POOLS, "chat", "u")
    assert choice.fallbacks == (Branch("model-c", "old", "c"), Branch("model-b", "model-b", "b"))


def test_a_shadow_gets_its_share_of_the_users_and_always_the_same_ones() -> None:
    split = policy(targets=[Target(model="model-a")], shadow=Shadow(model="model-b", share=0.2))
    cast = [choose(split, POOLS, "chat", user).shadow for user in USERS]
    assert {each for each in cast if each is not None} == {Casting("model-b", "b", "shadow")}
    assert 0.17 < sum(each is not None for each in cast) / len(USERS) < 0.23
    assert cast == [choose(split, POOLS, "chat", user).shadow for user in USERS]
    whole = policy(targets=[Target(model="model-a")], shadow=Shadow(model="model-b"))
    assert all(choose(whole, POOLS, "chat", user).shadow for user in USERS[:100])


def test_a_growing_share_keeps_the_shadows_it_has() -> None:
    kept = [
        {user for user in USERS if choose(policy(targets=[Target(model="model-a")],
         shadow=Shadow(model="model-b", share=share)), POOLS, "chat", user).shadow}
        for share in (0.1, 0.3, 0.9)
    ]  # fmt: skip
    assert all(less < more for less, more in pairwise(kept))


def test_a_variant_without_a_name_is_called_as_its_model() -> None:
    assert [title(target) for target in (Target(model="m"), Target(model="m", variant="v"))] == ["m", "v"]
