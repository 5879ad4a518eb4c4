"""The supervisor: one small process an instance, owner of the lock and of the webhook's registration.

Law: it imports `shared` and never `webhook_worker`; what runs never sees an update.

    pure      messages             events and actions
              state, observation   the facts, and how events change them; call_observation: those of Bot API calls
              core                 what to do about them: the one entrance to readings, session_plan, workers_plan,
                                   succession, restart
              drift                the registration at Telegram against the one that we want
              narration            what the log says
    shells    runner               one loop: events in, actions out
              lease                lock, term, heartbeat; lease_statements: its SQL
              suitability, registration_log, registrar, worker_process, health, status, metrics
    start     __main__, cli, listening, spawn
    outside   commands             an operator's, beside what runs

The pure modules import no asyncio, os, time, random, logging, socket, psycopg, httpx (tests/unit/test_repository.py). All
decisions are theirs; the shells carry them out and report facts back.
"""
