"""API keys, scopes and tenants.

A key reads `plm_<prefix>_<secret>`: the prefix finds the row, the secret (256 random bits) is compared in
constant time with an HMAC-SHA256 under the operator's pepper. The key itself is shown once and never stored.
A rotation keeps prefix, scopes and name and replaces the secret; the old one may stay valid for a while.
"""

import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import CursorResult, Row, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from structlog import get_logger

from service.audit.commands import record
from service.config import Settings, get_settings
from service.credentials import Proof, SessionProof, hash_secret, read_key, read_session
from service.db import session_scope
from service.errors import Conflict, Forbidden, NotFound, Unauthenticated, Unprocessable
from service.models import ApiKey, AuditAction, EndedSession, Tenant, new_id

log = get_logger(__name__)

LAST_USED_RESOLUTION = timedelta(minutes=1)
MAX_OVERLAP = timedelta(days=30)
CLOCKS_APART = timedelta(days=1)  # a session ends by the API's clock, and is forgotten by the database's
OPERATOR = "command line"
NOBODYS_HASH = secrets.token_bytes(32)
TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
# Columns by name: a prepared statement with * fails once a migration has added one.
FIND_KEYS = text("""
    SELECT found.id, found.tenant_id, found.prefix, found.name, found.scopes, found.secret_hash, found.previous_hash,
           found.previous_expires_at, found.expires_at, found.revoked_at, found.last_used_at, now() AS now
    FROM (SELECT DISTINCT unnest(CAST(:prefixes AS text[]))) AS wanted (prefix), find_key(wanted.prefix) AS found
""")

FIND_ENDED = text("SELECT nonce FROM ended_among(CAST(:nonces AS text[])) AS nonce")


class Scope(StrEnum):
    """What a key may do. Scopes do not imply one another."""

    READ = "read"  # look at anything of the tenant
    INGEST = "ingest"  # models, tasks and examples
    TRAIN = "train"  # request and cancel updates
    DEPLOY = "deploy"  # approve, promote, move aliases, roll back
    ADMIN = "admin"  # keys, gate policies, archiving, the audit


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request."""

    tenant: str
    key_id: str
    key_name: str
    scopes: frozenset[str]

    @property
    def actor(self) -> str:
        """The name history rows carry."""
        return f"key:{self.key_name}"

    def require(self, scope: Scope) -> None:
        """Raises `Forbidden` unless the key has the scope."""
        if scope not in self.scopes:
            held = ", ".join(sorted(self.scopes)) or "none"
            raise Forbidden(
                f"This call needs a key with the scope '{scope}'; the key '{self.key_name}' has: {held}.",
                param="Authorization",
            )

    def require_all(self, scopes: Sequence[str]) -> None:
        """Raises `Forbidden` unless the key has each of `scopes`: nobody hands out more than they hold."""
        missing = sorted(set(scopes) - self.scopes)
        if missing:
            raise Forbidden(
                f"The key '{self.key_name}' cannot hand out what it does not hold: {', '.join(missing)}.",
                code="scope_not_held", param="scopes",
            )  # fmt: skip


def create_key(
    session: Session,
    *,
    tenant: str,
    scopes: Sequence[str],
    name: str,
    expires_at: datetime | None = None,
    principal: Principal | None = None,
) -> tuple[ApiKey, str]:
    """Stores a new key of `tenant` (made on first use) and returns it with its secret text, shown only now.

    `principal` is the key that asks; none means the operator. Raises `Forbidden` for scopes that it lacks,
    `Unprocessable` for an unknown scope or a tenant name that is not lower-case letters, digits, - and _.
    """
    if not TENANT_NAME.fullmatch(tenant):
        raise Unprocessable(
            f"'{tenant}' cannot name a tenant: use 1 to 63 lower-case letters, digits, '-' or '_', starting with a letter or digit.",
            code="invalid_tenant",
        )
    unknown = sorted(set(scopes) - set(Scope))
    if unknown or not scopes:
        what = f"Unknown scope: {', '.join(unknown)}." if unknown else "A key needs at least one scope."
        raise Unprocessable(f"{what} Scopes are: {', '.join(Scope)}.", code="unknown_scope")
    if principal is not None:
        principal.require_all(scopes)
    session.execute(insert(Tenant).values(id=tenant).on_conflict_do_nothing())
    prefix, secret = secrets.token_hex(6), secrets.token_hex(32)
    key = ApiKey(
        tenant_id=tenant, id=new_id("key"), prefix=prefix, secret_hash=hash_secret(secret),
        scopes=sorted(set(scopes)), name=name, expires_at=expires_at,
    )  # fmt: skip
    session.add(key)
    session.flush()
    session.refresh(key)
    _record(
        session, key=key, action=AuditAction.KEY_CREATED, principal=principal, scopes=key.scopes,
        expires_at=expires_at and expires_at.isoformat(),
    )  # fmt: skip
    return key, f"plm_{prefix}_{secret}"


def list_keys(session: Session) -> list[ApiKey]:
    """Returns the tenant's keys, newest first, revoked ones included."""
    return list(session.scalars(select(ApiKey).order_by(ApiKey.seq.desc())))


