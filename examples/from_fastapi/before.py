"""The service as such services begin: the handler calls the model.

uvicorn --app-dir examples/from_fastapi before:app --port 8000
"""

import contextlib
from collections.abc import AsyncIterator

from contract import Forecast, Series
from fastapi import FastAPI, HTTPException
from model import Forecaster

model = Forecaster()


@contextlib.asynccontextmanager
async def loaded(app: FastAPI) -> AsyncIterator[None]:
    model.load()
    yield


app = FastAPI(title="Forecasts", lifespan=loaded)


@app.post("/forecast")
def forecast(series: Series) -> Forecast:
    try:
        return Forecast(**model(series.model_dump()))
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
