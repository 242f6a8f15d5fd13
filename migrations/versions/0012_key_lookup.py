"""The look-up of a key names its columns: a release that adds one to the keys stops no look-up of this one.

Revision ID: 0012
Revises: 0011
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

COLUMNS = (
    "id text, tenant_id text, prefix text, name text, scopes text[], secret_hash bytea, previous_hash bytea,"
    " previous_expires_at timestamptz, expires_at timestamptz, revoked_at timestamptz, last_used_at timestamptz"
)
NAMES = ", ".join(f"k.{column.split()[0]}" for column in COLUMNS.split(", "))


def upgrade() -> None:
    # Beside find_api_key, which the release before goes on using.
    op.execute(
        f"CREATE FUNCTION find_key(wanted text) RETURNS TABLE ({COLUMNS}) LANGUAGE sql STABLE SECURITY DEFINER"
        f" SET search_path = public, pg_temp AS $$ SELECT {NAMES} FROM api_keys k WHERE k.prefix = wanted $$"
    )
    op.execute("ALTER FUNCTION find_key(text) OWNER TO palimpsest_owner")
    op.execute("REVOKE ALL ON FUNCTION find_key(text) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION find_key(text) TO palimpsest_app")


def downgrade() -> None:
    op.execute("DROP FUNCTION find_key(text)")
