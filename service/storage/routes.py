"""Storage and purge over HTTP."""

from fastapi import APIRouter

from service.dependencies import Admin, Reader, SessionDep
from service.schemas import ModelPath
from service.storage import queries
from service.storage.purge import purge_model as purge
from service.storage.schemas import PurgeRead, StorageRead

router = APIRouter()


@router.get("/storage", tags=["Storage"], summary="How much is stored")
def read_storage(_principal: Reader, session: SessionDep) -> StorageRead:
    """Shows examples, versions, artifacts and replay entries of the tenant, model by model. Counts every row."""
    return queries.storage(session)


@router.post("/models/{model}/purge", tags=["Models"], summary="Purge an archived model")
def purge_model(model: ModelPath, principal: Admin, session: SessionDep) -> PurgeRead:
    """Deletes an archived model for good: tasks, examples, versions, adapters, reports, history. Its name is free again."""
    return purge(session, model=model, actor=principal.actor)
