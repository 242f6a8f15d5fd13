"""Uploads that wait to be imported are artifacts in use.

Revision ID: 0015
Revises: 0014
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

IN_USE = (
    "CREATE OR REPLACE FUNCTION artifacts_in_use(wanted text[]) RETURNS SETOF text LANGUAGE sql STABLE SECURITY DEFINER"
    " SET search_path = public, pg_temp AS $$"
    " SELECT artifact_sha256 FROM versions WHERE artifact_sha256 = ANY(wanted)"
    " UNION SELECT state_sha256 FROM versions WHERE state_sha256 = ANY(wanted){more} $$"
)
UPLOADS = (
    " UNION SELECT parameters->>'sha256' FROM updates WHERE strategy = 'import'"
    " AND state IN ('queued', 'training', 'evaluating') AND parameters->>'sha256' = ANY(wanted)"
)


def upgrade() -> None:
    op.execute(IN_USE.format(more=UPLOADS))  # owner and grants stay


def downgrade() -> None:
    op.execute(IN_USE.format(more=""))
