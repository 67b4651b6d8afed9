"""What the workers of Headrace call: the model, behind the check that FastAPI makes of a body."""

from typing import Any

import model
from contract import Series


class Forecaster(model.Forecaster):
    """So clients may also come without the service. What pydantic finds is a ValueError, and that is a 400 with its words."""

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        return super().__call__(Series.model_validate(body).model_dump())
