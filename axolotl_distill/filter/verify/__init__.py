"""Verification: is a trajectory's final answer right? `../steps/verify/` asks.

    extract.py         where the final answer is in a text; prose.py: where it is announced
    text.py            exact, numeric and regex comparison
    math.py            the order in which mathematics is read; math-verify, with its rounding mended
    normal.py          one way to write a formula; quantity.py and units.py: numbers, exactly
    choice.py          letters of multiple choice
    reasoning_gym.py   reasoning-gym's scorers
    blocks.py          the program in an answer; tests.py: tests in the forms that data sets have
    code.py            the one against the other, in the sandbox

What can hang or eat memory runs in a worker (`sandbox/workers.py`).
"""
