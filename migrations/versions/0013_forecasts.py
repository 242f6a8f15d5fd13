"""Forecasts: what updates would cost, told from their first steps, and the probes of past updates they are held against.

Both tables are new, so that code of the release before goes on beside them.

Revision ID: 0013
Revises: 0012
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

TENANT = "current_setting('palimpsest.tenant', true)"


def upgrade() -> None:
    op.create_table(
        "forecasts",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default=sa.text("nextval('row_seq')"), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("task_ids", ARRAY(sa.Text()), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("parameters", JSONB(), nullable=False),
        sa.Column("training", JSONB(), nullable=False),
        sa.Column("replay", JSONB(), nullable=False),
        sa.Column("relearn", sa.Boolean(), nullable=False),
        sa.Column("parent_version", sa.BigInteger(), nullable=False),
        sa.Column("cut", sa.BigInteger(), nullable=False),
        sa.Column("share", sa.Float(53), nullable=False),
        sa.Column("level", sa.Float(53), nullable=False),
        sa.Column("gate", JSONB(), nullable=False),
        sa.Column("warnings", JSONB(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempts_used", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("max_attempts", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", JSONB(), nullable=True),
        sa.Column("error", JSONB(), nullable=True),
        sa.Column("probe", JSONB(), nullable=True),
        sa.Column("result", JSONB(), nullable=True),
        sa.Column(
            "requested_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "model_id"], ["models.tenant_id", "models.id"],
            name=op.f("fk_forecasts_tenant_id_model_id"), ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_forecasts_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_forecasts")),
    )  # fmt: skip
    op.create_index("ix_forecasts_model", "forecasts", ["tenant_id", "model_id", "seq"])
    op.create_index(
        "ix_forecasts_unfinished", "forecasts", ["requested_at"],
        postgresql_where=sa.text("state IN ('queued', 'scoring')"),
    )  # fmt: skip
    op.create_table(
        "forecast_probes",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("update_id", sa.Text(), nullable=False),
        sa.Column("share", sa.Float(53), nullable=False),
        sa.Column("probe", JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "update_id"], ["updates.tenant_id", "updates.id"],
            name=op.f("fk_forecast_probes_tenant_id_update_id"), ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_forecast_probes_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "update_id", "share", name=op.f("pk_forecast_probes")),
    )  # fmt: skip
    for table in ("forecasts", "forecast_probes"):
        op.execute(f"ALTER TABLE {table} OWNER TO palimpsest_owner")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY owner_everything ON {table} TO palimpsest_owner USING (true)")
        op.execute(
            f"CREATE POLICY own_tenant ON {table} TO palimpsest_app, palimpsest_worker USING (tenant_id = {TENANT})"
        )
        op.execute(f"GRANT SELECT ON {table} TO palimpsest_app, palimpsest_worker")
    # What a worker may see of every tenant while it looks for work and expired leases.
    op.execute(f"CREATE POLICY every_tenant ON forecasts TO palimpsest_worker USING ({TENANT} = '*')")
    op.execute("GRANT INSERT ON forecasts TO palimpsest_app")
    op.execute("GRANT UPDATE ON forecasts TO palimpsest_worker")
    op.execute("GRANT INSERT ON forecast_probes TO palimpsest_worker")


def downgrade() -> None:
    op.drop_table("forecast_probes")
    op.drop_table("forecasts")
