"""The SQL of the inbox: how updates are stored, which rows a claim takes, and how every statement after that is fenced.

**Fence.** Whatever changes a row that is there reads the term's row FOR SHARE first, in the same statement: every such
statement draws its rows from the CTE `owner`, which cannot yield one before the lock is held. A new term is an UPDATE of that
row. So it waits for claims and settlements under way; and one that came later waits for it, finds by EvalPlanQual that the row
no longer says what it looked for, and touches nothing. (A sub-select without the lock is no fence: under READ COMMITTED its
statement goes on with the snapshot from before the wait.) No row at all in the result says "superseded"; a row of nulls,
"nothing to do".

**Heads.** A lane's head is its pending row with the lowest seq, unless a row of the lane is claimed. It is looked for in the
table as it is, never beyond a cursor of seq: a lower one can become visible later. A backlog has 100,000 rows in one lane, or
in as many; a claim must cost the same. Three sources are asked, each for no more than there are free slots, and take turns:

    due     retries whose time has come, the longest overdue first
    fresh   among the newest rows those that are heads: a new chat is served beside any backlog
    walk    from lane to lane by the index, a step for each, at most WALK_LANES in a claim, onward from where the last claim
            stopped: every lane has its turn, however long its neighbours' queues are

Simply the lowest seqs first would be a queue: who writes now would wait for everything that was there before.

Rows with attempts are suspects (lanes.py): heads that none of these takes. They block their lanes until CLAIM_SUSPECT.

**Doubt.** A connection can break after a commit and before its answer. A settlement names the claim it belongs to (`starts`),
so that repeating it, at any time, does nothing. A claim returns, beside what it claims, what is claimed under our term
without our knowledge: nothing is counted twice, nothing is forgotten.

Not promised: an order among lanes.
"""

# ruff: noqa: S608 - put together from constants

from shared.database import CLEARED, OLDEST_ROWS

WALK_LANES = 256
"""Lanes that one claim looks at: 2 ms. More than that are blocked only when something is gone that all handlers need."""

FRESH_ROWS = 64
"""Newest rows that one claim looks at: 1 ms."""

PURGE_ROWS = 500
"""Rows that one delete takes: 10 ms."""

COUNT_LIMIT = OLDEST_ROWS
"""Pending rows that are counted one by one: those among which the oldest is looked for."""

DEAD_LIMIT = 20_000
"""The same of dead letters, where nothing is passed by: 10 ms."""

_OWNER = """
owner AS MATERIALIZED (
    SELECT bot_id FROM webhook_supervisor.terms
     WHERE bot_id = %(bot_id)s AND uuid = %(term)s::uuid AND ended_at IS NULL
       FOR SHARE
)"""

# The lanes that are blocked are looked up once in a statement: while somebody's old snapshot is held, every settled row leaves
# an entry in the index of claimed rows that cannot be removed, and a probe for each lane would pass by all of them.
_BUSY = """
busy AS MATERIALIZED (
    SELECT i.seq, i.lane_key, i.term FROM webhook_supervisor.inbox i
     WHERE i.bot_id = %(bot_id)s AND i.state = 'claimed' ORDER BY i.lane_key
)"""
# Asks for an order that one index has, and no other: see PLAN.
_IS_HEAD = """
{row}.lane_key <> ALL (ARRAY(SELECT lane_key FROM busy))
       AND {row}.seq = (SELECT b.seq FROM webhook_supervisor.inbox b
                         WHERE b.bot_id = %(bot_id)s AND b.state = 'pending' AND b.lane_key >= {row}.lane_key
                         ORDER BY b.lane_key, b.seq LIMIT 1)"""

# A retry's time is one of the database's wall clock. If that was set back since the row was claimed, the time may be hours
# away, and its lane would wait as long: then it is due.
_IS_DUE = "(coalesce({row}.retry_at <= now(), true) OR coalesce({row}.claimed_at > now(), false))"

_START = """
state = 'claimed', term = %(term)s::uuid, attempts = i.attempts + 1, starts = i.starts + 1, claimed_at = now(),
       retry_at = NULL, retry_told = false"""
