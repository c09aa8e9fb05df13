"""How fast the package is, against its peers, in one run: ``make bench`` or ``python -m benchmarks``.

::

    __main__.py     the command: run scenarios, print, write JSON; --docs rewrites the page
    goals.py        the rows of the table, each with what must be reached and what is aimed at
    why.py          another command: what each change to waitress buys and costs; variants.py takes them back
    scenarios/      one module for each kind of row: what is run, in which order
    bench.py        what scenarios work with: interleaved rounds, placement on cores, samples
    loads/          client processes that make the load
    origin.py       the upstream for chunks, held answers, tunnels and uploads; nginx is the one for files
    servers.py      the application with and without the add-on, and its peers
    fronted.py      the application and nginx in front of it, as one server
    application.py  the Pyramid application; benchmark.ini is its one ini file; django_peer.py the Python peer
    processes.py    starts and ends processes
    accounts.py     CPU, memory and threads as the operating system accounts for them
    machine.py      cores, limits, and what the machine is
    figures.py      medians, spreads, and a row's verdict
    report.py plots.py page.py   what is printed, drawn, and written into docs/how-fast.md,
                    docs/deploying.md and the README

Not part of the wheel. Linux only: it reads ``/proc`` and places processes on cores.
"""