def get_key(session: Session, *, key_id: str, lock: bool = False) -> ApiKey:
    """Returns the tenant's key of this id or prefix. Raises `NotFound`."""
    statement = select(ApiKey).where((ApiKey.id == key_id) | (ApiKey.prefix == key_id))
    key = session.scalar(statement.with_for_update() if lock else statement)
    if key is None:
        raise NotFound(f"No key '{key_id}' belongs to this tenant.", code="key_not_found", param="key")
    return key


def revoke_key(session: Session, *, key_id: str, principal: Principal | None = None) -> ApiKey:
    """Revokes a key at once, old secrets included; revoking it again changes nothing."""
    key = get_key(session, key_id=key_id, lock=True)
    if key.revoked_at is None:
        key.revoked_at = session.scalar(select(func.now()))
        session.flush()
        _record(session, key=key, action=AuditAction.KEY_REVOKED, principal=principal)
    return key


def rotate_key(
    session: Session, *, key_id: str, overlap: timedelta = timedelta(0), principal: Principal | None = None
) -> tuple[ApiKey, str]:
    """Gives a key a new secret and returns both; the old secret stays valid for `overlap`, an older one ends now.

    Raises `Forbidden` where the key can do what `principal` cannot, for its secret is being handed out; `Conflict`
    for a key that is revoked or has expired, `Unprocessable` for an overlap below 0 or over 30 days.
    """
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        raise Unprocessable(
            f"The overlap must be between 0 and {MAX_OVERLAP.days} days.", code="invalid_overlap"
        )
    key = get_key(session, key_id=key_id, lock=True)
    if principal is not None:
        principal.require_all(key.scopes)
    now = session.scalars(select(func.now())).one()
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        what = "was revoked" if key.revoked_at else "has expired"
        raise Conflict(f"The key '{key.name}' {what}; create another.", code="key_not_valid", param="key")
    secret = secrets.token_hex(32)
    key.previous_hash, key.previous_expires_at = key.secret_hash, now + overlap
    key.secret_hash, key.rotated_at = hash_secret(secret), now
    session.flush()
    _record(
        session, key=key, action=AuditAction.KEY_ROTATED, principal=principal,
        overlap_seconds=int(overlap.total_seconds()),
    )  # fmt: skip
    return key, f"plm_{key.prefix}_{secret}"


def _record(
    session: Session, *, key: ApiKey, action: AuditAction, principal: Principal | None, **data: Any
) -> None:
    record(
        session, tenant=key.tenant_id, actor=principal.actor if principal else OPERATOR, action=action,
        target=key.id, prefix=key.prefix, name=key.name, **data,
    )  # fmt: skip


def authenticate(raw_key: str) -> Principal:
    """Returns who the key belongs to. Raises `Unauthenticated` for an unknown, wrong, expired or revoked key."""
    proof = read_key(raw_key)
    if proof is None:
        raise _unauthenticated("The API key does not look like 'plm_<prefix>_<secret>'.")
    return _admit(proof)


def authenticate_session(token: str) -> Principal:
    """Returns who signed in.

    Raises `Unauthenticated` for a token that is made up, over or signed out, or whose key is not valid now.
    """
    proof = read_session(token)
    if proof is None:
        raise _unauthenticated("The session is not known.")
    return _admit(proof)


def end_session(session: Session, *, token: str, tenant: str) -> None:
    """Ends a session of the pages for good; forgets those of the tenant that are over by now anyway."""
    proof = read_session(token)
    assert proof is not None  # noqa: S101  # whoever sent it was let in
    forget_ended_sessions(session)
    ended = insert(EndedSession).values(
        tenant_id=tenant, nonce=proof.nonce, expires_at=func.to_timestamp(proof.expires_at)
    )
    session.execute(ended.on_conflict_do_nothing())


