"""Which products a user will probably like: a factorisation of everybody's purchases, computed when a process loads it.

The purchases are made up, the same ones every time: each user has one of 20 tastes, and buys mostly what belongs to it, mostly
what is popular. A shop would read its own in `purchases` and leave the rest as it is.
"""

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD

USERS, PRODUCTS, TASTES = 100_000, 2_000, 20
PURCHASES = 20
"""Of a user, some of them the same product."""
FACTORS = 32
MOST = 100
"""Recommendations at once."""


def purchases() -> csr_matrix:
    """Users by products, 1 where a user has bought it. Product p belongs to the taste p % TASTES, and so does user u."""
    chance = np.random.default_rng(seed=7)
    users = np.repeat(np.arange(USERS), PURCHASES)
    popular = chance.random(users.size) ** 2  # small numbers are the popular products
    own_taste = (popular * (PRODUCTS // TASTES)).astype(int) * TASTES + users % TASTES
    any_taste = (popular * PRODUCTS).astype(int)
    bought = np.where(chance.random(users.size) < 0.8, own_taste, any_taste)
    matrix = csr_matrix((np.ones(users.size, np.float32), (users, bought)), shape=(USERS, PRODUCTS))
    matrix.data[:] = 1.0  # the same product twice counts once
    return matrix


class Recommender:
    """Called with a batch: one multiplication of matrices for all of it."""

    def load(self) -> None:
        self.bought = purchases()
        model = TruncatedSVD(FACTORS, random_state=7)
        self.users = model.fit_transform(self.bought).astype(np.float32)
        self.products = model.components_.astype(np.float32)

    def __call__(self, bodies: list[Any]) -> list[Any]:
        asked = [read(body) for body in bodies]
        valid = [each for each in asked if not isinstance(each, ValueError)]
        found = iter(self.best([user for user, _ in valid], [count for _, count in valid]))
        return [each if isinstance(each, ValueError) else next(found) for each in asked]

    def best(self, users: list[int], counts: list[int]) -> list[Any]:
        scores = self.users[users] @ self.products
        scores[self.bought[users].nonzero()] = -np.inf
        ranked = np.argsort(-scores, axis=1)[:, :MOST]
        return [
            {
                "user": f"u-{user:06}",
                "products": [
                    {"id": f"p-{p:04}", "score": round(float(scores[row, p]), 4)} for p in ranked[row, :count]
                ],
            }
            for row, (user, count) in enumerate(zip(users, counts, strict=True))
        ]


def read(body: Any) -> tuple[int, int] | ValueError:
    """(user, count); an error returned for one body is the answer to it, and the others of its batch go on."""
    name, count = body.get("user"), body.get("n", 10)
    number = name.removeprefix("u-") if isinstance(name, str) else ""
    if not number.isdecimal() or int(number) >= USERS:
        return ValueError(f"user is {name!r}: expected u-000000 to u-{USERS - 1:06}")
    if not isinstance(count, int) or not 1 <= count <= MOST:
        return ValueError(f"n is {count!r}: expected 1 to {MOST}")
    return int(number), count
