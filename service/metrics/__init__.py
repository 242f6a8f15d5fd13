"""Prometheus metrics of the API process and of what the database knows."""
