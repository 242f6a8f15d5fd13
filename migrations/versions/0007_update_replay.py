"""How an update rehearses: `{"boost": "none"}` where it was not asked for otherwise.

The default is the database's: code of the release before goes on inserting updates without it.

Revision ID: 0007
Revises: 0006
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("updates", sa.Column("replay", JSONB(), server_default='{"boost": "none"}', nullable=False))


def downgrade() -> None:
    op.drop_column("updates", "replay")
