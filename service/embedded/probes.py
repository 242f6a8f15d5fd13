"""What the launcher asks the API before it calls the stack ready."""

import http.client
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 5.0


def is_ready(url: str) -> bool:
    """Whether `/readyz` is green."""
    return _status(url, "/readyz") == 200


def takes_key(url: str, api_key: str) -> bool:
    """Whether the API knows this key; False only where it says that it does not."""
    return _status(url, "/v1/models?limit=1", api_key=api_key) != 401


def _status(url: str, path: str, *, api_key: str | None = None) -> int | None:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {api_key}"} if api_key else {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
