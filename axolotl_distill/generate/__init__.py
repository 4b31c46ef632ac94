"""Prompts to trajectories; stops and goes on at any moment.

    prompts.py         rows of files (sources.py) -> prompts with ids
    request.py         what is asked once (Request), what comes back (Completion, Refused)
    plan.py            prompts × n, less what is there already -> requests
    backend.py         who answers: server_backend.py (what an answer holds: answer.py), or
                       model_backend.py (draws: sampling.py)
    loop.py            requests -> backend -> journal (writer.py), many at once
    executor.py        where the loop runs: here, or in the workers of a cluster (ray_executor.py)
    meter.py           what was spent, and whether another request fits the budget
    folder.py          the folder: settings, lock, what is there
    progress.py        the bar and the summary, over counts (tally.py)
    run.py             all of it, as one object: Generation

Imports neither torch nor openai; a backend's module does.
"""
