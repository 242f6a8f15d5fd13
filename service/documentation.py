"""The API's documentation for browsers: Swagger UI, from files that are served here.

They come with the package fastapi-offline, which keeps up with Swagger UI's releases. There is no ReDoc: it asks another
service for its logo.
"""

from importlib.resources import files

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

STATIC = "/docs/static"
router = APIRouter(include_in_schema=False)

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Palimpsest API</title>
<link rel="icon" type="image/svg+xml" href="/ui/static/icon.svg">
<link rel="stylesheet" href="{STATIC}/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{STATIC}/swagger-ui-bundle.js"></script>
<script src="/ui/static/docs.js"></script>
</body>
</html>
"""


def add_documentation(app: FastAPI) -> None:
    """Adds the page and its files."""
    app.include_router(router)
    app.mount(STATIC, StaticFiles(directory=str(files("fastapi_offline") / "static")), name="documentation")


@router.get("/docs")
def read_docs() -> HTMLResponse:
    """Lists the API's calls, and makes them."""
    return HTMLResponse(PAGE)