_STARTED = """
i.seq, i.starts, i.update_id, i.lane_key, i.body, i.attempts, i.retries,
       extract(epoch FROM now() - i.received_at)::float8 AS age_seconds"""

_STORE = """
WITH stored AS (
    INSERT INTO webhook_supervisor.inbox (bot_id, update_id, lane, body)
    SELECT %(bot_id)s, sent.update_id, sent.lane, substring(%(bodies)s::bytea FROM sent.first FOR sent.length)
      FROM unnest(%(update_ids)s::bigint[], %(lanes)s::bigint[], %(firsts)s::integer[], %(lengths)s::integer[])
           WITH ORDINALITY AS sent (update_id, lane, first, length, position)
     ORDER BY sent.position
    ON CONFLICT DO NOTHING
    RETURNING update_id
)
SELECT array_agg(update_id){notify} FROM stored
"""
STORE = _STORE.format(notify="")
"""Under no term: whoever receives an update stores it."""
# One notification a flush, and none without news: NOTIFY takes a lock that all commits of the server share.
STORE_AND_NOTIFY = _STORE.format(notify=", CASE WHEN count(*) > 0 THEN pg_notify(%(channel)s, '') END")

CLAIM = f"""
WITH RECURSIVE {_OWNER},{_BUSY},
due AS (
    SELECT d.seq, row_number() OVER (ORDER BY d.retry_at) AS place
      FROM owner CROSS JOIN LATERAL (
        SELECT i.seq, i.retry_at FROM webhook_supervisor.inbox i
         WHERE i.bot_id = owner.bot_id AND i.state = 'pending' AND i.retry_at <= now()
           AND i.attempts = 0 AND {_IS_HEAD.format(row="i")}
         ORDER BY i.retry_at LIMIT %(free)s::int) d
),
ahead AS (
    SELECT a.seq, row_number() OVER (ORDER BY a.retry_at) AS place
      FROM owner CROSS JOIN LATERAL (
        SELECT i.seq, i.retry_at FROM webhook_supervisor.inbox i
         WHERE i.bot_id = owner.bot_id AND i.state = 'pending' AND i.retry_at > now() AND NOT i.retry_told
           AND i.attempts = 0 AND {_IS_HEAD.format(row="i")}
         ORDER BY i.retry_at LIMIT %(ahead)s::int) a
),
fresh AS (
    SELECT f.seq, row_number() OVER (ORDER BY f.seq) AS place
      FROM owner CROSS JOIN LATERAL (
        SELECT l.seq FROM (
            SELECT DISTINCT ON (n.lane_key) n.lane_key, n.seq, n.attempts, n.retry_at FROM (
                SELECT i.lane_key, i.seq, i.attempts, i.retry_at FROM webhook_supervisor.inbox i
                 WHERE i.bot_id = owner.bot_id AND i.state = 'pending'
                 ORDER BY i.seq DESC LIMIT {FRESH_ROWS}) n
             ORDER BY n.lane_key, n.seq) l
         WHERE l.retry_at IS NULL AND l.attempts = 0 AND {_IS_HEAD.format(row="l")}
         ORDER BY l.seq LIMIT %(free)s::int) f
),
walk (bot_id, lane_key, last_key, seq, is_ready, found, steps) AS (
    SELECT bot_id, %(after_lane)s::bigint, 9223372036854775807, NULL::bigint, false, 0, 0 FROM owner
    UNION ALL
    SELECT walk.bot_id, next.lane_key, next.last_key, next.seq, head.is_ready, walk.found + head.is_ready::int, walk.steps + 1
      FROM walk
      CROSS JOIN LATERAL (
        -- The next lane; behind the last one, the first, and then only as far as where we began.
        (SELECT i.bot_id, i.lane_key, i.seq, i.attempts, i.retry_at, i.claimed_at, walk.last_key FROM webhook_supervisor.inbox i
          WHERE i.bot_id = walk.bot_id AND i.state = 'pending' AND i.lane_key > walk.lane_key AND i.lane_key <= walk.last_key
          ORDER BY i.lane_key, i.seq LIMIT 1)
        UNION ALL
        (SELECT i.bot_id, i.lane_key, i.seq, i.attempts, i.retry_at, i.claimed_at, %(after_lane)s::bigint
           FROM webhook_supervisor.inbox i
          WHERE i.bot_id = walk.bot_id AND i.state = 'pending' AND i.lane_key <= %(after_lane)s::bigint
            AND walk.last_key > %(after_lane)s::bigint
          ORDER BY i.lane_key, i.seq LIMIT 1)
        LIMIT 1) next
      CROSS JOIN LATERAL (
        SELECT next.attempts = 0 AND {_IS_DUE.format(row="next")}
               AND next.lane_key <> ALL (ARRAY(SELECT lane_key FROM busy)) AS is_ready) head
     WHERE walk.found < %(free)s::int AND walk.steps < {WALK_LANES}
),
candidates AS (
    SELECT seq, 3 * place + %(turn)s::int AS place FROM due
    UNION ALL SELECT seq, 3 * place + mod(%(turn)s::int + 1, 3) FROM fresh
    UNION ALL SELECT seq, 3 * found + mod(%(turn)s::int + 2, 3) FROM walk WHERE is_ready
    UNION ALL SELECT seq, 1000000 + place FROM ahead
),
chosen AS MATERIALIZED (
    SELECT seq FROM candidates GROUP BY seq ORDER BY min(place) LIMIT %(free)s::int
),
claimed AS (
    UPDATE webhook_supervisor.inbox i SET {_START}
     WHERE i.seq = ANY (ARRAY(SELECT seq FROM chosen)) AND coalesce(i.state, '') = 'pending'
    RETURNING {_STARTED}
),
adopted AS (
    SELECT {_STARTED} FROM owner CROSS JOIN webhook_supervisor.inbox i
     WHERE i.seq = ANY (ARRAY(SELECT seq FROM busy WHERE term = %(term)s::uuid AND seq <> ALL (%(known)s::bigint[])))
       AND coalesce(i.state, '') = 'claimed'
),
summary AS MATERIALIZED (
SELECT -- As far as every lane that was ready has got its turn.
       (SELECT w.lane_key FROM walk w
         WHERE w.steps < coalesce((SELECT min(m.steps) FROM walk m
                                    WHERE m.is_ready AND m.seq <> ALL (ARRAY(SELECT seq FROM chosen))), {WALK_LANES + 1})
         ORDER BY w.steps DESC LIMIT 1) AS after_lane,
       (SELECT max(w.found) < %(free)s::int AND max(w.steps) < {WALK_LANES} FROM walk w) AS is_complete,
       (SELECT extract(epoch FROM i.retry_at - now())::float8 FROM webhook_supervisor.inbox i
         WHERE i.bot_id = owner.bot_id AND i.state = 'pending' AND i.retry_at > now()
         ORDER BY i.retry_at LIMIT 1) AS next_retry_seconds,
       EXISTS (SELECT FROM busy WHERE term IS DISTINCT FROM %(term)s::uuid)
       OR (SELECT true FROM webhook_supervisor.inbox i
            WHERE i.bot_id = owner.bot_id AND i.state = 'pending' AND i.attempts > 0 AND {_IS_DUE.format(row="i")}
            ORDER BY i.attempts, i.seq LIMIT 1) IS NOT NULL AS has_suspects
  FROM owner
)
SELECT summary.*, r.*, EXISTS (SELECT FROM ahead WHERE ahead.seq = r.seq)
  FROM summary LEFT JOIN (SELECT * FROM claimed UNION ALL SELECT * FROM adopted) r ON true
 ORDER BY r.seq
"""