def forget_ended_sessions(session: Session) -> int:
    """Forgets the ended sessions that would be over by now anyway, of every tenant that `session` sees; returns how many."""
    over = session.execute(
        delete(EndedSession).where(EndedSession.expires_at < func.now() - CLOCKS_APART),
        execution_options={"synchronize_session": False},
    )
    assert isinstance(over, CursorResult)  # noqa: S101  # only such results count rows
    return over.rowcount


def _admit(proof: Proof) -> Principal:
    with session_scope() as session:
        row = session.execute(FIND_KEYS, {"prefixes": [proof.prefix]}).one_or_none()
        ended = _ended(session, [proof])
    objection = _objection(row, proof, ended=ended)
    if row is None or objection is not None:
        raise _unauthenticated(objection or "The API key is not known.")
    if row.last_used_at is None or row.now - row.last_used_at > LAST_USED_RESOLUTION:
        _note_use(row.tenant_id, row.id)
    return Principal(tenant=row.tenant_id, key_id=row.id, key_name=row.name, scopes=frozenset(row.scopes))


def valid_keys(credentials: Collection[str]) -> set[str]:
    """Returns those of the keys and session tokens that would be let in now."""
    read = {credential: read_key(credential) or read_session(credential) for credential in credentials}
    proofs = {credential: proof for credential, proof in read.items() if proof is not None}
    with session_scope() as session:
        rows = session.execute(FIND_KEYS, {"prefixes": [proof.prefix for proof in proofs.values()]})
        found = {row.prefix: row for row in rows}
        ended = _ended(session, proofs.values())
    return {
        credential
        for credential, proof in proofs.items()
        if _objection(found.get(proof.prefix), proof, ended=ended) is None
    }


def _ended(session: Session, proofs: Iterable[Proof]) -> frozenset[str]:
    """The nonces of those that were signed out of; of keys nothing is asked."""
    nonces = [proof.nonce for proof in proofs if isinstance(proof, SessionProof)]
    return frozenset(session.scalars(FIND_ENDED, {"nonces": nonces})) if nonces else frozenset()


def _objection(row: Row[Any] | None, proof: Proof, *, ended: frozenset[str]) -> str | None:
    """Says why a key or session is not let in, given what `FIND_KEYS` and `FIND_ENDED` found; None where it is."""
    # Both comparisons are always made, of a key that does not exist with a hash that nothing has.
    is_current = proof.fits(bytes(row.secret_hash) if row else NOBODYS_HASH)
    is_previous = proof.fits(bytes(row.previous_hash or NOBODYS_HASH) if row else NOBODYS_HASH)
    if row is None or not (is_current or is_previous):
        return "The API key is not known."
    if not is_current and row.previous_expires_at <= row.now:
        return f"The API key '{row.name}' was rotated; this is its old secret."
    if row.revoked_at is not None:
        return f"The API key '{row.name}' was revoked."
    if row.expires_at is not None and row.expires_at <= row.now:
        return f"The API key '{row.name}' expired at {row.expires_at.isoformat()}."
    if isinstance(proof, SessionProof) and proof.nonce in ended:
        return "The session was signed out of."
    if proof.expires_at is not None and proof.expires_at <= row.now.timestamp():
        return "The session is over."
    return None


def pepper_is_the_default() -> bool:
    """Says whether the operator left the pepper as it is in the source."""
    return bool(get_settings().key_pepper == Settings.model_fields["key_pepper"].default)


def warn_of_default_pepper() -> None:
    """Logs a warning where the pepper is the one that everybody knows; for every process that starts."""
    if pepper_is_the_default():
        log.warning(
            "default_pepper",
            consequence="anybody can forge receipts of erasures, and whoever reads the database the signatures of webhooks",
            remedy="set PALIMPSEST_KEY_PEPPER before the first key is made",
        )


def expiry_after(duration: timedelta) -> datetime:
    """Returns the moment `duration` from now, for keys made on the command line."""
    return datetime.now(UTC) + duration


def _note_use(tenant: str, key_id: str) -> None:
    # Asked again in the statement: of requests that arrive together, one writes.
    due = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - LAST_USED_RESOLUTION)
    with session_scope(tenant=tenant) as session:
        session.execute(update(ApiKey).where(ApiKey.id == key_id, due).values(last_used_at=func.now()))


def _unauthenticated(detail: str) -> Unauthenticated:
    return Unauthenticated(
        f"{detail} Send 'Authorization: Bearer plm_…' with a key made by `palimpsest keys create`.",
        param="Authorization",
        headers={"WWW-Authenticate": 'Bearer realm="palimpsest"'},
    )
