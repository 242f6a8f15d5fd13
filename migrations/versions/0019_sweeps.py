"""Sweeps forget sessions that are over anyway; an import that is scored again needs its upload no more.

Revision ID: 0019
Revises: 0018
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0019"
down_revision: str | None = "0018"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

GRANTS = "SELECT (tenant_id, expires_at), DELETE ON ended_sessions"
IN_USE = (
    "CREATE OR REPLACE FUNCTION artifacts_in_use(wanted text[]) RETURNS SETOF text LANGUAGE sql STABLE SECURITY DEFINER"
    " SET search_path = public, pg_temp AS $$"
    " SELECT artifact_sha256 FROM versions WHERE artifact_sha256 = ANY(wanted)"
    " UNION SELECT state_sha256 FROM versions WHERE state_sha256 = ANY(wanted)"
    " UNION SELECT parameters->>'sha256' FROM updates WHERE strategy = 'import'"
    " AND state IN ('queued', 'training', 'evaluating'){more} AND parameters->>'sha256' = ANY(wanted) $$"
)


def upgrade() -> None:
    op.execute(f"GRANT {GRANTS} TO palimpsest_worker")
    op.execute(
        "CREATE POLICY every_tenant ON ended_sessions TO palimpsest_worker"
        " USING (current_setting('palimpsest.tenant', true) = '*')"
    )
    op.execute(IN_USE.format(more=" AND version IS NULL"))  # owner and grants stay


def downgrade() -> None:
    op.execute(IN_USE.format(more=""))
    op.execute("DROP POLICY every_tenant ON ended_sessions")
    op.execute(f"REVOKE {GRANTS} FROM palimpsest_worker")
