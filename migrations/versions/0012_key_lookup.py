"""The look-up of a key returns rows as they are: a release that adds a column to the keys stops no running look-up.

Revision ID: 0012
Revises: 0011
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    _look_up("SELECT k FROM api_keys k WHERE k.prefix = wanted")  # one value, however many columns it has


def downgrade() -> None:
    _look_up("SELECT * FROM api_keys WHERE prefix = wanted")


def _look_up(query: str) -> None:
    op.execute(
        "CREATE OR REPLACE FUNCTION find_api_key(wanted text) RETURNS SETOF api_keys LANGUAGE sql STABLE SECURITY DEFINER"
        f" SET search_path = public, pg_temp AS $$ {query} $$"
    )
