"""Erasures over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Response
from sqlalchemy import select

from service.dependencies import (
    Admin,
    Ingester,
    Page,
    PageDep,
    Reader,
    SessionDep,
    Trainer,
    page_of,
)
from service.erasures import commands, queries, signing
from service.erasures.schemas import ErasureRead, RebuildCreate, SignedReceipt, SigningKey
from service.errors import problem_responses
from service.examples.schemas import SubjectQuery
from service.idempotency import IdempotencyDep
from service.models import Erasure
from service.registry.queries import get_model
from service.schemas import ModelPath
from service.updates.queries import describe_update
from service.updates.schemas import UpdateRead

router = APIRouter(tags=["Erasures"])

ErasurePath = Annotated[str, Path(max_length=64, description="The erasure's id")]


@router.delete("/models/{model}/examples", summary="Erase a data subject")
def erase_subject(
    model: ModelPath,
    principal: Ingester,
    session: SessionDep,
    subject: Annotated[str, SubjectQuery],
) -> ErasureRead:
    """Deletes every example of one data subject, in all tasks of the model, and says which versions had learnt
    from any of them.

    Versions are immutable: `POST …/erasures/{id}/rebuild` learns anew without the subject, `…/retire` then removes the
    adapters of the versions that learnt from it, and `…/receipt` attests all of it.
    """
    row = get_model(session, model=model)
    erasure = commands.erase_subject(session, model=row, subject=subject, principal=principal)
    return queries.describe_erasure(session, model=row, erasure=erasure)


@router.get("/models/{model}/erasures", summary="List a model's erasures")
def list_erasures(
    model: ModelPath, _principal: Reader, session: SessionDep, page: PageDep
) -> Page[ErasureRead]:
    """Lists the erasures, newest first, with what a rebuild would do now."""
    row = get_model(session, model=model)
    statement = select(Erasure).where(Erasure.model_id == row.id)
    erasures, cursor = page.select(session, statement, key=Erasure.seq, newest_first=True)
    return Page[ErasureRead](
        **page_of([queries.describe_erasure(session, model=row, erasure=e) for e in erasures], cursor)
    )


@router.get("/models/{model}/erasures/{erasure}", summary="Read an erasure")
def read_erasure(
    model: ModelPath, erasure: ErasurePath, _principal: Reader, session: SessionDep
) -> ErasureRead:
    """Shows which versions are tainted, what a rebuild would do now, and how far the model is cleaned."""
    row = get_model(session, model=model)
    return queries.describe_erasure(
        session, model=row, erasure=queries.get_erasure(session, model=row, erasure=erasure)
    )


@router.post(
    "/models/{model}/erasures/{erasure}/rebuild",
    status_code=202,
    response_model=UpdateRead,
    summary="Learn anew without the subject",
    responses=problem_responses(429),
)
def request_rebuild(
    model: ModelPath,
    erasure: ErasurePath,
    body: RebuildCreate,
    principal: Trainer,
    session: SessionDep,
    idempotency: IdempotencyDep,
) -> Response:
    """Queues one update: what the champion learnt since its last clean ancestor, less the erased rows.

    Its parent is not the champion, so that a passing rebuild waits for `POST /v1/updates/{id}/approve`.
    """
    row = get_model(session, model=model, for_change=True, hold=True)
    found = queries.get_erasure(session, model=row, erasure=erasure)
    update = commands.request_rebuild(session, model=row, erasure=found, request=body, principal=principal)
    answer = describe_update(session, update=update)
    return idempotency.keep(202, answer, headers={"Location": f"/v1/updates/{update.id}"})


@router.post("/models/{model}/erasures/{erasure}/retire", summary="Remove the adapters that learnt from it")
def retire_versions(
    model: ModelPath, erasure: ErasurePath, principal: Admin, session: SessionDep
) -> ErasureRead:
    """Deletes the adapters of every version that learnt from the subject, or was built on one that did.

    No alias may lead to any of them. The versions stay as tombstones: reports remain, a download answers 410.
    """
    row = get_model(session, model=model, lock=True)
    found = queries.get_erasure(session, model=row, erasure=erasure)
    commands.retire_versions(session, model=row, erasure=found, principal=principal)
    return queries.describe_erasure(session, model=row, erasure=found)


@router.get("/models/{model}/erasures/{erasure}/receipt", summary="Read the signed receipt of an erasure")
def read_receipt(
    model: ModelPath, erasure: ErasurePath, _principal: Reader, session: SessionDep
) -> SignedReceipt:
    """Attests what was erased, every version that had learnt from it, and where the model stands at this moment."""
    row = get_model(session, model=model)
    found = queries.get_erasure(session, model=row, erasure=erasure)
    receipt = queries.read_receipt(session, model=row, erasure=found)
    return SignedReceipt(receipt=receipt, signature=signing.sign(receipt.model_dump(mode="json")))


@router.get("/signing-key", summary="Read the key that verifies receipts")
def read_signing_key(_principal: Reader) -> SigningKey:
    """Shows the public key, as a JSON Web Key. It changes when the operator changes the pepper."""
    return signing.signing_key()
