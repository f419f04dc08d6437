"""`make bench-cpu`: Rookery beside the official `rwkv` package and llama.cpp on a processor, in one run.

    run.py            what is measured, in turn, and the report as it grows
    files.py          the checkpoint of a shape in every form a peer reads; gguf_file.py writes llama.cpp's
    child.py          an engine in a process of its own, from outside; worker.py from inside
    *_engine.py       one engine each, behind worker.Engine
    servers.py        the same engines over HTTP
    agreement.py      whether the peers compute the same function; without that nothing is compared
    ratios.py         ours against theirs at equal bits, and the targets
    plot.py           the figures as an SVG

worker.py, gguf_file.py and llama_engine.py run in an interpreter that has no torch and not this project, only numpy,
gguf and llama-cpp-python (`install-peers`).
"""
