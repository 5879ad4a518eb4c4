-- The database of webhook-supervisor: everything lives in a schema of its own, beside whatever the bot keeps.
--
-- Applied by shared/database/schema.py: one migration after the other, each in a transaction of its own, under an advisory
-- lock, by whichever instance comes first. During a deploy old and new code run on one schema, so a migration only ever adds
-- (tables, indexes, columns with a default) or allows more; the version before must be able to run on it, and it on the version
-- before's data. Nor does one rewrite a table, or take long under a lock: everybody waits for it meanwhile.
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
    successor_until   timestamptz                   -- ... before this, while that one is ready
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

-- The inbox. seq is the order; the key goes after the window of deduplication, all else at completion: what is done is kept for
-- days, so it is most of the table, and a null takes no room. What the columns mean to the dispatch is told in
-- webhook_worker/lanes.py. An INSERT gives bot_id, update_id, lane and body, and says ON CONFLICT DO NOTHING without naming a
-- target: the unique index is a partial one.
CREATE TABLE webhook_supervisor.inbox (
    seq          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bot_id       bigint NOT NULL,
    update_id    bigint NOT NULL,
    keyed        boolean NOT NULL DEFAULT true,     -- false: a dead letter older than the window; its update_id may come again
    lane         bigint,                            -- chat, else user; null: the update alone, or done
    lane_key     bigint                             -- the lane; beyond all ids of chats, one for each update that is alone
                 GENERATED ALWAYS AS (CASE WHEN state <> 'done' THEN coalesce(lane, 4611686018427387904 + seq) END) STORED,
    body         bytea,                             -- as received
    state        text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'claimed', 'done', 'dead')),
    attempts     integer DEFAULT 0,                 -- starts that count toward MAX_ATTEMPTS: the one now, and those that crashed
    starts       integer DEFAULT 0,                 -- all starts; which claim a completion belongs to, and what handlers see
    term         uuid,                              -- of the last claim
    received_at  timestamptz DEFAULT now(),
    claimed_at   timestamptz,
    retry_at     timestamptz,                       -- a transient failure: not before this, and its lane waits
    retry_told   boolean DEFAULT false,             -- retry_at was named by Telegram: never ahead of it
    retries      integer DEFAULT 0,                 -- transient failures so far: sets the backoff
    finished_at  timestamptz,
    error        text                               -- why it is dead (traceback), or why it was last retried
) WITH (
    -- No update of a row is a HOT one, since each changes the state, which indexes look at. With a tenth of a page left, most
    -- new versions stay on it, and the write-ahead log need not have their bodies again.
    fillfactor = 90,
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
-- To the minute, since Postgres keeps equal keys of an index once: 7 bytes for each update in place of up to 31.
CREATE INDEX inbox_completed ON webhook_supervisor.inbox (bot_id, date_trunc('minute', finished_at AT TIME ZONE 'UTC'))
    WHERE state = 'done';
CREATE INDEX inbox_dead ON webhook_supervisor.inbox (bot_id, finished_at) WHERE state = 'dead';
CREATE INDEX inbox_dead_keyed ON webhook_supervisor.inbox (bot_id, finished_at) WHERE state = 'dead' AND keyed;

-- migration 2: a completed update takes no more than its key needs, also in a database that was made before migration 1 said so

-- There lane_key stays as it was, with a value for what is done too, which nothing asks for: a column cannot be computed in
-- another way without the whole table being written again. So does the index that it has in place of inbox_completed, and that
-- serves as well, only larger.
ALTER TABLE webhook_supervisor.inbox
    ALTER COLUMN attempts DROP NOT NULL,
    ALTER COLUMN starts DROP NOT NULL,
    ALTER COLUMN received_at DROP NOT NULL,
    ALTER COLUMN retry_told DROP NOT NULL,
    ALTER COLUMN retries DROP NOT NULL,
    SET (fillfactor = 90);

-- migration 3: the owner can be asked to hand over

ALTER TABLE webhook_supervisor.terms
    ADD COLUMN handover_requested_at timestamptz;   -- by `supervisor handover`, of this term's owner; the next term clears it
