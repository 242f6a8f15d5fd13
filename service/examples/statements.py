"""The SQL of loading a body. `staged` is the transaction's own temporary table, one row per good line.

`problem` marks a row that will not be stored; `other` says what it contradicts.

Statistics of `examples` lag behind its rows by a minute or more, and a join planned on them can take hours. So
stored rows are only ever looked up by key; what is found lies in three more temporary tables, and joins are made only
between those. Texts are looked up one by one, in order: no other whole index begins with tenant and model, so that none
can be taken for theirs. Ids and contents are looked up by arrays, which costs one index probe per key or, at worst, one
scan per array.
"""

LARGE_WORK = """
SELECT set_config('lock_timeout', :lock, true), set_config('work_mem', '64MB', true), set_config('jit', 'off', true),
       set_config('default_statistics_target', '10', true)
"""

# Lookups by arrays are planned for the array at hand. Not for the insert: foreign keys would be planned anew per row.
PLAN_MODE = "SELECT set_config('plan_cache_mode', :plan_mode, true)"

CREATE_STAGING = """
CREATE TEMPORARY TABLE met_texts (text_hash bytea, split text) ON COMMIT DROP;
CREATE TEMPORARY TABLE met_ids (id bigint, external_id text, content_hash bytea, subject text) ON COMMIT DROP;
CREATE TEMPORARY TABLE met_contents (id bigint, content_hash bytea, subject text) ON COMMIT DROP;
CREATE TEMPORARY TABLE staged (
    line bigint, external_id text, asked_split text, hashed_split text, content jsonb, label text,
    content_hash bytea, text_hash bytea, weight double precision, subject text, metadata jsonb,
    problem text, other text
) ON COMMIT DROP
"""

COPY_STAGING = """
COPY pg_temp.staged (line, external_id, asked_split, hashed_split, content, label, content_hash, text_hash,
                     weight, subject, metadata) FROM STDIN
"""

ANALYZE_STAGING = """
ANALYZE pg_temp.staged (external_id, asked_split, label, content_hash, text_hash, subject, problem)
"""
ANALYZE_MET = "ANALYZE pg_temp.met_texts, pg_temp.met_ids, pg_temp.met_contents"

# Two integers, so that these locks never meet those of idempotency keys, which are one.
LOCK_INGEST = "SELECT pg_advisory_xact_lock(72103, hashtext(:tenant || '/' || :model))"

# Arrays as Postgres writes them, so that the caller hands them back without taking them apart.
STAGED_KEYS = """
SELECT array_agg(content_hash)::text AS content_hashes,
       (array_agg(external_id) FILTER (WHERE external_id IS NOT NULL))::text AS external_ids
FROM pg_temp.staged WHERE problem IS NULL GROUP BY line / :keys
"""

MEET_TEXTS = """
INSERT INTO pg_temp.met_texts SELECT DISTINCT row.text_hash, stored.split
FROM (
    SELECT DISTINCT text_hash FROM pg_temp.staged
    WHERE problem IS NULL AND get_byte(text_hash, 0) * :parts / 256 = :part ORDER BY text_hash
) AS row
CROSS JOIN LATERAL (
    SELECT split FROM examples
    WHERE tenant_id = :tenant AND model_id = :model AND text_hash = row.text_hash
    OFFSET 0  -- keeps it a look-up: it is never joined in another way
) AS stored
"""

MEET_IDS = """
INSERT INTO pg_temp.met_ids SELECT id, external_id, content_hash, subject FROM examples
WHERE tenant_id = :tenant AND task_id = :task AND superseded_batch IS NULL AND external_id IS NOT NULL
  AND external_id = ANY(CAST(:external_ids AS text[]))
"""

MEET_CONTENTS = """
INSERT INTO pg_temp.met_contents SELECT id, content_hash, subject FROM examples
WHERE tenant_id = :tenant AND task_id = :task AND superseded_batch IS NULL
  AND content_hash = ANY(CAST(:content_hashes AS bytea[]))
"""

MARK_DUPLICATE_IDS = """
UPDATE pg_temp.staged AS row SET problem = 'duplicate_id', other = first.line::text
FROM (
    SELECT DISTINCT ON (external_id) external_id, line, content_hash FROM pg_temp.staged
    WHERE external_id IN (
        SELECT external_id FROM pg_temp.staged WHERE external_id IS NOT NULL GROUP BY external_id HAVING count(*) > 1
    )
    ORDER BY external_id, line
) AS first
WHERE row.external_id = first.external_id AND row.content_hash <> first.content_hash
"""

