"""Keys that can be rotated and listed page by page, and the append-only audit.

Revision ID: 0004
Revises: 0003
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

TENANT = "current_setting('palimpsest.tenant', true)"


def upgrade() -> None:
    op.add_column(
        "api_keys",
        sa.Column("seq", sa.BigInteger(), server_default=sa.text("nextval('row_seq')"), nullable=False),
    )
    op.add_column("api_keys", sa.Column("rotated_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("previous_hash", sa.LargeBinary(), nullable=True))
    op.add_column("api_keys", sa.Column("previous_expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "audit_entries",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_audit_entries_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_audit_entries")),
    )
    op.execute("ALTER TABLE audit_entries OWNER TO palimpsest_owner")
    op.execute("ALTER TABLE audit_entries ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE audit_entries FORCE ROW LEVEL SECURITY")
    op.execute("CREATE POLICY owner_everything ON audit_entries TO palimpsest_owner USING (true)")
    op.execute(
        f"CREATE POLICY own_tenant ON audit_entries TO palimpsest_app, palimpsest_worker USING (tenant_id = {TENANT})"
    )
    op.execute("GRANT SELECT, INSERT ON audit_entries TO palimpsest_app")
    op.execute("GRANT INSERT ON audit_entries TO palimpsest_worker")


def downgrade() -> None:
    op.drop_table("audit_entries")
    for column in ("previous_expires_at", "previous_hash", "rotated_at", "seq"):
        op.drop_column("api_keys", column)
