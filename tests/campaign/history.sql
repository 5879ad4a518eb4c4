-- What happened in the database of a campaign, written by the database itself, in the transaction that did it: so only what was
-- committed is there, and pg_xact_commit_timestamp (track_commit_timestamp) tells when. Applied by tests/campaign/recorder.py to a
-- campaign's databases, after the product's schema; never a part of the product.
--
-- Plain INSERTs without an index but the key's: no lock that a statement of the product would wait for.

CREATE SCHEMA campaign;

CREATE TABLE campaign.inbox_changes (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    xid          xid NOT NULL DEFAULT pg_current_xact_id()::xid,
    backend      integer NOT NULL DEFAULT pg_backend_pid(),
    seq          bigint NOT NULL,
    update_id    bigint NOT NULL,
    old_state    text,
    new_state    text,
    old_term     uuid,
    new_term     uuid,
    starts       integer,
    attempts     integer
);

CREATE TABLE campaign.term_changes (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    xid          xid NOT NULL DEFAULT pg_current_xact_id()::xid,
    backend      integer NOT NULL DEFAULT pg_backend_pid(),
    number       bigint NOT NULL,
    uuid         uuid NOT NULL,
    instance_id  text NOT NULL,
    ended        boolean NOT NULL,
    closed       boolean NOT NULL,
    successor_id text
);

-- Signs of life of a lock's session: announcements, and registrations recorded and confirmed. Each is answered on it.
CREATE TABLE campaign.signs (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    backend      integer NOT NULL DEFAULT pg_backend_pid(),
    session      text NOT NULL DEFAULT current_setting('application_name')
);

CREATE FUNCTION campaign.note_inbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO campaign.inbox_changes (seq, update_id, new_state) VALUES (NEW.seq, NEW.update_id, NEW.state);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO campaign.inbox_changes (seq, update_id, old_state, old_term)
        VALUES (OLD.seq, OLD.update_id, OLD.state, OLD.term);
    ELSE
        INSERT INTO campaign.inbox_changes
            (seq, update_id, old_state, new_state, old_term, new_term, starts, attempts)
        VALUES (NEW.seq, NEW.update_id, OLD.state, NEW.state, OLD.term, NEW.term, NEW.starts, NEW.attempts);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION campaign.note_term() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO campaign.term_changes (number, uuid, instance_id, ended, closed, successor_id)
    VALUES (NEW.number, NEW.uuid, NEW.instance_id, NEW.ended_at IS NOT NULL, NEW.successor_until IS NOT NULL, NEW.successor_id);
    RETURN NULL;
END $$;

CREATE FUNCTION campaign.note_sign() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO campaign.signs DEFAULT VALUES;
    RETURN NULL;
END $$;

CREATE TRIGGER campaign_inbox AFTER INSERT OR UPDATE OR DELETE ON webhook_supervisor.inbox
    FOR EACH ROW EXECUTE FUNCTION campaign.note_inbox();
CREATE TRIGGER campaign_terms AFTER INSERT OR UPDATE ON webhook_supervisor.terms
    FOR EACH ROW EXECUTE FUNCTION campaign.note_term();
CREATE TRIGGER campaign_instances AFTER INSERT OR UPDATE ON webhook_supervisor.instances
    FOR EACH ROW EXECUTE FUNCTION campaign.note_sign();
CREATE TRIGGER campaign_registrations AFTER INSERT OR UPDATE ON webhook_supervisor.registrations
    FOR EACH ROW EXECUTE FUNCTION campaign.note_sign();
