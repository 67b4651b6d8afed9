"""What clients of the service send and get. It is the same before and after."""

from typing import Annotated

from pydantic import BaseModel, Field


class Series(BaseModel):
    sales: Annotated[list[float], Field(min_length=28, max_length=1500)]
    days: Annotated[int, Field(ge=1, le=60)] = 14


class Forecast(BaseModel):
    forecast: list[float]
    low: list[float]
    high: list[float]
