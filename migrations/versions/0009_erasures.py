"""Erasures, kept so that a model can be rebuilt without the erased rows and a receipt given.

Revision ID: 0009
Revises: 0008
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

TENANT = "current_setting('palimpsest.tenant', true)"
RETIRED = "artifact_sha256, artifact_bytes, artifact_removed_at"


def upgrade() -> None:
    op.create_table(
        "erasures",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default=sa.text("nextval('row_seq')"), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("subject_digest", sa.Text(), nullable=False),
        sa.Column("deleted", sa.BigInteger(), nullable=False),
        sa.Column("versions", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("rebuild_id", sa.Text(), nullable=True),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_erasures_tenant_id")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "model_id"], ["models.tenant_id", "models.id"],
            name=op.f("fk_erasures_tenant_id_model_id"), ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_erasures")),
    )  # fmt: skip
    op.create_index("ix_erasures_model", "erasures", ["tenant_id", "model_id", "seq"])
    op.execute("ALTER TABLE erasures OWNER TO palimpsest_owner")
    op.execute("ALTER TABLE erasures ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE erasures FORCE ROW LEVEL SECURITY")
    op.execute("CREATE POLICY owner_everything ON erasures TO palimpsest_owner USING (true)")
    op.execute(
        f"CREATE POLICY own_tenant ON erasures TO palimpsest_app, palimpsest_worker USING (tenant_id = {TENANT})"
    )
    op.execute("GRANT SELECT, INSERT ON erasures TO palimpsest_app")
    op.execute("GRANT UPDATE (rebuild_id, retired_at) ON erasures TO palimpsest_app")
    # Retiring what learnt from a subject is asked for over HTTP; until now only a worker removed adapters.
    op.execute(f"GRANT UPDATE ({RETIRED}) ON versions TO palimpsest_app")


def downgrade() -> None:
    op.execute(f"REVOKE UPDATE ({RETIRED}) ON versions FROM palimpsest_app")
    op.drop_table("erasures")
