"""Roles, grants and forced row-level security.

Three roles without login: `palimpsest_owner` owns everything, `palimpsest_app` is what the API becomes,
`palimpsest_worker` what workers become. Each transaction takes one of the latter two and names its tenant.

Revision ID: 0002
Revises: 0001
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

ROLES = ("palimpsest_owner", "palimpsest_app", "palimpsest_worker")
TABLES = (
    "api_keys", "idempotency_keys", "models", "tasks", "examples", "updates", "update_events", "versions",
    "version_tasks", "aliases", "alias_moves", "eval_sets", "scores", "replay_entries",
)  # fmt: skip
APP = {
    "SELECT": (*TABLES, "tenants"),
    "INSERT": (
        "tenants", "api_keys", "idempotency_keys", "models", "tasks", "examples", "updates", "update_events",
        "versions", "aliases", "alias_moves",
    ),
    "UPDATE": ("api_keys", "models", "tasks", "examples", "updates", "aliases"),
    "DELETE": ("api_keys", "idempotency_keys", "models", "examples"),
}  # fmt: skip
WORKER = {
    "SELECT": (*(name for name in TABLES if name not in ("api_keys", "idempotency_keys")), "tenants"),
    "INSERT": (
        "update_events", "versions", "version_tasks", "aliases", "alias_moves", "eval_sets", "scores", "replay_entries",
    ),
    "UPDATE": ("models", "updates", "aliases"),
}  # fmt: skip
# What a worker may see of every tenant while it looks for work, expired leases and orphaned artifacts.
DISPATCH = ("models", "updates", "update_events", "versions")
TENANT = "current_setting('palimpsest.tenant', true)"


def upgrade() -> None:
    for role in ROLES:
        op.execute(
            f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
        op.execute(f"GRANT {role} TO CURRENT_USER")
        op.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
    op.execute("GRANT CREATE ON SCHEMA public TO palimpsest_owner")
    for table in (*TABLES, "tenants"):
        op.execute(f"ALTER TABLE {table} OWNER TO palimpsest_owner")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY owner_everything ON {table} TO palimpsest_owner USING (true)")
        column = "id" if table == "tenants" else "tenant_id"
        op.execute(
            f"CREATE POLICY own_tenant ON {table} TO palimpsest_app, palimpsest_worker USING ({column} = {TENANT})"
        )
    for table in DISPATCH:
        op.execute(f"CREATE POLICY every_tenant ON {table} TO palimpsest_worker USING ({TENANT} = '*')")
    for role, grants in (("palimpsest_app", APP), ("palimpsest_worker", WORKER)):
        for privilege, tables in grants.items():
            op.execute(f"GRANT {privilege} ON {', '.join(tables)} TO {role}")
    op.execute("ALTER SEQUENCE row_seq OWNER TO palimpsest_owner")
    op.execute("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO palimpsest_app, palimpsest_worker")
    # A key is looked up before its tenant is known; this function is the one way to do so.
    op.execute(
        "CREATE FUNCTION find_api_key(wanted text) RETURNS SETOF api_keys LANGUAGE sql STABLE SECURITY DEFINER"
        " SET search_path = public, pg_temp AS $$ SELECT * FROM api_keys WHERE prefix = wanted $$"
    )
    op.execute("ALTER FUNCTION find_api_key(text) OWNER TO palimpsest_owner")
    op.execute("REVOKE ALL ON FUNCTION find_api_key(text) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION find_api_key(text) TO palimpsest_app")


def downgrade() -> None:
    # The roles stay: another database of the same server may use them.
    op.execute("DROP FUNCTION find_api_key(text)")
    for table in (*TABLES, "tenants"):
        for policy in ("owner_everything", "own_tenant", "every_tenant"):
            op.execute(f"DROP POLICY IF EXISTS {policy} ON {table}")
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        op.execute(f"REVOKE ALL ON {table} FROM palimpsest_app, palimpsest_worker")
