"""Dials, as workers claim and hold them."""

from service.leased_rows import LeasedRows
from service.models import Dial

DIALS = LeasedRows(Dial)
