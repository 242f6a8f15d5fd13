"""Sessions of the pages that were signed out of, until they would have been over by themselves.

The table is new, so that code of the release before goes on beside it.

Revision ID: 0016
Revises: 0015
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

TENANT = "current_setting('palimpsest.tenant', true)"


def upgrade() -> None:
    op.create_table(
        "ended_sessions",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_ended_sessions_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "nonce", name=op.f("pk_ended_sessions")),
    )
    op.create_index("uq_ended_sessions_nonce", "ended_sessions", ["nonce"], unique=True)
    op.execute("ALTER TABLE ended_sessions OWNER TO palimpsest_owner")
    op.execute("ALTER TABLE ended_sessions ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE ended_sessions FORCE ROW LEVEL SECURITY")
    op.execute("CREATE POLICY owner_everything ON ended_sessions TO palimpsest_owner USING (true)")
    op.execute(
        f"CREATE POLICY own_tenant ON ended_sessions TO palimpsest_app, palimpsest_worker USING (tenant_id = {TENANT})"
    )
    op.execute("GRANT SELECT, INSERT, DELETE ON ended_sessions TO palimpsest_app")
    # Asked before it is known whose a session is, as keys are looked up.
    op.execute(
        "CREATE FUNCTION ended_among(wanted text[]) RETURNS SETOF text LANGUAGE sql STABLE SECURITY DEFINER"
        " SET search_path = public, pg_temp AS $$ SELECT nonce FROM ended_sessions WHERE nonce = ANY (wanted) $$"
    )
    op.execute("ALTER FUNCTION ended_among(text[]) OWNER TO palimpsest_owner")
    op.execute("REVOKE ALL ON FUNCTION ended_among(text[]) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION ended_among(text[]) TO palimpsest_app")


def downgrade() -> None:
    op.execute("DROP FUNCTION ended_among(text[])")
    op.drop_table("ended_sessions")
