"""Retention, purge, storage, metrics, and the request that asked for an update.

Workers may now delete what a model's retention no longer keeps. A purge deletes the model's row, and foreign keys
do the rest.

Revision ID: 0005
Revises: 0004
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

ARTIFACT_COLUMNS = "artifact_sha256, artifact_bytes, artifact_removed_at, state_sha256, state_bytes"


def upgrade() -> None:
    op.add_column(
        "models",
        sa.Column("retention", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
    )
    op.add_column("versions", sa.Column("artifact_removed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("updates", sa.Column("request_id", sa.Text(), nullable=True))
    op.create_index("ix_update_events_id", "update_events", ["id"])
    op.execute("GRANT DELETE ON examples, update_events TO palimpsest_worker")
    op.execute(f"GRANT UPDATE ({ARTIFACT_COLUMNS}) ON versions TO palimpsest_worker")
    op.execute(
        "CREATE POLICY every_tenant ON version_tasks FOR SELECT TO palimpsest_worker"
        " USING (current_setting('palimpsest.tenant', true) = '*')"
    )
    # Artifacts are shared by content, also between tenants: what to delete cannot be asked under one tenant's rows.
    op.execute(
        "CREATE FUNCTION artifacts_in_use(wanted text[]) RETURNS SETOF text LANGUAGE sql STABLE SECURITY DEFINER"
        " SET search_path = public, pg_temp AS $$"
        " SELECT artifact_sha256 FROM versions WHERE artifact_sha256 = ANY(wanted)"
        " UNION SELECT state_sha256 FROM versions WHERE state_sha256 = ANY(wanted) $$"
    )
    op.execute("ALTER FUNCTION artifacts_in_use(text[]) OWNER TO palimpsest_owner")
    op.execute("REVOKE ALL ON FUNCTION artifacts_in_use(text[]) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION artifacts_in_use(text[]) TO palimpsest_app, palimpsest_worker")


def downgrade() -> None:
    op.execute("DROP FUNCTION artifacts_in_use(text[])")
    op.execute("DROP POLICY every_tenant ON version_tasks")
    op.execute(f"REVOKE UPDATE ({ARTIFACT_COLUMNS}) ON versions FROM palimpsest_worker")
    op.execute("REVOKE DELETE ON examples, update_events FROM palimpsest_worker")
    op.drop_index("ix_update_events_id", "update_events")
    op.drop_column("updates", "request_id")
    op.drop_column("versions", "artifact_removed_at")
    op.drop_column("models", "retention")