_UNLESS_DONE = {
    "attempts": "greatest(i.attempts - v.refund, 0)",
    "term": "CASE WHEN v.state = 'dead' THEN i.term END",
    "retry_at": "now() + v.retry_seconds * interval '1 second'",
    "retry_told": "v.is_told",
    "retries": "i.retries + v.is_retry::int",
    "error": "coalesce(v.error, i.error)",
}
_CLEARED = ",\n           ".join(
    f"{column} = CASE WHEN v.state <> 'done' THEN {_UNLESS_DONE.get(column, f'i.{column}')} END"
    for column in CLEARED
)

# The verdicts come as one document: eight arrays cost the sender 45 us for one verdict and 144 for 32, this 3 and 17.
SETTLE = f"""
WITH {_OWNER},
verdicts AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(verdicts)s::json)
        AS v (seq bigint, starts int, state text, refund int, is_retry bool, retry_seconds float8, is_told bool, error text)
),
settled AS (
    UPDATE webhook_supervisor.inbox i
       SET state = v.state,
           finished_at = CASE WHEN v.state IN ('done', 'dead') THEN now() END,
           {_CLEARED}
      FROM owner
     CROSS JOIN verdicts v
     WHERE i.seq = ANY (ARRAY(SELECT seq FROM verdicts)) AND i.seq = v.seq AND i.starts = v.starts
       AND coalesce(i.state, '') = 'claimed' AND i.term = %(term)s::uuid
    RETURNING i.seq
)
SELECT (SELECT count(*) FROM settled) FROM owner
"""

