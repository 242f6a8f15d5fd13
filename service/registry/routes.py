"""Models, versions, aliases, rollback and history over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from service.artifacts import CHUNK, get_store
from service.dependencies import Admin, Deployer, Ingester, Page, PageDep, Reader, SessionDep, page_of
from service.errors import Gone, NotFound, problem_responses
from service.idempotency import IdempotencyDep
from service.models import AliasMove, Model, Version
from service.registry import commands, queries
from service.registry.schemas import (
    AliasList,
    AliasMoveRead,
    AliasPut,
    AliasRead,
    ModelChange,
    ModelCreate,
    ModelRead,
    RollbackRead,
    RollbackRequest,
    VersionRead,
)
from service.schemas import NAME_PATTERN, ModelPath, VersionPath
from service.security import Scope

router = APIRouter()

AliasPath = Annotated[str, Path(alias="alias", min_length=1, max_length=64, pattern=NAME_PATTERN)]


@router.post("/models", status_code=201, response_model=ModelRead, tags=["Models"], summary="Create a model")
def create_model(
    body: ModelCreate, principal: Ingester, session: SessionDep, idempotency: IdempotencyDep
) -> Response:
    """Creates a model on a base checkpoint of the catalogue. Its champion is version 0, the untouched base."""
    model = commands.create_model(session, request=body, tenant=principal.tenant, actor=principal.actor)
    answer = queries.describe_model(session, model=model)
    return idempotency.keep(201, answer, headers={"Location": f"/v1/models/{model.name}"})


@router.get("/models", tags=["Models"], summary="List models")
def list_models(
    _principal: Reader,
    session: SessionDep,
    page: PageDep,
    archived: Annotated[bool, Query(description="Include archived models")] = False,
) -> Page[ModelRead]:
    """Lists the tenant's models, oldest first."""
    statement = select(Model) if archived else select(Model).where(Model.archived_at.is_(None))
    rows, cursor = page.select(session, statement, key=Model.seq)
    return Page[ModelRead](**page_of([queries.describe_model(session, model=row) for row in rows], cursor))


@router.get("/models/{model}", tags=["Models"], summary="Read a model")
def read_model(model: ModelPath, _principal: Reader, session: SessionDep) -> ModelRead:
    """Shows champion, previous champion, labels, counts and the active update."""
    return queries.describe_model(session, model=queries.get_model(session, model=model))


@router.patch(
    "/models/{model}", tags=["Models"], summary="Change gate, replay capacity, retention or metadata"
)
def change_model(model: ModelPath, body: ModelChange, principal: Ingester, session: SessionDep) -> ModelRead:
    """Changes what later updates do, and how long things are kept. Gate and retention need the scope `admin`."""
    if body.gate is not None or body.retention is not None:
        principal.require(Scope.ADMIN)
    row = commands.change_model(session, model=model, change=body, actor=principal.actor)
    return queries.describe_model(session, model=row)


@router.delete("/models/{model}", status_code=204, tags=["Models"], summary="Archive a model")
def archive_model(model: ModelPath, principal: Admin, session: SessionDep) -> None:
    """Archives the model: it stays readable and takes no more changes. Its name stays taken."""
    commands.archive_model(session, model=model, actor=principal.actor)


@router.get("/models/{model}/versions", tags=["Versions"], summary="List versions")
def list_versions(
    model: ModelPath, _principal: Reader, session: SessionDep, page: PageDep
) -> Page[VersionRead]:
    """Lists the model's versions by number, from the base on."""
    row = queries.get_model(session, model=model)
    statement = select(Version).where(Version.model_id == row.id)
    versions, cursor = page.select(session, statement, key=Version.number)
    described = [queries.describe_version(session, model=row, version=version) for version in versions]
    return Page[VersionRead](**page_of(described, cursor))


@router.get("/models/{model}/versions/{version}", tags=["Versions"], summary="Read a version")
def read_version(
    model: ModelPath, version: VersionPath, _principal: Reader, session: SessionDep
) -> VersionRead:
    """Shows lineage, strategy, parameters, seed, data cut, labels, checksum and scores of a version."""
    row = queries.get_model(session, model=model)
    found = queries.get_version(session, model=row, version=version)
    return queries.describe_version(session, model=row, version=found)


