-- The database of webhook-supervisor: everything lives in a schema of its own, beside whatever the bot keeps.
--
-- Applied by shared/database.py: one migration after the other, each in a transaction of its own, under an advisory lock, by
-- whichever instance comes first. During a deploy old and new code run on one schema, so nothing goes that the version before
-- uses: it must be able to run on what a migration makes, and the new version on the version before's data.
-- Every migration begins with a line "-- migration N: ..."; the numbers are 1, 2, 3 ... without a gap (tested).

-- migration 1: terms, instances, registrations, inbox

-- Who owns the bot. One row a bot, written in the lock's own session at the begin and at the clean end of a term. Claims
-- and completions of the inbox read it FOR SHARE: a new term waits for those under way, and none comes after it.
CREATE TABLE webhook_supervisor.terms (
    bot_id            bigint PRIMARY KEY,
    number            bigint NOT NULL,              -- grows; may repeat after a failover, so compare uuid
    uuid              uuid NOT NULL,
    instance_id       text NOT NULL,
    deploy_id         text,
    deadline_seconds  double precision NOT NULL,    -- how long its owner may believe in it without an answered heartbeat
    began_at          timestamptz NOT NULL,
    ended_at          timestamptz,                  -- set by a clean end: its worker is gone, nothing is in flight
    successor_id      text,                         -- instance that the owner handed over to; nobody else begins a term
    successor_until   timestamptz                   -- ... before this
);

-- Who is there. One row for each start of an instance, announced by its supervisor every few seconds.
CREATE TABLE webhook_supervisor.instances (
    bot_id                bigint NOT NULL,
    instance_id           text NOT NULL,            -- the platform's id plus a part of its own for each start
    platform_instance_id  text NOT NULL,            -- the platform's id alone: a restart in place keeps it
    deploy_id             text,                     -- null where the platform names none
    token_fingerprint     text NOT NULL,            -- tells instances with another token apart, never the token
    ready                 boolean NOT NULL,
    candidate_after       timestamptz NOT NULL,     -- no candidate for a hand-over before this: it gave up or failed
    handed_over_at        timestamptz,              -- when it last handed over: its deploy is handed nothing back for a minute
    backend_pid           integer NOT NULL,         -- of its lease session: tells in pg_locks whether it waits
    first_announced_at    timestamptz NOT NULL,     -- of the first start under this platform id and deploy
    announced_at          timestamptz NOT NULL,
    PRIMARY KEY (bot_id, instance_id)
) WITH (fillfactor = 50);

-- What has been, or is about to be, registered at Telegram. Recorded before setWebhook; those before a confirmed one are
-- superseded, and go some minutes later: until then every instance accepts them.
CREATE TABLE webhook_supervisor.registrations (
    bot_id         bigint NOT NULL,
    path_hash      bytea NOT NULL,                  -- SHA-256 of the secret path
    secret_hash    bytea NOT NULL,                  -- SHA-256 of the secret token
    recorded_at    timestamptz NOT NULL,
    confirmed_at   timestamptz,
    superseded_at  timestamptz,
    PRIMARY KEY (bot_id, path_hash, secret_hash)
);

