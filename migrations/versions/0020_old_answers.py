"""Sweeps delete old answers to requests with an Idempotency-Key; an erasure takes row errors out of those that stay.

Revision ID: 0020
Revises: 0019
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0020"
down_revision: str | None = "0019"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

WORKER = "SELECT (tenant_id, key, created_at), DELETE ON idempotency_keys"
APP = "UPDATE (body) ON idempotency_keys"


def upgrade() -> None:
    op.execute(f"GRANT {APP} TO palimpsest_app")
    op.execute(f"GRANT {WORKER} TO palimpsest_worker")
    op.execute(
        "CREATE POLICY every_tenant ON idempotency_keys TO palimpsest_worker"
        " USING (current_setting('palimpsest.tenant', true) = '*')"
    )


def downgrade() -> None:
    op.execute("DROP POLICY every_tenant ON idempotency_keys")
    op.execute(f"REVOKE {WORKER} FROM palimpsest_worker")
    op.execute(f"REVOKE {APP} FROM palimpsest_app")