SUSPECTS = f"""
WITH {_BUSY}
SELECT i.seq, i.attempts FROM webhook_supervisor.inbox i
 WHERE i.bot_id = %(bot_id)s AND i.state = 'claimed' AND i.term IS DISTINCT FROM %(term)s::uuid
UNION ALL
SELECT i.seq, i.attempts FROM webhook_supervisor.inbox i
 WHERE i.bot_id = %(bot_id)s AND i.state = 'pending' AND i.attempts > 0 AND {_IS_DUE.format(row="i")}
   AND {_IS_HEAD.format(row="i")}
 LIMIT 1000
"""

# What is a suspect now, whatever it was when it was listed.
_STILL_SUSPECT = """
i.bot_id = owner.bot_id AND ((i.state = 'claimed' AND i.term IS DISTINCT FROM %(term)s::uuid)
       OR (i.state = 'pending' AND i.attempts > 0))"""

CLAIM_SUSPECT = f"""
WITH {_OWNER},
claimed AS (
    UPDATE webhook_supervisor.inbox i SET {_START}
      FROM owner WHERE {_STILL_SUSPECT} AND i.seq = %(seq)s
    RETURNING {_STARTED}
)
SELECT claimed.* FROM owner LEFT JOIN claimed ON true
"""

BURY = f"""
WITH {_OWNER},
buried AS (
    UPDATE webhook_supervisor.inbox i
       SET state = 'dead', finished_at = now(), retry_at = NULL, error = concat_ws(E'\\n', %(error)s::text, i.error)
      FROM owner WHERE {_STILL_SUSPECT} AND i.seq = ANY (%(seqs)s::bigint[])
    RETURNING i.update_id
)
SELECT buried.update_id FROM owner LEFT JOIN buried ON true
"""

CONDEMN = f"""
WITH {_OWNER},
condemned AS (
    UPDATE webhook_supervisor.inbox i
       SET attempts = greatest(i.attempts, %(max_attempts)s), error = %(error)s
      FROM owner
     WHERE i.bot_id = owner.bot_id AND i.seq = %(seq)s AND i.starts = %(starts)s
       AND i.state = 'claimed' AND i.term = %(term)s::uuid
    RETURNING i.seq
)
SELECT (SELECT count(*) FROM condemned) FROM owner
"""

# A plan is made once for a session, maybe while the table is empty, and kept: a plan for ten rows takes seconds on 100,000
# (measured). So nothing is left to estimates: an index for everything, and no second thoughts.
PLAN = """
SELECT set_config('plan_cache_mode', 'force_generic_plan', true), set_config('jit', 'off', true),
       set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_sort', 'off', true), set_config('enable_hashjoin', 'off', true),
       set_config('enable_mergejoin', 'off', true)
"""

