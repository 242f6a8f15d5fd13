"""Webhooks, their secrets, and their deliveries: the outbox of events.

New tables only: code of the release before never looks at them, and nobody waits for their locks. Who sends looks for due
deliveries of every tenant; a secret is read under its own tenant, and by workers alone.

Revision ID: 0010
Revises: 0009
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

TENANT = "current_setting('palimpsest.tenant', true)"
TABLES = ("webhooks", "webhook_secrets", "webhook_deliveries")
DISPATCH = ("webhooks", "webhook_deliveries")
VISIBLE_COLUMNS = "tenant_id, id, seq, webhook_id, expires_at, created_at"
GRANTS = (
    "SELECT, INSERT, UPDATE, DELETE ON webhooks, webhook_deliveries TO palimpsest_app",
    f"SELECT ({VISIBLE_COLUMNS}), INSERT, UPDATE (expires_at), DELETE ON webhook_secrets TO palimpsest_app",
    "SELECT, UPDATE ON webhooks TO palimpsest_worker",
    "SELECT, DELETE ON webhook_secrets TO palimpsest_worker",
    "SELECT, INSERT, UPDATE, DELETE ON webhook_deliveries TO palimpsest_worker",
)


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        _seq(),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rotated_at", sa.DateTime(timezone=True), nullable=True),
        _created_at(),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_webhooks_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_webhooks")),
    )
    op.create_table(
        "webhook_secrets",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        _seq(),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        _created_at(),
        *_keys("webhook_secrets"),
    )
    op.create_index("ix_webhook_secrets_webhook", "webhook_secrets", ["tenant_id", "webhook_id"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        _seq(),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=True),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tries", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "log", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False
        ),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "next_attempt_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=True
        ),
        _created_at(),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        *_keys("webhook_deliveries"),
    )
    op.create_index("ix_webhook_deliveries_log", "webhook_deliveries", ["tenant_id", "webhook_id", "seq"])
    for name, columns, condition in (
        ("due", ["next_attempt_at"], "state = 'pending'"),
        ("held", ["tenant_id", "webhook_id"], "lease_expires_at IS NOT NULL"),
        ("finished", ["finished_at"], "finished_at IS NOT NULL"),
    ):
        op.create_index(
            f"ix_webhook_deliveries_{name}",
            "webhook_deliveries",
            columns,
            postgresql_where=sa.text(condition),
        )
    for table in TABLES:
        _wall(table)
    for grant in GRANTS:
        op.execute(f"GRANT {grant}")


def _seq() -> sa.Column[int]:
    return sa.Column("seq", sa.BigInteger(), server_default=sa.text("nextval('row_seq')"), nullable=False)


def _created_at() -> sa.Column[sa.DateTime]:
    return sa.Column(
        "created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
    )


def _keys(table: str) -> tuple[sa.Constraint, ...]:
    """The keys of what belongs to a webhook."""
    return (
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f(f"fk_{table}_tenant_id")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "webhook_id"],
            ["webhooks.tenant_id", "webhooks.id"],
            name=op.f(f"fk_{table}_tenant_id_webhook_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f(f"pk_{table}")),
    )


def _wall(table: str) -> None:
    op.execute(f"ALTER TABLE {table} OWNER TO palimpsest_owner")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY owner_everything ON {table} TO palimpsest_owner USING (true)")
    op.execute(
        f"CREATE POLICY own_tenant ON {table} TO palimpsest_app, palimpsest_worker USING (tenant_id = {TENANT})"
    )
    if table in DISPATCH:
        op.execute(f"CREATE POLICY every_tenant ON {table} TO palimpsest_worker USING ({TENANT} = '*')")


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
