"""Which failures a user can mend, and the one line each of them is told in."""


def expected(error: Exception) -> str | None:
    """The line for a failure that a user can mend; None for one that is ours."""
    from service.embedded.errors import EmbeddedError

    if isinstance(error, EmbeddedError):
        return str(error)

    from pydantic import ValidationError
    from sqlalchemy.exc import ArgumentError, DBAPIError

    from service.errors import ServiceError

    if isinstance(error, ServiceError):
        return error.detail
    if isinstance(error, ValidationError) and error.title in ("Settings", "ClientSettings"):
        return "; ".join(f"{_setting(item['loc'])} is wrong: {item['msg']}" for item in error.errors())
    if isinstance(error, ArgumentError):
        return "DATABASE_URL cannot be read; write postgresql://user:password@host:5432/database"
    if isinstance(error, DBAPIError):
        return _database_error(error)
    if type(error).__module__.startswith("alembic."):
        return f"the migration is not possible: {error}"
    return None


def _setting(place: tuple[int | str, ...]) -> str:
    name = str(place[0]) if place else "a setting"
    return name if name.isupper() else f"PALIMPSEST_{name.upper()}"


def _database_error(error: Exception) -> str | None:
    from sqlalchemy import make_url
    from sqlalchemy.exc import DBAPIError, OperationalError

    from service.config import get_settings

    reason = str(error.orig).strip().splitlines()[0] if isinstance(error, DBAPIError) else str(error)
    where = make_url(get_settings().database_url).render_as_string(hide_password=True)
    if isinstance(error, OperationalError):
        return f"the database at {where} does not answer: {reason}"
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    if state in ("42P01", "22023"):  # no such table, no such role
        return f"the database at {where} has not been migrated ({reason}); run 'palimpsest migrate' first"
    if state == "42501":
        return f"the login of {where} may not do this: {reason}"
    return None
