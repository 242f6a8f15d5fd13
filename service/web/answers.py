"""Answers that are no pages: pictures, tables, and the way to the next page."""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ValidationError

from service.errors import NotFound, Unprocessable
from service.reports.flip_exports import csv_lines
from service.web.raster import PngResponse

Request = TypeVar("Request", bound=BaseModel)
PictureForm = Literal["svg", "png"]


def picture(drawn: str | None, form: PictureForm) -> Response:
    """Returns a picture, given as SVG, in either form. Raises `NotFound` where there is nothing to draw."""
    if drawn is None:
        raise NotFound("There is nothing to draw yet.", code="no_picture")
    return PngResponse(drawn) if form == "png" else Response(drawn, media_type="image/svg+xml")


def csv(rows: Iterable[Iterable[object]], *, name: str) -> Response:
    """Returns a table to save under a name, which is safe in a header."""
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(csv_lines(rows), media_type="text/csv", headers=headers)


def see_other(path: str) -> RedirectResponse:
    """Sends the browser on after a form, so that reloading the page repeats nothing."""
    return RedirectResponse(path, status_code=303)


def validated(kind: type[Request], values: Mapping[str, object]) -> Request:
    """Returns the request that a form asks for, as the API would read it. Raises `Unprocessable`."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Unprocessable(f"{where}: {first['msg']}.", code="validation_error", param=where) from None
