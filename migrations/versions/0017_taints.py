"""Workers see which versions erasures have tainted, and nothing else of an erasure.

Revision ID: 0017
Revises: 0016
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.execute("GRANT SELECT (tenant_id, model_id, versions) ON erasures TO palimpsest_worker")


def downgrade() -> None:
    op.execute("REVOKE SELECT (tenant_id, model_id, versions) ON erasures FROM palimpsest_worker")
