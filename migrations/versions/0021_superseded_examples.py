"""An index of superseded examples: a replay buffer passes them over without reading the rows of all the others.

Making it reads `examples` once (a second per few million rows); ingest waits meanwhile, reads go on.

Revision ID: 0021
Revises: 0020
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0021"
down_revision: str | None = "0020"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_index(
        "ix_examples_superseded",
        "examples",
        ["tenant_id", "id"],
        postgresql_include=["superseded_batch"],
        postgresql_where=sa.text("superseded_batch IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_examples_superseded", "examples")
