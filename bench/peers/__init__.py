"""Servers of others, as one would write them from their documentation. Each runs alone: `python -m bench.peers.NAME`.

    run_webhook.py          python-telegram-bot: Application.run_webhook (tornado, queue in memory)
    starlette_example.py    python-telegram-bot: examples/customwebhookbot, its Starlette variant
    aiogram_background.py   aiogram 3 on aiohttp, SimpleRequestHandler with handle_in_background
    bare_uvicorn.py         no bot: reads the body and answers 200
    insert_per_request.py   the same, with an INSERT and a commit for each request

They read the same environment as ours (`Bed.environment`), and count what they have handled (counter.py). Never imports what it
is measured beside.
"""
