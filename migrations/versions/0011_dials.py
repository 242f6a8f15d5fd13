"""Dials: the points between a version and its parent, what they scored, and who is at work on them.

Both tables are new, so that code of the release before goes on beside them.

Revision ID: 0011
Revises: 0010
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

TENANT = "current_setting('palimpsest.tenant', true)"


def upgrade() -> None:
    op.create_table(
        "dials",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("betas", ARRAY(sa.Float(53)), nullable=False),
        sa.Column("eval_set_ids", ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("gate", JSONB(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempts_used", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("max_attempts", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", JSONB(), nullable=True),
        sa.Column(
            "requested_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "model_id", "version"],
            ["versions.tenant_id", "versions.model_id", "versions.number"],
            name=op.f("fk_dials_tenant_id_model_id_version"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_dials_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_dials")),
    )
    op.create_index("uq_dials_version", "dials", ["tenant_id", "model_id", "version"], unique=True)
    op.create_index(
        "ix_dials_unfinished", "dials", ["requested_at"],
        postgresql_where=sa.text("state IN ('queued', 'scoring')"),
    )  # fmt: skip
    op.create_table(
        "dial_scores",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("dial_id", sa.Text(), nullable=False),
        sa.Column("beta", sa.Float(53), nullable=False),
        sa.Column("eval_set_id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("score", sa.Float(53), nullable=False),
        sa.Column("correct", sa.LargeBinary(), nullable=False),
        sa.Column("predicted", sa.LargeBinary(), nullable=False),
        sa.Column("confidence", sa.LargeBinary(), nullable=False),
        sa.Column("graded", sa.LargeBinary(), nullable=True),
        sa.Column("measures", JSONB(), server_default="{}", nullable=False),
        sa.Column("interval", ARRAY(sa.Float(53)), nullable=False),
        sa.Column("change", ARRAY(sa.Float(53)), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "dial_id"], ["dials.tenant_id", "dials.id"],
            name=op.f("fk_dial_scores_tenant_id_dial_id"), ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "eval_set_id"], ["eval_sets.tenant_id", "eval_sets.id"],
            name=op.f("fk_dial_scores_tenant_id_eval_set_id"), ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_dial_scores_tenant_id")),
        sa.PrimaryKeyConstraint(
            "tenant_id", "dial_id", "beta", "eval_set_id", name=op.f("pk_dial_scores")
        ),
    )  # fmt: skip
    for table in ("dials", "dial_scores"):
        op.execute(f"ALTER TABLE {table} OWNER TO palimpsest_owner")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY owner_everything ON {table} TO palimpsest_owner USING (true)")
        op.execute(
            f"CREATE POLICY own_tenant ON {table} TO palimpsest_app, palimpsest_worker USING (tenant_id = {TENANT})"
        )
        op.execute(f"GRANT SELECT ON {table} TO palimpsest_app, palimpsest_worker")
    # What a worker may see of every tenant while it looks for work and expired leases.
    op.execute(f"CREATE POLICY every_tenant ON dials TO palimpsest_worker USING ({TENANT} = '*')")
    op.execute("GRANT INSERT, UPDATE ON dials TO palimpsest_app")
    op.execute("GRANT UPDATE ON dials TO palimpsest_worker")
    op.execute("GRANT INSERT ON dial_scores TO palimpsest_worker")


def downgrade() -> None:
    op.drop_table("dial_scores")
    op.drop_table("dials")
