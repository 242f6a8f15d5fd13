"""What a request proves itself with: an API key, or the token of a browser's session that stands for one.

A key reads `plm_<prefix>_<secret>`. A token reads `pls_<prefix>_<expiry>_<nonce>_<mac>`; its MAC is over the stored hash of the
key it was made from, so that it ends with the key: it is checked against the same row, at every request.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from service.config import get_settings

KEY_FORMAT = re.compile(r"plm_([0-9a-f]{12})_([0-9a-f]{64})")
TOKEN_FORMAT = re.compile(r"pls_([0-9a-f]{12})_([0-9a-f]{1,12})_([0-9a-f]{32})_([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class KeyProof:
    """An API key as it was sent: its prefix, and the hash of its secret."""

    prefix: str
    digest: bytes
    expires_at: int | None = None  # a key's own expiry stands in its row

    def fits(self, stored_hash: bytes) -> bool:
        """Says in constant time whether this is the key of that stored hash."""
        return hmac.compare_digest(self.digest, stored_hash)


@dataclass(frozen=True, slots=True)
class SessionProof:
    """A session's token as it was sent: whose key it stands for and until when, in seconds since 1970."""

    prefix: str
    expires_at: int
    nonce: str
    mac: bytes

    def fits(self, stored_hash: bytes) -> bool:
        """Says in constant time whether the token was made from the key of that stored hash."""
        expected = _session_mac(self.prefix, self.expires_at, self.nonce, stored_hash)
        return hmac.compare_digest(self.mac, expected)


Proof = KeyProof | SessionProof


def read_key(text: str) -> KeyProof | None:
    """Returns the key that a text is; None where it is none."""
    match = KEY_FORMAT.fullmatch(text)
    return KeyProof(match[1], hash_secret(match[2])) if match else None


def read_session(text: str) -> SessionProof | None:
    """Returns the session that a text is the token of; None where it is none."""
    match = TOKEN_FORMAT.fullmatch(text)
    return SessionProof(match[1], int(match[2], 16), match[3], bytes.fromhex(match[4])) if match else None


def new_session(key: KeyProof, *, expires_at: int) -> str:
    """Returns a new token that stands for a key until `expires_at`. Nothing of the key can be told from it but its prefix."""
    nonce = secrets.token_hex(16)
    mac = _session_mac(key.prefix, expires_at, nonce, key.digest)
    return f"pls_{key.prefix}_{expires_at:x}_{nonce}_{mac.hex()}"


def hash_secret(secret: str) -> bytes:
    """Returns the hash under which a key's secret is stored."""
    return _keyed(secret.encode())


def bound_to_session(token: str, purpose: str) -> str:
    """Returns a text that nobody can make up who does not know the operator's pepper, for one session and purpose."""
    return _keyed(f"{purpose}\0{token}".encode()).hex()


def _session_mac(prefix: str, expires_at: int, nonce: str, stored_hash: bytes) -> bytes:
    return _keyed(f"session\0{prefix}\0{expires_at}\0{nonce}\0".encode() + stored_hash)


def _keyed(message: bytes) -> bytes:
    pepper = get_settings().key_pepper.get_secret_value().encode()
    return hmac.new(pepper, message, hashlib.sha256).digest()