MARK_STORED_SPLITS = """
UPDATE pg_temp.staged AS row SET problem = 'split_conflict', other = 'it is stored in the split ' || stored.split
FROM pg_temp.met_texts AS stored
WHERE row.problem IS NULL AND row.asked_split <> stored.split AND row.text_hash = stored.text_hash
"""

MARK_BODY_SPLITS = """
UPDATE pg_temp.staged AS row
SET problem = 'split_conflict', other = 'line ' || first.line || ' asks for ' || first.asked_split
FROM (
    SELECT DISTINCT ON (text_hash) text_hash, line, asked_split FROM pg_temp.staged
    WHERE problem IS NULL AND asked_split IS NOT NULL AND text_hash IN (
        SELECT text_hash FROM pg_temp.staged WHERE problem IS NULL AND asked_split IS NOT NULL
        GROUP BY text_hash HAVING min(asked_split) <> max(asked_split)
    )
    ORDER BY text_hash, line
) AS first
WHERE row.problem IS NULL AND row.text_hash = first.text_hash AND row.asked_split <> first.asked_split
"""

# The model's labels are read by hopping from one to the next along the label index, not by scanning its rows.
MARK_LABELS = """
WITH RECURSIVE hop AS (
    SELECT tasks.id AS task_id, sides.split, first.label
    FROM tasks CROSS JOIN (VALUES ('train'), ('eval')) AS sides (split) CROSS JOIN LATERAL (
        SELECT min(label) AS label FROM examples
        WHERE tenant_id = :tenant AND task_id = tasks.id AND split = sides.split AND superseded_batch IS NULL
    ) AS first
    WHERE tasks.tenant_id = :tenant AND tasks.model_id = :model AND tasks.deleted_at IS NULL
      AND first.label IS NOT NULL
    UNION ALL
    SELECT hop.task_id, hop.split, next.label FROM hop CROSS JOIN LATERAL (
        SELECT min(label) AS label FROM examples
        WHERE tenant_id = :tenant AND task_id = hop.task_id AND split = hop.split AND superseded_batch IS NULL
          AND label > hop.label
    ) AS next
    WHERE next.label IS NOT NULL
), known AS (
    SELECT DISTINCT label FROM hop
), excess AS (
    SELECT label FROM pg_temp.staged
    WHERE problem IS NULL AND label IS NOT NULL AND label NOT IN (SELECT label FROM known)
    GROUP BY label ORDER BY min(line)
    OFFSET (SELECT greatest(:max_labels - count(*), 0) FROM known)
)
UPDATE pg_temp.staged AS row SET problem = 'too_many_labels' FROM excess
WHERE row.problem IS NULL AND row.label = excess.label
"""

# A correction that does not say whose row it is speaks of the same person as the row it corrects.
INHERIT_SUBJECTS = """
UPDATE pg_temp.staged AS row SET subject = stored.subject FROM pg_temp.met_ids AS stored
WHERE row.problem IS NULL AND row.subject IS NULL AND stored.subject IS NOT NULL
  AND row.external_id = stored.external_id
"""

REPLACED_IDS = """
SELECT DISTINCT stored.id FROM pg_temp.met_ids AS stored
JOIN pg_temp.staged AS row ON row.external_id = stored.external_id AND row.content_hash <> stored.content_hash
WHERE row.problem IS NULL
"""

# What this body replaces holds its content no longer.
MARK_STORED_SUBJECTS = f"""
UPDATE pg_temp.staged AS row SET problem = 'subject_conflict', other = 'stored as ex_' || stored.id
FROM pg_temp.met_contents AS stored
WHERE row.problem IS NULL AND row.content_hash = stored.content_hash AND row.subject <> stored.subject
  AND stored.subject IS NOT NULL AND stored.id NOT IN ({REPLACED_IDS})
"""  # noqa: S608  # constants alone

MARK_BODY_SUBJECTS = """
UPDATE pg_temp.staged AS row SET problem = 'subject_conflict', other = 'on line ' || first.line
FROM (
    SELECT DISTINCT ON (content_hash) content_hash, line, subject FROM pg_temp.staged
    WHERE problem IS NULL AND subject IS NOT NULL AND content_hash IN (
        SELECT content_hash FROM pg_temp.staged WHERE problem IS NULL AND subject IS NOT NULL
        GROUP BY content_hash HAVING min(subject) <> max(subject)
    )
    ORDER BY content_hash, line
) AS first
WHERE row.problem IS NULL AND row.content_hash = first.content_hash AND row.subject <> first.subject
"""

