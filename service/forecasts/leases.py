"""Forecasts, as workers claim and hold them."""

from service.leased_rows import LeasedRows
from service.models import Forecast

FORECASTS = LeasedRows(Forecast)
