"""`palimpsest keys`: with `--tenant` in the database itself, without it over the API, of one's own tenant."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeGuard

import typer

from service.cli import database_keys
from service.cli.calling import DEFAULT_LIMIT, AsJson, Call, Json, Limit, Profile, State, calling
from service.cli.durations import parse_duration
from service.cli.output import moment, print_list
from service.cli.problems import CallFailed

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Make, list, rotate and revoke API keys. A key belongs to a tenant and has scopes.

    Without `--tenant` these call the API, with a key that has the scope `admin`, and act on its tenant. With `--tenant`
    they act on the database itself, which is how an operator makes the first key: that of a running `palimpsest up`
    (`--state`), or what `DATABASE_URL` names; `PALIMPSEST_KEY_PEPPER` must be that of the API then.""",
)

Tenant = Annotated[
    str | None,
    typer.Option(
        help="Act on the database itself: who owns the keys, and all models and data reached with them.",
        show_default=False,
    ),
]
KeyName = Annotated[
    str, typer.Argument(metavar="KEY", help="Its id or prefix, as `palimpsest keys list` shows them.")
]


@app.command("create")
def create_key(
    scopes: Annotated[
        str, typer.Option(help="What it may do, with commas: read, ingest, train, deploy, admin.")
    ],
    tenant: Tenant = None,
    name: Annotated[str, typer.Option(help="What it is for; shown in lists and in the history.")] = "unnamed",
    expires_in: Annotated[
        str | None,
        typer.Option(help="How long it is valid: 12h, 90d, 52w. Default: for ever.", show_default=False),
    ] = None,
    profile: Profile = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It is shown this once; only a hash is stored.

    Example: `palimpsest keys create --scopes read,ingest,train --name nightly --expires-in 90d`

    The first one of a tenant: `palimpsest keys create --tenant shop --scopes read,ingest,train --state DIR`
    """
    valid_for = parse_duration(expires_in) if expires_in else None
    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    if _in_the_database(tenant, profile=profile):
        database_keys.create_key(
            tenant, scopes=wanted, name=name, valid_for=valid_for, as_json=as_json, state=state
        )
        return
    body: Json = {"name": name, "scopes": wanted}
    if valid_for is not None:
        body["expires_at"] = (datetime.now(UTC) + valid_for).isoformat()
    with calling(profile=profile, state=state, as_json=as_json) as call:
        _show_secret(call, call.api.create("/v1/keys", body))


@app.command("list")
def list_keys(
    tenant: Tenant = None,
    limit: Limit = DEFAULT_LIMIT,
    profile: Profile = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """List keys, newest first, without their secrets."""
    if _in_the_database(tenant, profile=profile):
        database_keys.list_keys(tenant, as_json=as_json, state=state)
        return
    with calling(profile=profile, state=state, as_json=as_json) as call:
        call.show(call.api.pages("/v1/keys", limit=limit), _table)


@app.command("revoke")
def revoke_key(
    key: KeyName, tenant: Tenant = None, profile: Profile = None, state: State = None, as_json: AsJson = False
) -> None:
    """Revoke a key at once. Doing so again changes nothing."""
    if _in_the_database(tenant, profile=profile):
        database_keys.revoke_key(tenant, key=key, as_json=as_json, state=state)
        return
    from service.cli.client import path

    with calling(profile=profile, state=state, as_json=as_json) as call:
        call.show(
            call.api.delete(path("keys", key)), lambda _answer: call.say(f"The key '{key}' is revoked.")
        )


@app.command("rotate")
def rotate_key(
    key: KeyName,
    tenant: Tenant = None,
    overlap: Annotated[
        str | None,
        typer.Option(
            help="How long the old secret stays valid: 12h, 7d, 2w. Default: not at all.", show_default=False
        ),
    ] = None,
    profile: Profile = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Replace a key's secret and print the new key. It is shown this once; only a hash is stored.

    Id, prefix, scopes, name and expiry stay. For a secret that leaked leave `--overlap` away.
    """
    lasting = parse_duration(overlap, option="--overlap") if overlap else timedelta(0)
    if _in_the_database(tenant, profile=profile):
        database_keys.rotate_key(tenant, key=key, overlap=lasting, as_json=as_json, state=state)
        return
    from service.cli.client import path

    with calling(profile=profile, state=state, as_json=as_json) as call:
        body = {"overlap_seconds": int(lasting.total_seconds())}
        _show_secret(call, call.api.create(path("keys", key, "rotate"), body))


def _in_the_database(tenant: str | None, *, profile: str | None) -> TypeGuard[str]:
    if tenant is not None and profile is not None:
        raise typer.BadParameter(
            "--tenant acts on a database and --profile on the API", param_hint="--tenant"
        )
    return tenant is not None


def _show_secret(call: Call, made: Json) -> None:
    if made["api_key"] is None:
        raise CallFailed(
            f"The key {made['prefix']} is made, but the answer that held its secret was lost on the way; "
            f"'palimpsest keys rotate {made['prefix']}' gives it another."
        )
    call.show(made, lambda key: typer.echo(key["api_key"]))


def _table(page: Json) -> None:
    columns = ("prefix", "name", "scopes", "created", "expires", "revoked", "last used", "id")
    rows = (
        (
            key["prefix"], key["name"], key["scopes"], moment(key["created_at"]), moment(key["expires_at"]),
            moment(key["revoked_at"]), moment(key["last_used_at"]), key["id"],
        )
        for key in page["data"]
    )  # fmt: skip
    print_list(page, columns, rows)
