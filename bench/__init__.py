"""How fast it is, beside what people would use instead: `make bench`.

    figures.py      what is measured, what is to be reached, and what came out
    bed.py          two cores: servers under test on one; Postgres, Bot API emulator and load on the other
    load.py         the load generator: Telegram, with updates as it sends them
    contenders.py   ours and the peers, running, in one shape; counter.py: how many their bots have handled
    bots.py         the bots that are run
    production/     what hides from our own processes whatever production has not
    peers/          the servers of others, as one would write them from their documentation
    throughput.py   updates a second, and CPU-seconds for 1,000, beside the peers
    start.py        exec to the first 200, the port, memory
    latency.py      take-over, wake-up, a blocked chat
    scale.py        how it goes with connections, sizes of bodies, chats, backlog
    soak.py         an hour of steady load (steady.py): `make soak`, with
    growth.py       what a completed update leaves behind, and a purge beside traffic
    options.py      what whoever runs it can choose
    report.py       the table, results.json, docs/performance.md and its plots

Every figure is a ratio of two things measured in one run, in turns, or says that it is not. The machine is noisy: rounds are
interleaved and their median counts; where rates and CPU-seconds disagree, the CPU-seconds decide.

Not promised: that a rate measured here is one that a machine of yours reaches. May import deploy.local, shared and the
standard library. What it measures it runs as its users do, by its command, and imports only for the days that keys are kept
(growth.py reads them; a bot of bots.py shortens them, in the worker that runs it).
"""
