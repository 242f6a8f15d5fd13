"""Repeats: what further seeds of an update scored.

A new table, so that code of the release before goes on beside it.

Revision ID: 0014
Revises: 0013
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

TENANT = "current_setting('palimpsest.tenant', true)"


def upgrade() -> None:
    op.create_table(
        "repeat_scores",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("update_id", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("eval_set_id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("correct", sa.LargeBinary(), nullable=False),
        sa.Column("predicted", sa.LargeBinary(), nullable=False),
        sa.Column("confidence", sa.LargeBinary(), nullable=False),
        sa.Column("graded", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "update_id"], ["updates.tenant_id", "updates.id"],
            name=op.f("fk_repeat_scores_tenant_id_update_id"), ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "eval_set_id"], ["eval_sets.tenant_id", "eval_sets.id"],
            name=op.f("fk_repeat_scores_tenant_id_eval_set_id"), ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_repeat_scores_tenant_id")),
        sa.PrimaryKeyConstraint(
            "tenant_id", "update_id", "seed", "eval_set_id", name=op.f("pk_repeat_scores")
        ),
    )  # fmt: skip
    # For the cascade from eval sets, which the primary key does not serve.
    op.create_index("ix_repeat_scores_eval_set", "repeat_scores", ["tenant_id", "eval_set_id"])
    op.execute("ALTER TABLE repeat_scores OWNER TO palimpsest_owner")
    op.execute("ALTER TABLE repeat_scores ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE repeat_scores FORCE ROW LEVEL SECURITY")
    op.execute("CREATE POLICY owner_everything ON repeat_scores TO palimpsest_owner USING (true)")
    op.execute(
        "CREATE POLICY own_tenant ON repeat_scores TO palimpsest_app, palimpsest_worker"
        f" USING (tenant_id = {TENANT})"
    )
    op.execute("GRANT SELECT ON repeat_scores TO palimpsest_app, palimpsest_worker")
    # An attempt on other data forgets what the one before it measured.
    op.execute("GRANT INSERT, DELETE ON repeat_scores TO palimpsest_worker")


def downgrade() -> None:
    op.drop_table("repeat_scores")