FIRST_MARKED = """
SELECT line, problem, other, external_id, label FROM pg_temp.staged
WHERE problem IS NOT NULL ORDER BY line LIMIT :shown
"""

DETAILS = {
    "duplicate_id": "`id` '{external_id}' stands on line {other} with other content; a body may hold an id once",
    "split_conflict": "this text cannot stand on two sides: {other}; leave `split` out, or send that one",
    "subject_conflict": "this content is {other} already, as another subject's, and a row has one subject: send the right "
    "`subject`, leave the line out, or delete the other row first",
    "too_many_labels": "label '{label}' would be one too many: a model may have {max} labels",
}

TASK_HAS_ROWS = "SELECT EXISTS (SELECT FROM examples WHERE tenant_id = :tenant AND task_id = :task)"

LAST_BATCH = "SELECT last_batch FROM models WHERE tenant_id = :tenant AND id = :model"

SUPERSEDE = """
UPDATE examples SET superseded_batch = :batch WHERE tenant_id = :tenant AND id = ANY(CAST(:ids AS bigint[]))
"""

# What a replaced row said may come again.
FORGET_CONTENTS = "DELETE FROM pg_temp.met_contents WHERE id = ANY(CAST(:ids AS bigint[]))"

# Duplicates that say whose the stored row is, where that was not known.
OWNED_CONTENTS = """
SELECT DISTINCT stored.id, row.subject FROM pg_temp.met_contents AS stored
JOIN pg_temp.staged AS row ON row.content_hash = stored.content_hash
WHERE row.problem IS NULL AND row.subject IS NOT NULL AND stored.subject IS NULL
"""

OWN = """
UPDATE examples SET subject = owned.subject
FROM unnest(CAST(:ids AS bigint[]), CAST(:subjects AS text[])) AS owned (id, subject)
WHERE tenant_id = :tenant AND examples.id = ANY(CAST(:ids AS bigint[])) AND examples.id = owned.id
"""

# A text keeps the split it has in the model, else the one the body asks for elsewhere, else the one of its hash.
# Of duplicates within the body the first line stands, with the subject that any of them names. They are sorted out here and not by ON CONFLICT, whose
# speculative inserts cost a third more; the unique indexes stand behind it all the same.
INSERT = """
WITH unasked AS (
    SELECT text_hash FROM pg_temp.staged WHERE problem IS NULL AND asked_split IS NULL
), settled AS (
    SELECT text_hash, min(split) AS split FROM (
        SELECT text_hash, split FROM pg_temp.met_texts
        UNION ALL
        SELECT text_hash, asked_split FROM pg_temp.staged
        WHERE problem IS NULL AND asked_split IS NOT NULL AND text_hash IN (SELECT text_hash FROM unasked)
    ) AS sides GROUP BY text_hash
), repeated AS (
    SELECT content_hash, min(line) AS first_line, min(subject) AS subject FROM pg_temp.staged WHERE problem IS NULL
    GROUP BY content_hash HAVING count(*) > 1
)
INSERT INTO examples (tenant_id, model_id, task_id, external_id, split, content, label, content_hash, text_hash,
                      weight, subject, metadata, batch)
SELECT :tenant, :model, :task, row.external_id, coalesce(row.asked_split, settled.split, row.hashed_split),
       row.content, row.label, row.content_hash, row.text_hash, row.weight,
       coalesce(row.subject, repeated.subject), row.metadata, :batch
FROM pg_temp.staged AS row
LEFT JOIN settled ON row.asked_split IS NULL AND settled.text_hash = row.text_hash
LEFT JOIN repeated ON repeated.content_hash = row.content_hash
WHERE row.problem IS NULL AND (repeated.first_line IS NULL OR repeated.first_line = row.line)
  AND NOT EXISTS (SELECT FROM pg_temp.met_contents AS stored WHERE stored.content_hash = row.content_hash)
ORDER BY row.line
"""

TAKE_BATCH = """
UPDATE models SET last_batch = last_batch + 1 WHERE tenant_id = :tenant AND id = :model AND archived_at IS NULL
RETURNING last_batch
"""
