"""An index of superseded examples: a replay buffer passes them over without reading the rows of all the others.

Only adds an index: the release before runs on over it. Making it reads the whole of `examples`; all writes of examples wait
meanwhile, reads go on. Where that takes too long, make it before, by the statement below with CREATE INDEX CONCURRENTLY:

    CREATE INDEX ix_examples_superseded ON examples (tenant_id, id) INCLUDE (superseded_batch)
    WHERE superseded_batch IS NOT NULL

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
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_index("ix_examples_superseded", "examples")