-- The inbox. seq is the order; the body goes at completion, the key after the window of deduplication. What the columns
-- mean to the dispatch is told in webhook_worker/inbox.py. An INSERT gives bot_id, update_id, lane and body, and says ON
-- CONFLICT DO NOTHING without naming a target: the unique index is a partial one.
CREATE TABLE webhook_supervisor.inbox (
    seq          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bot_id       bigint NOT NULL,
    update_id    bigint NOT NULL,
    keyed        boolean NOT NULL DEFAULT true,     -- false: a dead letter older than the window; its update_id may come again
    lane         bigint,                            -- chat, else user; null: the update alone, or done
    lane_key     bigint NOT NULL                    -- the lane; beyond all ids of chats, one for each update that is alone
                 GENERATED ALWAYS AS (coalesce(lane, 4611686018427387904 + seq)) STORED,
    body         bytea,                             -- as received; null once done
    state        text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'claimed', 'done', 'dead')),
    attempts     integer NOT NULL DEFAULT 0,        -- starts that count toward MAX_ATTEMPTS: the one now, and those that crashed
    starts       integer NOT NULL DEFAULT 0,        -- all starts; which claim a completion belongs to, and what handlers see
    term         uuid,                              -- of the last claim; null once done
    received_at  timestamptz NOT NULL DEFAULT now(),
    claimed_at   timestamptz,
    retry_at     timestamptz,                       -- a transient failure: not before this, and its lane waits
    retry_told   boolean NOT NULL DEFAULT false,    -- retry_at was named by Telegram: never ahead of it
    retries      integer NOT NULL DEFAULT 0,        -- transient failures so far: sets the backoff
    finished_at  timestamptz,
    error        text                               -- why it is dead (traceback), or why it was last retried
) WITH (
    fillfactor = 80,
    -- A queue: every row dies twice before it is deleted, and the heads of lanes are found past what is dead.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000
);

CREATE UNIQUE INDEX inbox_update_key ON webhook_supervisor.inbox (bot_id, update_id) WHERE keyed;
CREATE INDEX inbox_lanes ON webhook_supervisor.inbox (bot_id, lane_key, seq) WHERE state = 'pending';
CREATE INDEX inbox_pending ON webhook_supervisor.inbox (bot_id, seq) WHERE state = 'pending';
CREATE INDEX inbox_retries ON webhook_supervisor.inbox (bot_id, retry_at) WHERE state = 'pending' AND retry_at IS NOT NULL;
CREATE INDEX inbox_claimed ON webhook_supervisor.inbox (bot_id, lane_key) WHERE state = 'claimed';
CREATE INDEX inbox_suspects ON webhook_supervisor.inbox (bot_id, attempts, seq) WHERE state = 'pending' AND attempts > 0;
CREATE INDEX inbox_finished ON webhook_supervisor.inbox (bot_id, finished_at) WHERE state = 'done';
CREATE INDEX inbox_dead ON webhook_supervisor.inbox (bot_id, finished_at) WHERE state = 'dead';
CREATE INDEX inbox_dead_keyed ON webhook_supervisor.inbox (bot_id, finished_at) WHERE state = 'dead' AND keyed;

-- migration 2: a completed update takes no more than its key needs

-- It is kept for days, so it is most of the table: 148 bytes with its indexes in place of 210. What was NOT NULL for a pending
-- update is null for a done one (SETTLE in webhook_worker/inbox_statements.py). No update of a row is a HOT one, since every
-- one changes the state, which indexes look at; a tenth of a page is left so that most new versions stay on it, and the
-- write-ahead log need not have their bodies again. Rewrites the table: some seconds for a million keys.
ALTER TABLE webhook_supervisor.inbox
    DROP COLUMN lane_key,
    ALTER COLUMN attempts DROP NOT NULL,
    ALTER COLUMN starts DROP NOT NULL,
    ALTER COLUMN received_at DROP NOT NULL,
    ALTER COLUMN retry_told DROP NOT NULL,
    ALTER COLUMN retries DROP NOT NULL,
    SET (fillfactor = 90);
ALTER TABLE webhook_supervisor.inbox
    ADD COLUMN lane_key bigint  -- the lane; beyond all ids of chats, one for each update that is alone; null once done
    GENERATED ALWAYS AS (CASE WHEN state <> 'done' THEN coalesce(lane, 4611686018427387904 + seq) END) STORED;
CREATE INDEX inbox_lanes ON webhook_supervisor.inbox (bot_id, lane_key, seq) WHERE state = 'pending';
CREATE INDEX inbox_claimed ON webhook_supervisor.inbox (bot_id, lane_key) WHERE state = 'claimed';

-- To the minute, since Postgres keeps equal keys of an index once: 7 bytes for each update in place of up to 31.
DROP INDEX webhook_supervisor.inbox_finished;
CREATE INDEX inbox_finished ON webhook_supervisor.inbox (bot_id, date_trunc('minute', finished_at AT TIME ZONE 'UTC'))
    WHERE state = 'done';
