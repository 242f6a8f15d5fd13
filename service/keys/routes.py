"""Keys over HTTP: the tenant's own, for keys with the scope `admin`."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Response
from sqlalchemy import select

from service import security
from service.dependencies import Admin, Page, PageDep, SessionDep, page_of
from service.idempotency import IdempotencyDep
from service.keys.schemas import KeyCreate, KeyRead, KeyRotate, KeyWithSecret
from service.models import ApiKey

router = APIRouter(tags=["Keys"])

SECRET = frozenset({"api_key"})
KeyPath = Annotated[
    str,
    Path(alias="key_id", max_length=64, pattern=r"^[A-Za-z0-9_]+$", description="Id or prefix of the key"),
]


@router.post("/keys", status_code=201, response_model=KeyWithSecret, summary="Create a key")
def create_key(
    body: KeyCreate, principal: Admin, session: SessionDep, idempotency: IdempotencyDep
) -> Response:
    """Makes a key of your tenant with scopes that your own key has. The secret is shown this once."""
    key, secret = security.create_key(
        session, tenant=principal.tenant, scopes=body.scopes, name=body.name, expires_at=body.expires_at,
        principal=principal,
    )  # fmt: skip
    headers = {"Location": f"/v1/keys/{key.id}"}
    return idempotency.keep(201, KeyWithSecret.made(key, secret), headers=headers, without=SECRET)


@router.get("/keys", summary="List keys")
def list_keys(_principal: Admin, session: SessionDep, page: PageDep) -> Page[KeyRead]:
    """Lists the tenant's keys without their secrets, newest first, revoked ones included."""
    rows, cursor = page.select(session, select(ApiKey), key=ApiKey.seq, newest_first=True)
    return Page[KeyRead](**page_of([KeyRead.of(row) for row in rows], cursor))


@router.get("/keys/{key_id}", summary="Read a key")
def read_key(key_id: KeyPath, _principal: Admin, session: SessionDep) -> KeyRead:
    """Shows one key without its secret."""
    return KeyRead.of(security.get_key(session, key_id=key_id))


@router.post("/keys/{key_id}/rotate", response_model=KeyWithSecret, summary="Replace a key's secret")
def rotate_key(
    key_id: KeyPath,
    principal: Admin,
    session: SessionDep,
    idempotency: IdempotencyDep,
    body: KeyRotate | None = None,
) -> Response:
    """Gives the key a new secret, shown this once; id, prefix, scopes and expiry stay.

    The old secret ends at once, or after `overlap_seconds`. Only a key that has every scope of the rotated one may
    do so.
    """
    overlap = timedelta(seconds=(body or KeyRotate()).overlap_seconds)
    row, secret = security.rotate_key(session, key_id=key_id, overlap=overlap, principal=principal)
    return idempotency.keep(200, KeyWithSecret.made(row, secret), without=SECRET)


@router.delete("/keys/{key_id}", status_code=204, summary="Revoke a key")
def revoke_key(key_id: KeyPath, principal: Admin, session: SessionDep) -> None:
    """Revokes the key: from now on every request with it is 401. Revoking it again changes nothing."""
    security.revoke_key(session, key_id=key_id, principal=principal)