# Reads the term without the lock: it changes nothing, and an idle bot's database is to be idle.
PEEK = """
SELECT EXISTS (SELECT FROM webhook_supervisor.inbox i WHERE i.bot_id = t.bot_id AND i.state = 'pending')
    OR EXISTS (SELECT FROM webhook_supervisor.inbox i
                WHERE i.bot_id = t.bot_id AND i.state = 'claimed'
                  AND (i.term IS DISTINCT FROM t.uuid OR i.seq <> ALL (%(known)s::bigint[])))
  FROM webhook_supervisor.terms t
 WHERE t.bot_id = %(bot_id)s AND t.uuid = %(term)s::uuid AND t.ended_at IS NULL
"""

# For the transaction that counts.
COUNT_BRIEFLY = "SELECT set_config('statement_timeout', '2s', true)"

DEPTH = f"""
WITH oldest AS MATERIALIZED (
    SELECT i.seq, i.received_at FROM webhook_supervisor.inbox i
     WHERE i.bot_id = %(bot_id)s AND i.state = 'pending' ORDER BY i.seq LIMIT {COUNT_LIMIT}
),
counted AS (SELECT count(*) AS rows, min(seq) AS first, max(seq) AS last, min(received_at) AS since FROM oldest)
SELECT -- Beyond the limit, as dense as up to there.
       CASE WHEN counted.rows < {COUNT_LIMIT} THEN counted.rows
            ELSE round(counted.rows::numeric / (counted.last - counted.first + 1)
                       * ((SELECT i.seq FROM webhook_supervisor.inbox i
                            WHERE i.bot_id = %(bot_id)s AND i.state = 'pending' ORDER BY i.seq DESC LIMIT 1)
                          - counted.first + 1))::bigint
       END,
       (SELECT count(*) FROM webhook_supervisor.inbox i WHERE i.bot_id = %(bot_id)s AND i.state = 'claimed'),
       (SELECT count(*) FROM (SELECT FROM webhook_supervisor.inbox i
                               WHERE i.bot_id = %(bot_id)s AND i.state = 'dead' LIMIT {DEAD_LIMIT}) AS d),
       greatest(coalesce(extract(epoch FROM now() - counted.since)::float8, 0), 0)
  FROM counted
"""

# The rows' numbers first, as an array: a join could be planned as a walk over the whole table. In the order of an index, for
# the same reason. The state once more, of the row as it is when its lock is free: `inbox retry` may have revived it meanwhile.
_FORGET = """
DELETE FROM webhook_supervisor.inbox WHERE seq = ANY (ARRAY(
    SELECT i.seq FROM webhook_supervisor.inbox i
     WHERE i.bot_id = %(bot_id)s AND i.state = '{state}' AND i.finished_at < {limit}{more}
     ORDER BY {order} LIMIT {rows}))
   AND coalesce(state, '') = '{state}'
"""
_LIMIT = "now() - %(days)s * interval '1 day'"
_BY_MINUTE = "date_trunc('minute', {time} AT TIME ZONE 'UTC')"
_FINISHED = _BY_MINUTE.format(time="i.finished_at")
# Its index holds minutes; in a database that was made before, the time itself.
FORGET_DONE = _FORGET.format(
    state="done",
    limit=_LIMIT,
    more=f" AND {_FINISHED} <= {_BY_MINUTE.format(time=f'({_LIMIT})')}",
    order=_FINISHED,
    rows=PURGE_ROWS,
)
FORGET_DEAD = _FORGET.format(state="dead", limit=_LIMIT, more="", order="i.finished_at", rows=PURGE_ROWS)
UNKEY_DEAD = f"""
UPDATE webhook_supervisor.inbox SET keyed = false WHERE seq = ANY (ARRAY(
    SELECT i.seq FROM webhook_supervisor.inbox i
     WHERE i.bot_id = %(bot_id)s AND i.state = 'dead' AND i.keyed
       AND i.finished_at < now() - %(days)s * interval '1 day'
     ORDER BY i.finished_at LIMIT {PURGE_ROWS}))
   AND coalesce(state, '') = 'dead'
"""