@router.get(
    "/models/{model}/versions/{version}/adapter",
    tags=["Versions"],
    summary="Download the adapter",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The PEFT adapter folder as a tar",
            "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
        },
        **problem_responses(410),
    },
)
def download_adapter(
    model: ModelPath, version: VersionPath, _principal: Reader, session: SessionDep
) -> StreamingResponse:
    """Sends the version's folder: a PEFT adapter that `PeftModel.from_pretrained` loads as it is, and its head."""
    row = queries.get_model(session, model=model)
    found = queries.get_version(session, model=row, version=version)
    if found.artifact_removed_at is not None:
        raise Gone(
            f"The adapter of version {found.number} was removed by the model's retention.", code="artifact_removed",
            param="version",
        )  # fmt: skip
    if found.artifact_sha256 is None:
        raise NotFound(
            "Version 0 is the untouched base and has no adapter.", code="no_adapter", param="version"
        )
    tar = get_store().open_verified(found.artifact_sha256)
    headers = {
        "Content-Length": str(found.artifact_bytes),
        "Content-Disposition": f'attachment; filename="{row.name}-v{found.number}.tar"',
        "ETag": f'"{found.artifact_sha256}"',
    }
    return StreamingResponse(
        iter(lambda: tar.read(CHUNK), b""), media_type="application/x-tar", headers=headers
    )


@router.get("/models/{model}/aliases", tags=["Aliases and rollback"], summary="List aliases")
def list_aliases(model: ModelPath, _principal: Reader, session: SessionDep) -> AliasList:
    """Lists where the model's aliases point."""
    row = queries.get_model(session, model=model)
    previous = queries.previous_champion(session, champion=queries.get_champion(session, model=row))
    aliases = [
        AliasRead(alias=alias.name, version=alias.version, updated_at=alias.updated_at)
        for alias in queries.list_aliases(session, model=row)
    ]
    return AliasList(data=aliases, previous=previous.to_version if previous else None)


@router.get("/models/{model}/aliases/{alias}", tags=["Aliases and rollback"], summary="Read an alias")
def read_alias(
    model: ModelPath, alias: AliasPath, _principal: Reader, session: SessionDep, response: Response
) -> AliasRead:
    """Shows where one alias points; the ETag serves `If-Match`."""
    row = queries.get_model(session, model=model)
    found = queries.get_alias(session, model=row, alias=alias)
    if found is None:
        raise NotFound(
            f"The model '{row.name}' has no alias '{alias}'.", code="alias_not_found", param="alias"
        )
    response.headers["ETag"] = commands.etag(found)
    return AliasRead(alias=found.name, version=found.version, updated_at=found.updated_at)


@router.put(
    "/models/{model}/aliases/{alias}",
    tags=["Aliases and rollback"],
    summary="Point an alias at a version",
    responses={412: {"description": "`If-Match` is stale"}},
)
def put_alias(
    model: ModelPath,
    alias: AliasPath,
    body: AliasPut,
    principal: Deployer,
    session: SessionDep,
    response: Response,
    if_match: Annotated[
        str | None, Header(max_length=200, description="ETag the alias must still have")
    ] = None,
) -> AliasRead:
    """Points an alias at any version of this model, at once; the champion's history remembers."""
    moved = commands.put_alias(
        session, model=model, alias=alias, version=body.version, actor=principal.actor, reason=body.reason,
        if_match=if_match,
    )  # fmt: skip
    response.headers["ETag"] = commands.etag(moved)
    return AliasRead(alias=moved.name, version=moved.version, updated_at=moved.updated_at)


@router.post(
    "/models/{model}/rollback",
    response_model=RollbackRead,
    tags=["Aliases and rollback"],
    summary="Roll the champion back",
)
def roll_back(
    model: ModelPath,
    body: RollbackRequest,
    principal: Deployer,
    session: SessionDep,
    idempotency: IdempotencyDep,
) -> Response:
    """Moves the champion to the previous one, or to version `to`. The replay buffer follows by itself.

    Repeated plain rollbacks walk the champion's history back one promotion at a time.
    """
    move = commands.roll_back(session, model=model, to=body.to, reason=body.reason, actor=principal.actor)
    row = queries.get_model(session, model=model)
    previous = queries.previous_champion(session, champion=queries.get_champion(session, model=row))
    answer = RollbackRead(
        model=row.name, rolled_back_from=move.from_version or 0, champion=move.to_version,
        previous=previous.to_version if previous else None, reason=body.reason, by=move.actor, at=move.at,
    )  # fmt: skip
    return idempotency.keep(200, answer)


@router.get(
    "/models/{model}/history", tags=["Aliases and rollback"], summary="Who moved which alias, when and why"
)
def read_history(
    model: ModelPath, _principal: Reader, session: SessionDep, page: PageDep
) -> Page[AliasMoveRead]:
    """Lists every alias move, newest first; the list is append-only."""
    row = queries.get_model(session, model=model)
    statement = select(AliasMove).where(AliasMove.model_id == row.id)
    moves, cursor = page.select(session, statement, key=AliasMove.id, newest_first=True)
    return Page[AliasMoveRead](**page_of([queries.move_read(move) for move in moves], cursor))
