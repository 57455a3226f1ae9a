"""Grading functions that misbehave, for the workers of a pool: the task says how."""

import ctypes
import os
import sys
import time

from rlhf.data.types import Verdict


def misbehave(task: dict[str, str]) -> Verdict:
    """Do what `task["do"]` says."""
    match task["do"]:
        case "answer":
            return Verdict("right", task["text"])
        case "sleep":
            time.sleep(600)
        case "spin":
            while True:
                pass
        case "regex":  # holds the interpreter lock: no Python thread could interrupt it
            import re

            re.match(r"(a+)+$", "a" * 60 + "b")
        case "exit":
            os._exit(7)
        case "segfault":
            ctypes.string_at(0)
        case "memory":
            return Verdict("right", str(len("x" * 10**11)))
        case "raise":
            raise KeyError(task["text"])
        case "print":
            print('{"outcome": "right"}')
            sys.stdout.flush()
            return Verdict("wrong", "printed")
        case "modules":
            return Verdict("right", ",".join(m for m in ("torch", "transformers", "__mp_main__") if m in sys.modules))
    raise AssertionError("unreachable")
