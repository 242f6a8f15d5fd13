"""The API may cancel forecasts, and change nothing else of them.

Revision ID: 0018
Revises: 0017
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

CHANGED = "state, finished_at, worker, lease_expires_at, next_attempt_at"


def upgrade() -> None:
    op.execute(f"GRANT UPDATE ({CHANGED}) ON forecasts TO palimpsest_app")


def downgrade() -> None:
    # The release before knows no such state and could not show the row.
    error = '{"code": "cancelled", "message": "It was cancelled."}'
    op.execute(f"UPDATE forecasts SET state = 'failed', error = '{error}' WHERE state = 'cancelled'")
    op.execute(f"REVOKE UPDATE ({CHANGED}) ON forecasts FROM palimpsest_app")
