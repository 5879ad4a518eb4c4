-- The database of webhook-supervisor: everything lives in a schema of its own, beside whatever the bot keeps.
--
-- Applied by shared/database.py: one migration after the other, each in a transaction of its own, under an advisory lock, by
-- whichever instance comes first. During a deploy old and new code run on one schema, so a migration only ever adds (tables,
-- indexes, columns with a default); the version before must be able to run on it, and it on the version before's data.
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

-- The inbox. seq is the order; the body goes at completion, the key after the window of deduplication.
CREATE TABLE webhook_supervisor.inbox (
    seq          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bot_id       bigint NOT NULL,
    update_id    bigint NOT NULL,
    lane         bigint,                            -- chat, else user; null: the update alone
    body         bytea,                             -- as received; null once done
    state        text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'claimed', 'done', 'dead')),
    attempts     integer NOT NULL DEFAULT 0,        -- starts that count toward MAX_ATTEMPTS: the first, and those after a crash
    term         uuid,                              -- of the last claim
    received_at  timestamptz NOT NULL DEFAULT now(),
    claimed_at   timestamptz,
    retry_at     timestamptz,                       -- a transient failure: not before this, and its lane waits
    retries      integer NOT NULL DEFAULT 0,        -- transient failures so far: sets the backoff
    finished_at  timestamptz,
    error        text,                              -- why it is dead (traceback), or why it was last retried
    CONSTRAINT inbox_update_key UNIQUE (bot_id, update_id)
) WITH (fillfactor = 80);

CREATE INDEX inbox_lanes ON webhook_supervisor.inbox (bot_id, lane, seq) WHERE state IN ('pending', 'claimed');
CREATE INDEX inbox_claimed ON webhook_supervisor.inbox (bot_id, lane) WHERE state = 'claimed';
CREATE INDEX inbox_finished ON webhook_supervisor.inbox (bot_id, finished_at) WHERE state = 'done';
CREATE INDEX inbox_dead ON webhook_supervisor.inbox (bot_id, finished_at) WHERE state = 'dead';
