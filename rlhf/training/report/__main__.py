"""`python -m rlhf.training.report RUN_FOLDER`: the report of a run again, from what its folder holds."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf.training.report.run_report import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: rebuild a report and print its path."""
    parser = argparse.ArgumentParser("python -m rlhf.training.report", description="Write a run's HTML report again.")
    parser.add_argument("run_folder", type=Path, help="the run's folder, e.g. runs/run")
    try:
        print(write_report(parser.parse_args(arguments).run_folder))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
