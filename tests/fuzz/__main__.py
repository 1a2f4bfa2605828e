"""`python -m fuzz --cases 10000 --seed 7`, in the folder of the tests: tells every case that was answered wrongly."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import pkgutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import fuzz
from fuzz.harness import LIMIT, Answer, answers

NOT_KINDS = ("__main__", "checkpoints", "harness", "mutations")


def kinds() -> list[str]:
    """The modules that have `cases(seed, count, folder)`."""
    return [module.name for module in pkgutil.iter_modules(fuzz.__path__) if module.name not in NOT_KINDS]


def main() -> int:
    """Exit status 1 if a case was answered wrongly."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="in all, shared evenly by the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=kinds(), default=kinds())
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds a case may take")
    parser.add_argument("--minutes", type=float, default=None, help="stop after so many")
    parser.add_argument("--out", type=Path, default=None, help="a file to which wrong answers are added, a JSON a line")
    chosen = parser.parse_args()
    began, total, wrong, statuses = time.monotonic(), 0, Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="vader-fuzz-") as folder:
        Path(folder, "seeds").mkdir()
        streams = [_stream(kind, chosen, Path(folder)) for kind in chosen.kinds]
        for kind, one in (pair for row in itertools.zip_longest(*streams) for pair in row if pair is not None):
            total += 1
            statuses[f"{kind} {one.status}"] += 1
            wrong.update(one.faults)
            if one.faults:
                _tell(kind, one, chosen.out)
            if chosen.minutes is not None and time.monotonic() - began > 60 * chosen.minutes:
                break
    print(f"{total} cases in {time.monotonic() - began:.0f} s, exit statuses {dict(sorted(statuses.items()))}")
    print(f"answered wrongly: {dict(wrong) or 'none'}")
    return 1 if wrong else 0


def _stream(kind: str, chosen: argparse.Namespace, folder: Path):
    count = -(-chosen.cases // len(chosen.kinds))
    made = importlib.import_module(f"fuzz.{kind}").cases(chosen.seed, count, folder / "seeds")
    return ((kind, one) for one in answers(made, folder / f"cases-{kind}", chosen.limit))


def _tell(kind: str, one: Answer, out: Path | None) -> None:
    print(f"{kind}: {one.case.name}: {', '.join(one.faults)}", flush=True)
    if out is not None:
        line = {"kind": kind, "name": one.case.name, "argv": one.case.argv, "status": one.status}
        with out.open("a") as stream:
            print(json.dumps(line | {"faults": one.faults, "stderr": one.stderr[-3000:]}), file=stream)


if __name__ == "__main__":
    raise SystemExit(main())
