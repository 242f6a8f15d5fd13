"""Where an update's trace and its latest attempt's span are found; null where nothing was traced.

Both columns are nullable and nobody else's: code of the release before goes on running over this schema.

Revision ID: 0006
Revises: 0005
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("updates", sa.Column("traceparent", sa.Text(), nullable=True))
    op.add_column("updates", sa.Column("attempt_traceparent", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("updates", "attempt_traceparent")
    op.drop_column("updates", "traceparent")
