"""The supervisor: one small process an instance, owner of the lock and of the webhook's registration.

Law: it imports `shared` and never `webhook_worker`; it never sees an update. `messages`, `state`, `core`, `succession`,
`restart` and `narration` are pure: no asyncio, os, time, random, logging, socket, psycopg, httpx. All decisions are theirs;
`runner`, `lease`, `registrar`, `worker_process` and `health` carry them out and report facts back.
"""
