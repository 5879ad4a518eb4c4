"""The SQL of the lock's session: the wait for the lock, what is held, who is there, the begin of a term.

Times are the database's: `clock_timestamp()`, since a statement may have waited. What the columns mean is told in
shared/schema.sql.
"""
# ruff: noqa: S608 - put together from constants

from shared.database import IS_OF_KEY

HELD = f"""
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_locks WHERE pid = pg_backend_pid() AND granted AND {IS_OF_KEY}
) AS held"""


def wait_for_lock(key: tuple[int, int], seconds: float) -> str:
    """Ends without an error when the time is over, or it is cancelled: the handler keeps an ERROR a second out of the user's
    database log. A cancellation is CutWait's; the session's statement_timeout, which is one to the server, is longer.

    A DO block takes no parameters. What stands behind it in the same message has the usual lock_timeout again; where the wait
    was in vain, that is the handler's doing, which undoes the setting with the rest.
    """
    first, second = key
    return (
        "DO $$ DECLARE usual text := current_setting('lock_timeout'); BEGIN "
        f"PERFORM set_config('lock_timeout', '{round(seconds * 1000)}ms', true); "
        f"PERFORM pg_advisory_lock({first}, {second}); "
        "PERFORM set_config('lock_timeout', usual, true); "
        "EXCEPTION WHEN lock_not_available OR query_canceled THEN NULL; END $$"
    )


# As old as the first start at that place under that code, since when no other code was there: places whose names are kept (a
# Fly machine, a pod of a StatefulSet) get the same deploy again by a rollback, which is young and not a restart.
ANNOUNCE = """
INSERT INTO webhook_supervisor.instances AS i
    (bot_id, instance_id, platform_instance_id, deploy_id, token_fingerprint, ready, candidate_after, backend_pid,
     first_announced_at, announced_at)
VALUES (
    %(bot)s, %(instance)s, %(platform)s, %(deploy)s, %(fingerprint)s, %(ready)s,
    clock_timestamp() + %(abstain)s * interval '1 second', pg_backend_pid(),
    COALESCE(
        (SELECT min(first_announced_at) FROM webhook_supervisor.instances
         WHERE bot_id = %(bot)s AND platform_instance_id = %(platform)s AND deploy_id IS NOT DISTINCT FROM %(deploy)s
           AND announced_at > COALESCE(
               (SELECT max(first_announced_at) FROM webhook_supervisor.instances
                WHERE bot_id = %(bot)s AND platform_instance_id = %(platform)s AND deploy_id IS DISTINCT FROM %(deploy)s),
               '-infinity')),
        clock_timestamp()),
    clock_timestamp())
ON CONFLICT (bot_id, instance_id) DO UPDATE SET
    ready = excluded.ready,
    candidate_after = excluded.candidate_after,
    backend_pid = excluded.backend_pid,
    announced_at = excluded.announced_at"""

PEERS = f"""
SELECT instance_id, deploy_id, token_fingerprint, ready,
       EXISTS (
           SELECT FROM pg_catalog.pg_locks l WHERE NOT l.granted AND l.pid = i.backend_pid AND {IS_OF_KEY}
       ) AS waiting,
       candidate_after <= clock_timestamp() AS candidate,
       extract(epoch FROM statement_timestamp() - first_announced_at)::float8 AS age_seconds,
       extract(epoch FROM statement_timestamp() - announced_at)::float8 AS silent_seconds,
       extract(epoch FROM statement_timestamp() - handed_over_at)::float8 AS handed_over_seconds,
       (SELECT t.instance_id FROM webhook_supervisor.terms t WHERE t.bot_id = %(bot)s AND t.ended_at IS NULL) AS holder,
       (SELECT extract(epoch FROM statement_timestamp() - t.handover_requested_at)::float8
        FROM webhook_supervisor.terms t WHERE t.bot_id = %(bot)s AND t.ended_at IS NULL) AS handover_requested_seconds
FROM webhook_supervisor.instances i
WHERE bot_id = %(bot)s AND announced_at > clock_timestamp() - %(listed)s::interval"""

# One statement, so that the row is read, judged and written under its lock: it waits for the claims of the term before.
# Without the advisory lock it touches nothing.
BEGIN = f"""
WITH lock AS MATERIALIZED ({HELD}
), before AS MATERIALIZED (
    SELECT uuid, deadline_seconds, ended_at, successor_id, successor_until
    FROM webhook_supervisor.terms WHERE bot_id = %(bot)s AND (SELECT held FROM lock) FOR UPDATE
), verdict AS MATERIALIZED (
    SELECT (SELECT held FROM lock) AND NOT EXISTS (
        -- The named one may have been told to stop since, have lost its worker, or store no more: then it keeps nobody out.
        SELECT FROM before JOIN webhook_supervisor.instances i ON i.bot_id = %(bot)s AND i.instance_id = successor_id
        WHERE i.ready AND successor_id <> %(instance)s AND successor_until > clock_timestamp()
          -- Further away than anybody ever sets it: the clock was set back since, and would keep everybody out for as long.
          AND successor_until <= clock_timestamp() + %(kept)s::interval
    ) AS allowed
), written AS (
    INSERT INTO webhook_supervisor.terms AS t
        (bot_id, number, uuid, instance_id, deploy_id, deadline_seconds, began_at)
    SELECT %(bot)s, 1, %(term)s, %(instance)s, %(deploy)s, %(deadline)s, clock_timestamp() FROM verdict WHERE allowed
    ON CONFLICT (bot_id) DO UPDATE SET
        number = t.number + 1, uuid = excluded.uuid, instance_id = excluded.instance_id, deploy_id = excluded.deploy_id,
        deadline_seconds = excluded.deadline_seconds, began_at = excluded.began_at,
        ended_at = NULL, successor_id = NULL, successor_until = NULL, handover_requested_at = NULL
    RETURNING number
)
SELECT lock.held, verdict.allowed, before.uuid::text AS uuid, before.deadline_seconds, before.ended_at IS NOT NULL AS ended,
       before.successor_id, written.number
FROM lock CROSS JOIN verdict LEFT JOIN before ON true LEFT JOIN written ON true"""
