"""Real faults: real supervisors, workers, Postgres and emulator under steady traffic, and a judge that can object.

    python -m tests.campaign [IDS...] [--short] [--seed N] [--repetitions N] [--json FILE] [--write-docs] [--keep] [--list]
    make campaign                 all of them, long;   make campaign SHORT=1   in at most 20 minutes, as CI does

This package may import everything of the project; nothing may import it. It is no part of `make test`: only its judge is
(`tests/unit/campaign`). What it needs beyond the project (root, network namespaces, PgBouncer, libfaketime) is named by each
scenario; where that is missing it is skipped, and says why. With CI=true in the environment a skip fails the campaign.

    scenario.py     the registry: @scenario, Need                          you write:   scenarios/<topic>.py
    staging.py      one scenario from begin to verdict                     you use:     field.Field
    field.py        the ground: database, emulator, router, instances, traffic, probes, faults
    hosting.py      the platform (deploy/local/platform) on the field's ground: deploys, rollbacks, restarts in place
    conclusion.py   the end: everything handled, W, H, then the evidence
    history.sql     triggers: the database's own history of inbox, terms and signs of life; recorder.py reads it
    evidence.py, tenure.py, judge.py, recovery.py, result.py     pure: values, verdict, times, the table

How to write a scenario
=======================

A module in `tests/campaign/scenarios/`, found by itself. The id is searched for as `id="..."` or `scenario("...`; the body
is an async function of two arguments:

    @scenario(
        id="b04",
        title="SIGSTOP the supervisor past its deadline, then SIGCONT",
        repetitions=40,
        short=2,
        needs=(Need.LINUX,),
        recovery=Recovery.NEXT_TERM,
        bounds={Recovery.NEXT_TERM: (Bound("frozen owner to the next term, worst", 16.0, worst=True),)},
    )
    async def freeze_supervisor(field: Field, chance: random.Random) -> None:
        # (a docstring that says in a sentence what must hold)
        await field.start("one")
        await field.start("two")
        async with field.flowing():                       # 40 updates a second from 300 chats; `flowing(100)` for more
            for _ in range(field.repetitions):            # never your own number: --short and --repetitions decide
                owner = await field.steady()              # healthy, owned, dispatching, the rest in the queue
                await asyncio.sleep(chance.uniform(0, 1)) # the random moment; all randomness comes from `chance`
                field.signal(owner, SIGSTOP)              # writes the fault down, and sends the signal
                await field.owner()                       # the next one (a frozen supervisor does not say ACTIVE)
                owner.signal(SIGCONT)

When the body returns, the harness (conclusion.py) waits until all is delivered and handled, checks W, stops the instances that
still run with SIGTERM (exit status 0, within 30 s), checks H, and judges. So before you return: undo your faults (SIGCONT, heal
the network, start the server), and leave at least one instance running. Aim at 30 s in all with `short` repetitions, of which
about 12 s are the harness's.

Arguments of @scenario, beside id and title:
    repetitions, short      of the fault in the long and in the short campaign; `field.repetitions` is the one to use
    needs                   what is skipped without; add to `Need` what is missing there
    recovery                which recovery the table shows (recovery.Recovery); all are measured after each fault
    bounds                  {Recovery: (Bound(...), ...)}: printed as reached or not; one that is not reached is a breach (A) in
                            the long campaign, and in the short one where it took ten times as long.
                            Bound(..., kind="x") counts only faults whose kind begins so. A name of `field.times` in the place
                            of the Recovery bounds what you measure yourself; Bound(..., is_margin=True) from below, always
    recovers_each           False: a fault may come before the one before was recovered from. Otherwise one that is not followed
                            by a 200, or not by a bounded recovery, before the next one comes is a breach (A)
    own_server              True: a Postgres of the scenario's own in `field.server`, to be stopped, restarted, filled.
                            Otherwise `field.server` is everybody's, with a database of your own in it
    place                   instead: makes that server where it is to be, `async with place(folder, settings) as server`
    server_settings         of an own server, e.g. {"max_connections": "20"}; track_commit_timestamp is always on
    dead_letters            True: updates may end as dead letters here (b25); otherwise each is a breach (D)
    asserts                 False: setWebhook cannot be called all the time (b23): terms without it are no breach
    answers                 False: the machine is so busy that a probe without an answer says nothing
    hang_seconds_each       limit on a hang for each repetition, 60 by default

Of the field:
    start(name, dsn=, prefix=, command=, host=, **environment)    see Field.prepare for each. Names have no dash.
        dsn       e.g. through a proxy or PgBouncer. The harness itself goes on reading `field.database_url`, the direct way
        prefix    ("/usr/sbin/ip", "netns", "exec", "ns1") and the like: what execs the supervisor in its place
        host      where the instance listens, as seen from the harness's namespace: router and probes go there
        environment   e.g. DEPLOY_ID="v2", BOT_APP="tests.campaign.bots:blocking", LD_PRELOAD=..., TELEGRAM_API_BASE_URL=...
                      DEPLOY_ID is "campaign" for all by default, so nobody hands over to anybody
    restart(instance)       the same again after its end;  stop(instance): SIGTERM, its exit status
    owner(), standby(), steady(), running, instances[name]
    inject(kind, instance=, at=)      writes a fault down, now or at a `time.monotonic()`. Call it exactly once for each fault
                            that you inject by means of your own; recovery is measured from there to the next fault. For an
                            outage of something, inject when it is *over* if recovery is to count from its return
    signal(instance, SIGSTOP), kill_supervisor(instance), kill_worker(instance)     these call `inject` themselves
    note_death(instance, at, over_at)     whatever was killed, by whomever, so that a rerun is explained. Not needed for
                            kill_supervisor, nor for a worker of whose end its supervisor's log tells (status not 0)
    with standing_still(instance):        what is stopped, or blocked by its bot, need not answer its probes. Otherwise a probe
                            without an answer, of a process that was up before and after, is a breach (A)
    object(Invariant.X, why)              a breach that only the scenario can see (an owner that changed for nothing: A)
    times["what"] = [seconds, ...]        what you measure yourself; it is printed and goes into the JSON
    figures["what"] = 7     what you count yourself
    urls_of_others.append(url)            what you, or an instance beside the field, set as webhook: not judged, whoever does it
    expects_webhook = False               where no owner can stand with its webhook in place at the end
    telegram                EmulatorClient: users, faults, outages, `inject` for updates of any shape. Updates that were not
                            written by `field.flowing()` are judged too if you add them: field.traffic.sent[update_id] = chat_id
    traffic.send([0.5])     updates of half a second's work each, beside the flow; at most one for each of the 300 chats
    put_in_flight([0.5])    the same, until one of them is being handled; is_in_flight(update_ids)
    recorder.fetch(sql, *values)          a query on the direct way; `fetch_when_back` where the server may be away
    router, exchanges       the platform's router; every request through it that was not answered 200, with who and why
    prober.probes           every answer of /healthz
    instance.wait_for("[LOCK] ..."), .has, .count, .output, .worker_pid(), .status(), .try_status(), .signal(), .process
                            see tests/end_to_end/instance.py

The bot is deploy.local.traffic_bot: its runs are what the judge sees. A bot of another kind must keep its handlers
(`application = deploy.local.traffic_bot.build(builder)`, then add yours); see bots.py.

Rules: no sleep but for the random moment and the length of a fault; every wait has a limit on a hang and none is a claim about
speed; times are measured and printed, and only bounds assert any. A breach is either the harness's or the product's: find out
which.
"""
