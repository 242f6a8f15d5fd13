"""Forecasts: what an update would forget, told before it is trained."""
