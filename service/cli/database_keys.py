"""API keys made in the database itself: for operators, who have no key yet."""

import json
from datetime import timedelta
from pathlib import Path

import typer

from service.cli.installation import take_settings_of
from service.cli.output import plain


def create_key(
    tenant: str, *, scopes: list[str], name: str, valid_for: timedelta | None, as_json: bool, state: Path | None
) -> None:  # fmt: skip
    """Makes a key of the tenant and prints it."""
    take_settings_of(state)
    from service.db import session_scope
    from service.security import create_key, expiry_after, pepper_is_the_default

    if pepper_is_the_default():
        typer.echo(
            "Warning: PALIMPSEST_KEY_PEPPER is not set; this key works only where it is not set either.",
            err=True,
        )
    expires_at = expiry_after(valid_for) if valid_for else None
    with session_scope(tenant=tenant) as session:
        key, secret = create_key(session, tenant=tenant, scopes=scopes, name=name, expires_at=expires_at)
        shown = {"id": key.id, "prefix": key.prefix, "tenant": tenant, "scopes": key.scopes, "name": name}
    if as_json:
        typer.echo(
            json.dumps({"api_key": secret, **shown, "expires_at": expires_at and expires_at.isoformat()})
        )
    else:
        typer.echo(secret)


def list_keys(tenant: str, *, as_json: bool, state: Path | None) -> None:
    """Prints the tenant's keys, newest first, without their secrets."""
    take_settings_of(state)
    from service.db import session_scope
    from service.security import list_keys

    with session_scope(tenant=tenant) as session:
        rows: list[dict[str, object]] = [
            {
                "id": key.id,
                "prefix": key.prefix,
                "name": key.name,
                "scopes": list(key.scopes),
                "created_at": key.created_at.isoformat(),
                "expires_at": key.expires_at and key.expires_at.isoformat(),
                "revoked_at": key.revoked_at and key.revoked_at.isoformat(),
                "last_used_at": key.last_used_at and key.last_used_at.isoformat(),
                "previous_secret_valid_until": key.previous_expires_at
                and key.previous_expires_at.isoformat(),
            }
            for key in list_keys(session)
        ]
    typer.echo(
        json.dumps(rows, indent=2) if as_json else "\n".join(map(_line, rows)) or f"{tenant} has no keys."
    )


def revoke_key(tenant: str, *, key: str, as_json: bool, state: Path | None) -> None:
    """Revokes a key of the tenant."""
    take_settings_of(state)
    from service.db import session_scope
    from service.security import revoke_key

    with session_scope(tenant=tenant) as session:
        revoked = revoke_key(session, key_id=key)
    if as_json:
        typer.echo(json.dumps({"id": revoked.id, "prefix": revoked.prefix, "name": revoked.name}))
    else:
        typer.echo(f"The key '{plain(revoked.name)}' ({revoked.prefix}) is revoked.")


def rotate_key(tenant: str, *, key: str, overlap: timedelta, as_json: bool, state: Path | None) -> None:
    """Gives a key of the tenant a new secret and prints the key."""
    take_settings_of(state)
    from service.db import session_scope
    from service.security import rotate_key

    with session_scope(tenant=tenant) as session:
        rotated, secret = rotate_key(session, key_id=key, overlap=overlap)
        until = rotated.previous_expires_at and rotated.previous_expires_at.isoformat()
        shown = {"id": rotated.id, "prefix": rotated.prefix, "previous_secret_valid_until": until}
    typer.echo(json.dumps({"api_key": secret, **shown}) if as_json else secret)


def _line(row: dict[str, object]) -> str:
    scopes = ",".join(row["scopes"]) if isinstance(row["scopes"], list) else ""
    state = f"revoked {row['revoked_at']}" if row["revoked_at"] else f"expires {row['expires_at'] or 'never'}"
    return f"{row['prefix']}  {plain(str(row['name']))}  {scopes}  {state}  last used {row['last_used_at'] or 'never'}"
