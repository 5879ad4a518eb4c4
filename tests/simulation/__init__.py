"""The whole system in simulated time, from one seed: whatever fails, nothing answered 200 is lost, doubled or out of order.

Real, and unchanged: `supervisor.core` with everything behind it, `registrar` with its client of the Bot API, what /status
and /healthz say, and of the worker `term`, `dispatch`, `flight`, `countdown`, `lanes`, `retention`, `ingest`, `registrations`,
`verify`, `updates`, `health` and the webhook of `app`. They run in event loops of our own (process.py), one a process, in which
time passes only when nobody has anything to do.

Written here again, so that a fault of the real one does not show: the supervisor's loop and the life of its workers
(instance.py for `runner`, `worker_process` and `spawn`), the lease without its decisions (lease.py), the links, the inbox and
its writer (link.py), the worker's assembly with control socket, lifeline, early reception and beats (worker.py), and the bot
(bot.py).

Modelled: what they talk to.

    plan ──► world ──► platform ── deploys, probes, routes, restarts ──► instances: supervisor, workers
               │                                                            │          │
               │       telegram ── queues, retries, expiry, limits ─────────┴── HTTP ──┤
               └─────► postgres ── sessions, lock, terms, inbox, failover ── network ──┘
                                    history ──► checker

The simulator of Telegram is made of the emulator's pure parts, that of Postgres of tests/models, which keep the contracts
that Postgres keeps too. Law: no module here reads a clock or a random generator other than those of its world; two runs of a
plan are the same, and `python -m tests.simulation --seed N` prints what happened.
"""
