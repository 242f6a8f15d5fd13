"""Graded scores for language models, guarded tasks, and strategy state apart from the adapter.

State is an artifact of its own so that an erasure can drop what was derived from the erased rows while the version
and its checksum stay.

Revision ID: 0003
Revises: 0002
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("scores", sa.Column("graded", sa.LargeBinary(), nullable=True))
    op.add_column(
        "scores",
        sa.Column("measures", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
    )
    op.add_column(
        "tasks", sa.Column("guarded", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("versions", sa.Column("state_sha256", sa.Text(), nullable=True))
    op.add_column("versions", sa.Column("state_bytes", sa.BigInteger(), nullable=True))
    op.execute("GRANT UPDATE (state_sha256, state_bytes) ON versions TO palimpsest_app")


def downgrade() -> None:
    op.execute("REVOKE UPDATE (state_sha256, state_bytes) ON versions FROM palimpsest_app")
    op.drop_column("versions", "state_bytes")
    op.drop_column("versions", "state_sha256")
    op.drop_column("tasks", "guarded")
    op.drop_column("scores", "measures")
    op.drop_column("scores", "graded")
